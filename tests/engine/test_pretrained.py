"""Batched transformers models: answers equal those of each prompt alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, GPT2Config, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from bot.engine.pretrained.causal import PretrainedForServing
from bot.engine.pretrained.slots import SlotCache
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import explain_out_of_memory
from bot.errors import CheckpointError, EngineUnavailable
from tests.engine.pretrained import CONFIGS, WINDOW, generate, make_network

SLIDING = ("mistral", "qwen3", "gemma2", "gpt_oss")


def served(network: PreTrainedModel, slots: int = 4, context_length: int = 128) -> PretrainedForServing:
    return PretrainedForServing(network, slots=slots, context_length=context_length)


def alone(network: PreTrainedModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """Return the library's greedy generate() without stop ids."""
    network.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    return generate(network, ids, max_new_tokens=tokens, eos_token_id=None)[len(prompt) :]


class Conversation:
    """Sequences that join and leave the batch, decoded greedily."""

    def __init__(self, model: PretrainedForServing) -> None:
        self.model = model
        self.rows: dict[int, list[int]] = {}
        self.prompts: dict[int, int] = {}

    def prefill(self, prompts: dict[int, Sequence[int]]) -> None:
        self.rows |= {slot: list(prompt) for slot, prompt in prompts.items()}
        self.prompts |= {slot: len(prompt) for slot, prompt in prompts.items()}
        self._step(list(prompts), [tuple(prompt) for prompt in prompts.values()], [0] * len(prompts))

    def decode(self, slots: Sequence[int]) -> None:
        self._step(slots, [(self.rows[slot][-1],) for slot in slots], [len(self.rows[slot]) - 1 for slot in slots])

    def said(self, slot: int) -> list[int]:
        return self.rows[slot][self.prompts[slot] :]

    def _step(self, slots: Sequence[int], tokens: Sequence[tuple[int, ...]], starts: Sequence[int]) -> None:
        logits = self.model.forward(Batch(tuple(slots), tuple(tokens), tuple(starts)))
        assert logits.dtype == torch.float32
        for slot, token in zip(slots, logits.argmax(-1).tolist(), strict=True):
            self.rows[slot].append(token)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "qwen2_moe"])
def test_batched_answers_equal_generate_on_each_prompt(kind: str) -> None:
    network = make_network(kind)
    prompts: dict[int, Sequence[int]] = {2: [1, 5, 9, 30, 4], 0: [*range(40, 63)], 3: [8, 3]}
    expected = {slot: alone(network, prompt, 25) for slot, prompt in prompts.items()}
    chat = Conversation(served(network))
    chat.prefill(prompts)
    for _ in range(24):
        chat.decode(list(prompts))
    assert {slot: chat.said(slot) for slot in prompts} == expected


@pytest.mark.parametrize("kind", ["glm4", "qwen3", "gpt_oss"])
@pytest.mark.parametrize("seed", range(3))
def test_joining_and_leaving_rows_do_not_affect_others(kind: str, seed: int) -> None:
    dice, network = random.Random(seed), make_network(kind, seed=seed)
    asked = [[dice.randrange(5, 290) for _ in range(dice.randrange(1, 30))] for _ in range(10)]
    answers = [dice.randrange(1, 20) for _ in asked]
    expected = [alone(network, prompt, tokens) for prompt, tokens in zip(asked, answers, strict=True)]
    chat = Conversation(served(network, slots=3))
    waiting, running, found = list(range(len(asked))), dict[int, int](), dict[int, list[int]]()
    while waiting or running:
        free = [slot for slot in range(3) if slot not in running]
        dice.shuffle(free)
        if waiting and free:
            new = {slot: waiting.pop(0) for slot in free[: dice.randint(1, len(free))] if waiting}
            running |= new
            chat.prefill({slot: asked[number] for slot, number in new.items()})
        else:
            chat.decode(list(running))
        for slot, number in list(running.items()):
            if len(chat.said(slot)) == answers[number]:
                found[running.pop(slot)] = chat.said(slot)
    assert [found[number] for number in range(len(asked))] == expected


def test_a_slot_is_reusable_after_nan() -> None:
    network = make_network("llama")
    expected = alone(network, [4, 5], 4)
    model = served(network, slots=1)
    chat = Conversation(model)
    chat.prefill({0: list(range(5, 40))})
    with torch.inference_mode():
        for room in model._cache.layer(0, torch.zeros(0), torch.zeros(0)):
            room[:, :, :35] = torch.nan
    chat.prefill({0: [4, 5]})
    for _ in range(3):
        chat.decode([0])
    assert chat.said(0) == expected


def test_sliding_windows_equal_the_library_within_and_beyond_the_window() -> None:
    for kind in SLIDING:
        network = make_network(kind)
        expected = alone(network, range(20, 20 + WINDOW - 2), 3 * WINDOW)
        chat = Conversation(served(network, slots=1))
        chat.prefill({0: range(20, 20 + WINDOW - 2)})
        for _ in range(3 * WINDOW - 1):
            chat.decode([0])
        assert chat.said(0) == expected, kind


def test_layers_that_slide_without_passing_the_window_are_limited_to_it() -> None:
    assert served(make_network("qwen2_moe")).context_length == WINDOW
    assert served(make_network("mistral")).context_length == 128
    assert served(make_network("qwen2")).context_length == 128


def test_bfloat16_passes_the_comparison() -> None:
    model = served(make_network("glm4").to(torch.bfloat16))  # type: ignore[arg-type]  # nn.Module.to takes a dtype
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    chat = Conversation(model)
    chat.prefill({0: [3, 4, 5]})
    assert len(chat.said(0)) == 1


def test_unsupported_attention_is_rejected() -> None:
    # ALiBi: positions are a bias in the model's own mask.
    network = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(CheckpointError, match=r'model_type "bloom" has a custom attention .*: choose another'):
        served(network.eval())


def test_learned_positions_are_supported() -> None:
    network = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    assert served(network.eval()).context_length == 128


def test_wrong_positions_are_detected_on_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SlotCache.step

    def shifted(cache: SlotCache, batch: Batch) -> object:
        starts = batch.starts if batch.is_prefill else tuple(start - 1 for start in batch.starts)
        return step(cache, Batch(batch.slots, batch.tokens, starts))

    monkeypatch.setattr(SlotCache, "step", shifted)
    with pytest.raises(CheckpointError, match="its logits differ"):
        served(make_network("llama"))


def test_an_overflow_of_the_dtype_is_reported() -> None:
    network = make_network("llama")
    with torch.no_grad():
        network.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(CheckpointError, match=r"the model overflows float32 \(NaN or inf\): set engine.dtype"):
        served(network)


def test_a_network_that_cannot_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("llama")

    def broken(*args: object) -> Tensor:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(nn.Linear, "forward", broken)
    with pytest.raises(CheckpointError, match=r"does not run here \(RuntimeError: no kernel for this device\)"):
        served(network)


def test_out_of_memory_during_the_comparison_is_not_reported_as_a_wrong_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    network = make_network("llama")
    monkeypatch.setattr(nn.Linear, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        served(network)


def test_a_cache_that_does_not_fit_names_the_settings_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def resized(cache: SlotCache, slots: int, capacity: int) -> SlotCache:
        raise MemoryError

    monkeypatch.setattr(SlotCache, "resized", resized)
    # 2 layers, keys and values, 2 heads of 8 floats of 4 bytes: 256 bytes per token.
    with pytest.raises(
        EngineUnavailable,
        match=r"2.0 GiB for engine.max_batch_size = 64 and 131072 tokens each; lower engine.max_batch_size or engine",
    ):
        served(make_network("llama"), slots=64, context_length=131072)


def test_other_errors_of_the_cache_are_not_translated() -> None:
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory(1, 1, 1):
        raise RuntimeError("another fault")

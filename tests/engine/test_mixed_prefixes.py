"""Rows with different P-Tuning prefixes in one batch: each answers as the model does that has its prefix alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bot.domain import ChatMessage, ChatRequest, SamplingParams
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.memory import LoadParameters, needs
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import PREFIX
from bot.engine.model_folder import DEMO
from bot.engine.serving.base import Batch
from bot.engine.serving.runner import Runner
from bot.engine.serving.scheduler import Step
from bot.engine.serving.sequence import Sequence
from bot.errors import CheckpointError, EngineFailed

TOKENIZER = ChatGLMTokenizer.load(DEMO)
CONFIG = read_config(DEMO)
LENGTHS = {"short": 3, "middle": 16, "long": 40}
QUESTIONS = ("Who are you?", "How do I clear the conversation, and what is left of it then?", "你好")
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=20, seed=7, max_tokens=12)


@dataclass(frozen=True, slots=True)
class Job:
    question: str
    prefix: str
    params: SamplingParams

    def sequence(self, model: ChatGLMForServing, *, is_alone: bool = False) -> Sequence:
        prefix = "" if is_alone else self.prefix
        request = ChatRequest((ChatMessage("user", self.question),), self.params, prefix=prefix)
        return Sequence.of(request, tuple(TOKENIZER.prompt(request.messages)), TOKENIZER, model.context_length)


JOBS = [
    Job(question, prefix, params) for params in (GREEDY, SAMPLED) for question in QUESTIONS for prefix in ("", *LENGTHS)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    random = torch.Generator().manual_seed(3)
    found = {}
    for name, length in LENGTHS.items():
        found[name] = tmp_path_factory.mktemp(name)
        table = 4 * torch.randn(length, 2 * CONFIG.num_layers * CONFIG.hidden_size, generator=random)
        save_file({f"{PREFIX}embedding.weight": table}, found[name] / "model.safetensors")
    return found


def run(model: ChatGLMForServing, sequences: list[Sequence]) -> list[list[int]]:
    """Return the tokens of all; up to 3 start at once beside those that decode, in slots that held other prefixes."""
    runner = Runner(model, TOKENIZER.vocabulary)
    tokens: dict[Sequence, list[int]] = {each: [] for each in sequences}
    waiting, free = deque(sequences), deque(range(model.slots))
    running: dict[Sequence, int] = {}

    def step(jobs: dict[Sequence, int], *, is_prefill: bool) -> None:
        results = runner.run(Step(jobs, is_prefill)) if jobs else {}
        for each, result in results.items():
            assert not isinstance(result, EngineFailed)
            tokens[each].append(each.last)

    while waiting or running:
        started = {waiting.popleft(): free.popleft() for _ in range(min(3, len(waiting), len(free)))}
        step(started, is_prefill=True)
        running |= started
        step({each: slot for each, slot in running.items() if each.reason is None}, is_prefill=False)
        for each in [each for each in running if each.reason is not None]:
            free.append(running.pop(each))
    return list(tokens.values())


def mixed(model: ChatGLMForServing) -> list[list[int]]:
    return run(model, [job.sequence(model) for job in JOBS])


def alone(folders: dict[str, Path], **options: Any) -> list[list[int]]:
    models = {name: load(DEMO, slots=1, device="cpu", ptuning=folders.get(name), **options) for name in ("", *LENGTHS)}
    return [run(models[job.prefix], [job.sequence(models[job.prefix], is_alone=True)])[0] for job in JOBS]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_tokens_in_a_mixed_batch_are_those_of_each_prefix_alone(folders: dict[str, Path], quantization: Any) -> None:
    wanted = alone(folders, quantization=quantization)
    assert len({tuple(tokens) for tokens in wanted[:4]}) == 4  # the prefixes matter
    model = load(DEMO, slots=8, device="cpu", prefixes=folders, quantization=quantization)
    assert mixed(model) == wanted


@pytest.mark.parametrize("form", ["static buffers", "two devices"])
def test_other_forms_of_a_step_mix_prefixes_too(folders: dict[str, Path], form: str) -> None:
    model = load(DEMO, slots=8, device="cpu,cpu" if form == "two devices" else "cpu", dtype="float32", prefixes=folders)
    if form == "static buffers":  # the step that a CUDA graph captures, run eagerly
        caches = model._caches[0]
        own, *others = (caches._prefixes[name] for name in ("", *LENGTHS))
        named = dict(zip(LENGTHS, others, strict=True))
        model = ChatGLMForServing(model.network, slots=8, prefix=own, prefixes=named, capture=lambda step: step)
    assert mixed(model) == alone(folders, dtype="float32")


def test_a_prefix_with_nan_affects_neither_other_rows_nor_the_next_sequence_of_its_slot(
    folders: dict[str, Path],
) -> None:
    short = load(DEMO, slots=1, device="cpu", ptuning=folders["short"])._caches[0]._prefixes[""]
    network = load(DEMO, slots=1, device="cpu").network
    sick = torch.full((CONFIG.num_layers, 2, CONFIG.num_attention_heads, 40, CONFIG.head_dim), torch.nan)
    model = ChatGLMForServing(network, slots=2, prefixes={"short": short, "sick": sick})
    prompt = tuple(TOKENIZER.prompt([ChatMessage("user", "hi")]))

    def logits(slots: tuple[int, ...], *prefixes: str) -> list[torch.Tensor]:
        rows, size = len(slots), len(prompt)
        first = model.forward(Batch(slots, (prompt,) * rows, (0,) * rows, prefixes))
        return [first, model.forward(Batch(slots, ((5,),) * rows, (size,) * rows, prefixes))]

    healthy = logits((0, 1), "", "short")
    broken = logits((0, 1), "", "sick")
    again = logits((0, 1), "", "short")

    for whole, part, after in zip(healthy, broken, again, strict=True):
        assert part[1].isnan().all()
        assert torch.equal(part[0], whole[0])
        assert torch.equal(after, whole)


def test_prefixes_of_another_model_or_none_are_refused_with_their_table(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    save_file({f"{PREFIX}embedding.weight": torch.zeros(2, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r'trained for another model; set models\.club\.ptuning = ""'):
        load(DEMO, prefixes={"club": tmp_path})
    (tmp_path / "model.safetensors").unlink()
    save_file({"other": torch.zeros(2, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r'holds no P-Tuning prefix .* set models\.club\.ptuning = ""'):
        load(DEMO, prefixes={"club": tmp_path, "short": folders["short"]})


def test_memory_counts_the_longest_prefix_in_every_slot_and_each_prefix_once(folders: dict[str, Path]) -> None:
    model = load(DEMO, slots=3, device="cpu", prefixes=folders)
    cache = model._caches[0]
    plain = LoadParameters(CONFIG, "none", model.dtype, (torch.device("cpu"),), 3)
    (need,) = needs(replace(plain, prefixes={"": 0, **LENGTHS})).values()

    assert need.cache == cache.keys.nbytes + cache.values.nbytes
    assert need.prefixes == sum(prefix.nbytes for prefix in cache._prefixes.values())
    (without,) = needs(plain).values()
    assert (without.prefixes, need.cache - without.cache) == (0, 3 * 40 * need.prefixes // sum(LENGTHS.values()))
    assert Checkpoint(folders["long"]).tensors[f"{PREFIX}embedding.weight"].shape[0] == 40

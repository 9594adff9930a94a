"""The network, its token layout and its cache; test_golden compares published numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from bot.config.schema import EngineSection
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig, parse_config, read_config
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.loading import find_device, find_devices, find_dtype, load_random
from bot.engine.chatglm.model import ChatGLM, RotaryEmbedding, WholeSequence
from bot.engine.chatglm.weights import build_network, expected_shapes
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import KeyValueCache
from bot.errors import CheckpointError, EngineUnavailable
from tests.golden.network import RecordingAttention
from tests.golden.runs import run

CONFIG = ChatGLMConfig(
    vocab_size=96,
    hidden_size=64,
    inner_hidden_size=128,
    num_layers=3,
    num_attention_heads=4,
    mask_token_id=90,
    gmask_token_id=91,
    bos_token_id=92,
    eos_token_id=93,
    max_sequence_length=64,
)
PROMPTS = [[*range(5, 5 + size), 91, 92] for size in (3, 9, 1, 20, 6)]
PLACE = Path("config.json")


@pytest.fixture(scope="module")
def model() -> ChatGLMForServing:
    return load_random(CONFIG)


def inputs(prompt: list[int], config: ChatGLMConfig = CONFIG) -> tuple[Tensor, Tensor, Tensor]:
    layout = layout_of(prompt, config)
    return torch.tensor([prompt]), layout.positions(len(prompt))[None], layout.mask(len(prompt))[None]


# Layout


def test_the_prompt_is_bidirectional_and_the_answer_causal() -> None:
    layout = layout_of([7, 8, 91, 92], CONFIG)
    assert layout.mask(6).int().tolist() == [[0, 0, 0, 1, 1, 1]] * 3 + [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
    ]
    assert layout.positions(6).tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]


@pytest.mark.parametrize("first_release", [False, True])
@pytest.mark.parametrize("two_channels", [False, True])
@given(size=st.integers(1, 12), where=st.integers(0, 12), gmask=st.booleans())
def test_decoded_positions_equal_those_of_the_whole_sequence(
    size: int, where: int, gmask: bool, two_channels: bool, first_release: bool
) -> None:
    config = replace(CONFIG, position_encoding_2d=two_channels)
    mask_position = config.gmask_token_id if gmask else config.mask_token_id
    prompt = [5] * size
    prompt.insert(min(where, size), mask_position)
    layout = layout_of([*prompt, config.bos_token_id], config)
    whole = layout.positions(20).tolist()
    assert [list(layout.position(index)) for index in range(len(prompt) + 1, 20)] == whole[len(prompt) + 1 :]
    if first_release:
        early = layout_of([*prompt, config.bos_token_id], replace(config, first_release=True))
        first = whole[len(prompt)][0] if not gmask else len(prompt)
        assert early.positions(len(prompt) + 1)[-1, 0] == first
        assert early.position(len(prompt) + 1)[-1] == layout.position(len(prompt) + 1)[-1]


@pytest.mark.parametrize(
    ("prompt", "lacks"), [([5, 91], "<sop>, id 92"), ([5, 92], "[gMASK], id 91, or [MASK], id 90")]
)
def test_a_prompt_without_gmask_or_sop_is_rejected(prompt: list[int], lacks: str) -> None:
    with pytest.raises(ValueError, match="a prompt needs") as refused:
        layout_of(prompt, CONFIG)
    assert lacks in str(refused.value)


# Config


def test_a_written_config_is_read_back() -> None:
    for config in (
        CONFIG,
        replace(CONFIG, quantization_bit=4, quantization_embeddings=True),
        replace(CONFIG, pre_seq_len=8, prefix_projection=True, position_encoding_2d=False),
        replace(CONFIG, mask_token_id=88, gmask_token_id=89, first_release=True),
    ):
        assert parse_config(config.as_json(), PLACE) == config


def test_the_first_releases_config_omits_the_mask_ids() -> None:
    fields = {"vocab_size": 150528, "bos_token_id": 150004, "eos_token_id": 150005, "pad_token_id": 20003}
    config = parse_config({**CONFIG.as_json(), **fields, "mask_token_id": None, "gmask_token_id": None}, PLACE)
    assert config.first_release
    assert (config.mask_token_id, config.gmask_token_id) == (150000, 150001)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, 'another model (model_type "llama", archit'),
        ({"model_type": None}, "another model (model_type null"),
        ({"architectures": ["GPT2LMHeadModel"]}, "another model"),
        ({"padded_vocab_size": 65024, "ffn_hidden_size": 13696}, "ChatGLM2, ChatGLM3 or GLM-4"),
        ({"hidden_size": None}, "hidden_size = null; expected an integer"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"num_layers": True}, "num_layers = true"),
        ({"num_layers": 10**9}, "num_layers = 1000000000; expected an integer from 1 to 512"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000; expected an integer from 1 to 65536"),
        ({"inner_hidden_size": 10**9}, "inner_hidden_size = 1000000000; expected an integer from 1 to 262144"),
        ({"vocab_size": 10**9}, "vocab_size = 1000000000; expected an integer from 1 to 1000000"),
        ({"max_sequence_length": 10**8}, "max_sequence_length = 100000000; expected an integer from 1 to 131072"),
        ({"pre_seq_len": 10**9}, "pre_seq_len = 1000000000; expected an integer from 0 to 65536"),
        ({"vocab_size": "many"}, 'vocab_size = "many"'),
        ({"layernorm_epsilon": 1}, "layernorm_epsilon = 1"),
        ({"num_attention_heads": 3}, "expected a multiple of 12 for 3 heads"),
        ({"eos_token_id": 96}, "eos_token_id = 96, outside its vocab_size 96"),
        ({"quantization_bit": 3}, "quantization_bit = 3"),
    ],
    ids=str,
)
def test_a_config_of_another_model_is_rejected(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        parse_config({**CONFIG.as_json(), **fields}, PLACE)
    assert found in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"model_type": "llama"}, 'set engine.backend = "auto" or "transformers"'),
        ({"multi_query_attention": True}, "choose a GLM-4 whose name ends in -hf, or a ChatGLM-6B"),
    ],
    ids=str,
)
def test_another_models_config_says_what_to_set_instead(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(CheckpointError, match=f"{advice}$"):
        parse_config({**CONFIG.as_json(), **fields}, PLACE)


def test_a_missing_field_is_named() -> None:
    fields = CONFIG.as_json()
    del fields["inner_hidden_size"]
    with pytest.raises(CheckpointError, match="has no inner_hidden_size"):
        parse_config(fields, PLACE)


@pytest.mark.parametrize(("content", "found"), [("{", "cannot be read"), ("[]", "not a JSON object")])
def test_an_invalid_json_config_is_named(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=found):
        read_config(tmp_path)


# Network


def test_parameters_have_the_published_names_and_are_trainable() -> None:
    network = ChatGLM(CONFIG)
    parameters = dict(network.named_parameters())
    assert {name: tuple(value.shape) for name, value in parameters.items()} == expected_shapes(CONFIG)
    logits = network(*inputs(PROMPTS[0]))
    assert logits.shape == (1, 5, 96)
    logits.logsumexp(-1).sum().backward()
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0 for name, value in parameters.items() if "weight" in name
    )


def test_it_runs_under_autocast() -> None:
    network = ChatGLM(CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*inputs(PROMPTS[1]))
    torch.testing.assert_close(rounded.float(), network(*inputs(PROMPTS[1])), atol=0.1, rtol=0.05)


def test_fused_attention_equals_eager_attention(model: ChatGLMForServing) -> None:
    ids, positions, mask = inputs(PROMPTS[3])
    with torch.inference_mode():
        fused = model.network.hidden(ids, positions, WholeSequence(mask))
        eager = model.network.hidden(ids, positions, RecordingAttention(mask))
    torch.testing.assert_close(fused, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_rope_scores_depend_on_distances_only(channels: int) -> None:
    query_key = torch.randn(1, 1, 1, 2, 16, generator=torch.Generator().manual_seed(0))

    def product(first: int, second: int) -> Tensor:
        query, key = (
            RotaryEmbedding(torch.full((1, 1, channels), place), 16)(query_key)[..., part, :]
            for part, place in enumerate((first, second))
        )
        return (query * key).sum()

    torch.testing.assert_close(product(3, 10), product(40, 47))
    assert abs(product(3, 10) - product(3, 11)) > 1e-3


def test_the_published_fp16_angles_are_an_option() -> None:
    positions = torch.tensor([[[1900, 7]]])
    query_key = torch.randn(1, 1, 1, 2, 16, generator=torch.Generator().manual_seed(0))
    assert (
        RotaryEmbedding(positions, 16)(query_key) - RotaryEmbedding(positions, 16, half=True)(query_key)
    ).abs().max() > 0.05


# Serving


def alone(model: ChatGLMForServing, prompt: list[int], steps: int) -> Tensor:
    return run(model, [prompt], steps).logits[:, 0]


@given(order=st.permutations(range(8)), rows=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_logits_do_not_depend_on_the_slot_or_other_rows(model: ChatGLMForServing, order: list[int], rows: int) -> None:
    slots, prompts = tuple(order[:rows]), PROMPTS[:rows]
    steps = [model.forward(Batch(slots, tuple(map(tuple, prompts)), (0,) * rows))]
    for step in range(3):
        starts = tuple(len(prompt) + step for prompt in prompts)
        steps.append(model.forward(Batch(slots, ((11 + step,),) * rows, starts)))
    together = torch.stack(steps)
    for row, prompt in enumerate(prompts):
        single = run(model, [prompt], 4, lambda step, _: [11 + step]).logits[:, 0]
        torch.testing.assert_close(together[:, row], single, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_equals_running_the_whole_sequence(quantization: Any, dtype: Any) -> None:
    model = load_random(CONFIG, quantization=quantization, dtype=dtype, slots=2)
    assert (model.slots, model.context_length, model.quantization) == (2, 64, quantization)
    answer = [3, 50, 7]
    cached = run(model, [PROMPTS[1]], 4, lambda step, _: [[*answer, 0][step]]).logits[:, 0]
    layout = layout_of(PROMPTS[1], CONFIG)
    ids = torch.tensor([PROMPTS[1] + answer])
    whole = model.network(ids, layout.positions(ids.shape[1])[None], layout.mask(ids.shape[1])[None])[0, -4:]
    assert cached.dtype == torch.float32
    close = 1e-3 if dtype == "float32" else 0.25
    torch.testing.assert_close(cached, whole.float(), atol=close, rtol=close)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batched_prefill_equals_single_prefill(dtype: Any) -> None:
    model = load_random(CONFIG, dtype=dtype, slots=8)
    apart = [model.forward(Batch((slot,), (tuple(prompt),), (0,))) for slot, prompt in enumerate(PROMPTS)]
    keys = model._caches[0].keys.clone()
    together = model.forward(Batch((0, 1, 2, 3, 4), tuple(map(tuple, PROMPTS)), (0,) * 5))
    close = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(together, torch.cat(apart), atol=close, rtol=close)
    torch.testing.assert_close(model._caches[0].keys, keys, atol=close, rtol=close)


def test_an_invalid_prompt_does_not_change_the_other_slots_of_its_batch(model: ChatGLMForServing) -> None:
    wanted = run(model, [PROMPTS[0]], 2, lambda *_: [5]).logits
    with pytest.raises(ValueError, match="a prompt needs"):
        model.forward(Batch((0, 1), (tuple(PROMPTS[1]), (5, 6)), (0, 0)))
    assert torch.equal(run(model, [PROMPTS[0]], 2, lambda *_: [5]).logits, wanted)


def test_a_nan_prompt_does_not_affect_other_prompts() -> None:
    model = load_random(CONFIG, slots=2)
    wanted = model.forward(Batch((0,), (tuple(PROMPTS[0]),), (0,)))
    table = model.network.transformer.word_embeddings
    lookup = table.forward
    table.forward = lambda ids: lookup(ids).where(ids[..., None] != 70, torch.nan)
    both = model.forward(Batch((0, 1), (tuple(PROMPTS[0]), (70, 91, 92)), (0, 0)))
    torch.testing.assert_close(both[0], wanted[0])
    assert both[1].isnan().all()


def test_a_nan_row_affects_neither_other_rows_nor_the_slots_next_sequence() -> None:
    model = load_random(CONFIG, slots=3)
    wanted = alone(model, PROMPTS[2], 1)
    model.forward(Batch((0, 1, 2), tuple(tuple(PROMPTS[3]) for _ in range(3)), (0, 0, 0)))
    healthy = model.forward(Batch((0, 1, 2), ((5,), (5,), (5,)), (22, 22, 22)))
    model._caches[0].keys[:, 1] = torch.nan
    model._caches[0].values[:, 1] = torch.nan
    sick = model.forward(Batch((0, 1, 2), ((5,), (5,), (5,)), (22, 22, 22)))
    assert sick[1].isnan().all()
    assert torch.equal(sick[[0, 2]], healthy[[0, 2]])
    model._caches[0].keys[:, 1, :, 23:] = 0
    model._caches[0].values[:, 1, :, 23:] = 0
    after = model.forward(Batch((1,), (tuple(PROMPTS[2]),), (0,)))
    step = model.forward(Batch((1,), ((5,),), (3,)))
    torch.testing.assert_close(after, wanted)
    assert step.isfinite().all()


def test_rows_with_adjacent_slots_are_read_as_one_view(model: ChatGLMForServing) -> None:
    cache = model._caches[0]
    assert len(cache.decode([0, 1, 2, 3], [5, 5, 6, 7])._runs) == 1
    assert [run.rows for run in cache.decode([0, 1, 4], [5, 5, 6])._runs] == [slice(0, 2), slice(2, 3)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_empty_cache_holds_zeros(device: str) -> None:
    cache = KeyValueCache(
        layers=2, slots=3, context=5, heads=2, head_dim=4, dtype=torch.bfloat16, device=torch.device(device)
    )
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 5, 4)
    assert cache.keys.is_meta or not cache.keys.any()


def test_a_cache_larger_than_memory_is_reported() -> None:
    with pytest.raises(EngineUnavailable) as refused:
        ChatGLMForServing(load_random(CONFIG).network, slots=10**10)  # beyond any address space
    assert str(refused.value) == (
        "not enough memory for the KV cache: 915527.3 GiB for engine.max_batch_size = 10000000000 and 64 tokens each; "
        "lower engine.max_batch_size or engine.context_length"
    )


# Devices


def test_auto_selects_a_device_and_a_dtype() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert find_device("cpu") == cpu
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    assert find_dtype("auto", cpu, "none") == torch.float32
    assert find_dtype("auto", cpu, "int4") == torch.bfloat16
    assert find_dtype("auto", cuda, "int4") == torch.float16
    assert find_dtype("bfloat16", cuda, "none") == torch.bfloat16


@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu,cpu,cpu"])
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_layers_split_between_devices_give_the_same_logits(devices: str, quantization: Any) -> None:
    whole = load_random(CONFIG, quantization=quantization, slots=3)
    split = load_random(CONFIG, quantization=quantization, slots=3, device=devices)
    assert len(split.devices) == devices.count(",") + 1
    for prompts in (PROMPTS[:1], PROMPTS[1:4]):
        wanted, found = (run(model, prompts, 4, lambda *_: [7] * len(prompts)) for model in (whole, split))  # noqa: B023
        if quantization == "none":
            assert torch.equal(found.logits, wanted.logits)
        else:  # on one device all layers may be one native call, which rounds less between ops
            assert (found.logits - wanted.logits).norm() / wanted.logits.norm() < 0.02


def test_a_prefix_is_split_with_the_layers() -> None:
    network = load_random(CONFIG).network
    prefix = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    whole, split = (ChatGLMForServing(network, slots=1, prefix=prefix, stages=count) for count in (1, 2))
    assert torch.equal(alone(split, PROMPTS[0], 3), alone(whole, PROMPTS[0], 3))


def test_hidden_states_move_to_the_next_device() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    shapes = expected_shapes(CONFIG)
    network = build_network(
        CONFIG,
        lambda name: torch.zeros(shapes[name]),
        lambda name: torch.zeros(shapes[name]),
        dtype=torch.float32,
        devices=[cpu, meta],
    )
    assert [block.device for block in network.blocks] == [cpu, meta, meta]
    model = ChatGLMForServing(network, slots=2, stages=2)
    assert model.devices == (cpu, meta)
    ids, positions, mask = inputs(PROMPTS[0])
    # Mixing meta and CPU tensors would fail.
    whole = network.hidden(ids, positions, model._attend(lambda cache: cache.prefill((1,), list(mask))))
    step = network.hidden(ids[:, :1], positions[:, :1], model._attend(lambda cache: cache.decode((1,), (5,))))
    assert (whole.device, whole.shape, step.device, step.shape) == (meta, (1, 5, 64), meta, (1, 1, 64))


@pytest.mark.parametrize(
    "device", ["auto", "cuda", "cuda:1", "mps", "cpu", "cpu,cpu", "cuda:0,cuda:1", "cuda:0, cuda:3"]
)
def test_the_device_setting_accepts_one_or_several_devices(device: str) -> None:
    assert EngineSection(device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda,cuda:1", "cuda:0,cpu", "cuda:0;cuda:1", "auto,cpu", "cuda:0,"])
def test_the_device_setting_rejects_other_values(device: str) -> None:
    with pytest.raises(ValidationError, match="device"):
        EngineSection(device=device)


def test_more_devices_than_layers_are_rejected() -> None:
    assert find_devices("cpu, cpu", layers=2) == [torch.device("cpu")] * 2
    with pytest.raises(EngineUnavailable, match='"cpu,cpu,cpu,cpu" has 4 devices, but the model only 3 layers'):
        load_random(CONFIG, device="cpu,cpu,cpu,cpu")


def test_auto_prefers_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda:0")


def test_all_names_of_a_gpu_are_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert {str(find_device(name)) for name in ("auto", "cuda", "cuda:0")} == {"cuda:0"}
    assert find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "found"), [("cuda:99", "finds no such device"), ("gpu", "is not a device"), ("meta", "finds no")]
)
def test_a_missing_device_is_named(name: str, found: str) -> None:
    with pytest.raises(EngineUnavailable, match=found):
        find_device(name)

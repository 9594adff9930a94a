"""The memory estimate equals real allocations, and names settings that fit."""

import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bot.config.schema import EngineSection
from bot.engine import memory_available, preflight
from bot.engine.chatglm import loading, memory
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import find_dtype, load, load_random
from bot.engine.chatglm.memory import LoadParameters, Need, needs
from bot.engine.chatglm.weights import Quantization
from bot.engine.serving.base import Batch
from bot.errors import EngineUnavailable

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30

PUBLISHED = ChatGLMConfig(
    vocab_size=130528,
    hidden_size=4096,
    inner_hidden_size=16384,
    num_layers=28,
    num_attention_heads=32,
    mask_token_id=130000,
    gmask_token_id=130001,
    bos_token_id=130004,
    eos_token_id=130005,
)


def small(hidden: int = 128, layers: int = 2, inner: int = 256, vocab: int = 320, context: int = 64) -> ChatGLMConfig:
    return replace(
        PUBLISHED,
        vocab_size=vocab,
        hidden_size=hidden,
        inner_hidden_size=inner,
        num_layers=layers,
        num_attention_heads=2,
        max_sequence_length=context,
        mask_token_id=vocab - 4,
        gmask_token_id=vocab - 3,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
    )


def setup_for(quantization: Quantization, device: torch.device = CUDA, slots: int = 1) -> LoadParameters:
    return LoadParameters(PUBLISHED, quantization, find_dtype("auto", device, quantization), (device,), slots)


# Weights and cache


def tensors_in(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor reachable from a model."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    match thing:
        case Tensor():
            yield thing
        case dict():
            for each in thing.values():
                yield from tensors_in(each, seen)
        case list() | tuple():
            for each in thing:
                yield from tensors_in(each, seen)
        case _ if is_dataclass(thing):
            for field in fields(thing):
                yield from tensors_in(getattr(thing, field.name), seen)
        case _ if isinstance(thing, nn.Module) or type(thing).__module__.startswith("bot."):
            yield from tensors_in(vars(thing), seen)


def bytes_in(*things: object) -> int:
    storages: dict[int, int] = {}
    for tensor in tensors_in(list(things), set()):
        if tensor.is_mkldnn:  # has no storage
            storages[id(tensor)] = tensor.numel() * tensor.itemsize
        else:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@settings(max_examples=25, deadline=None)
@given(
    quantization=st.sampled_from(get_args(Quantization)),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    hidden=st.sampled_from([64, 128, 160, 256]),
    layers=st.integers(1, 3),
    inner=st.sampled_from([96, 256, 512]),
    vocab=st.sampled_from([320, 336, 500]),
    slots=st.integers(1, 5),
    context=st.integers(16, 128),
)
def test_estimated_weights_and_cache_equal_those_of_a_loaded_model(
    quantization: Quantization, dtype: Any, hidden: int, layers: int, inner: int, vocab: int, slots: int, context: int
) -> None:
    config = small(hidden, layers, inner, vocab, context)
    model = load_random(config, quantization=quantization, dtype=dtype, device="cpu", slots=slots)
    found = needs(LoadParameters(config, quantization, model.dtype, (CPU,), slots))[CPU]
    assert found.weights == pytest.approx(bytes_in(model.network), rel=0.01)
    assert found.cache == bytes_in([(cache.keys, cache.values) for cache in model._caches])
    computing = bytes_in(model) - bytes_in(model.network) - found.cache  # buffers kept between decode steps
    assert 0 <= computing < memory._RESERVE / 8


@pytest.mark.parametrize("kind", ["int4", "int4-qe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_checkpoints_are_estimated_with_their_stored_quantisation(kind: str, dtype: Any) -> None:
    model = load(GOLDEN / kind, dtype=dtype, slots=2, device="cpu")
    found = needs(LoadParameters(model.network.config, "none", model.dtype, (CPU,), 2))[CPU]
    assert found.weights == pytest.approx(bytes_in(model.network), rel=0.01)


def test_a_prefix_uses_memory_in_every_slot() -> None:
    folder = GOLDEN / "ptuning" / "no_projection"
    model = load(GOLDEN, dtype="float32", slots=3, device="cpu", ptuning=folder)
    config = model.network.config
    tokens = model._caches[0].keys.shape[3] - config.max_sequence_length
    assert tokens > 0
    assert needs(LoadParameters(config, "none", torch.float32, (CPU,), 3, {"": tokens}))[CPU].cache == bytes_in(
        [(cache.keys, cache.values) for cache in model._caches]
    )


def test_memory_is_split_between_the_devices() -> None:
    config, other = small(layers=3), torch.device("cuda:1")
    whole = needs(LoadParameters(config, "int4", torch.float16, (CUDA,), 2))[CUDA]
    split = needs(LoadParameters(config, "int4", torch.float16, (CUDA, other), 2))
    assert split[CUDA].weights + split[other].weights == whole.weights
    assert split[other].cache == 2 * split[CUDA].cache
    assert split[CUDA].cache + split[other].cache == whole.cache
    assert needs(LoadParameters(config, "int4", torch.float16, (CUDA, CUDA), 2)) == {CUDA: whole}


# Workspace


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Measures the peak of bytes allocated inside, without those of `model`."""

    def __init__(self, model: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.now = self.most = 0
        self._tensors: Counter[int] = Counter()  # of each storage
        self._known = {each.untyped_storage().data_ptr() for each in tensors_in(model, set()) if not each.is_mkldnn}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result, set()):
            storage = tensor.untyped_storage()
            place, size = storage.data_ptr(), storage.nbytes()
            if place in self._known:
                continue
            self.now += 0 if self._tensors[place] else size
            self._tensors[place] += 1
            weakref.finalize(tensor, self._gone, place, size)
        self.most = max(self.most, self.now)
        return result

    def _gone(self, place: int, size: int) -> None:
        self._tensors[place] -= 1
        self.now -= 0 if self._tensors[place] else size


@pytest.mark.parametrize(("quantization", "dtype"), [("none", "float32"), ("int8", "bfloat16"), ("int4", "bfloat16")])
def test_a_step_stays_within_the_estimated_workspace(quantization: Quantization, dtype: Any) -> None:
    config = small(hidden=256, inner=1024, vocab=2048, context=640)
    slots = 4
    model = load_random(config, quantization=quantization, dtype=dtype, device="cpu", slots=slots)
    counted = needs(LoadParameters(config, quantization, model.dtype, (CPU,), slots))[CPU].workspace - memory._RESERVE
    prompt = (*range(5, 5 + 637), config.gmask_token_id, config.bos_token_id)
    with Living(model) as prefill:
        model.forward(Batch((0,), (prompt,), (0,)))
    assert counted / 2.5 < prefill.most <= counted
    rows = tuple(range(slots))
    for slot in rows:
        model.forward(Batch((slot,), (prompt[-20:],), (0,)))
    with Living(model) as decode:
        model.forward(Batch(rows, ((7,),) * slots, (20,) * slots))
    assert 0 < decode.most <= counted


# The published size


def test_int4_with_one_slot_fits_a_6_gb_gpu() -> None:
    need = needs(setup_for("int4"))[CUDA]
    assert need.total <= 5.0e9
    assert 3.5e9 < need.weights < 3.6e9, "the table of the words in int8"
    assert need.cache == 2 * 28 * 4096 * 2048 * 2


@given(
    quantization=st.sampled_from(get_args(Quantization)),
    slots=st.integers(1, 64),
    there=st.integers(0, 80 * GIB),
    device=st.sampled_from([CPU, CUDA]),
)
@settings(max_examples=40, deadline=None)
def test_the_advised_settings_fit_and_are_the_largest_that_do(
    quantization: Quantization, slots: int, there: int, device: torch.device
) -> None:
    setup = setup_for(quantization, device, slots)
    batch = memory.largest_batch(setup, {device: there})
    assert batch == slots or needs(replace(setup, slots=batch + 1))[device].total > there
    assert batch == 0 or needs(replace(setup, slots=batch))[device].total <= there


def refusal(there: float, quantization: Quantization = "none", slots: int = 8) -> str:
    with pytest.raises(EngineUnavailable) as refused:
        memory.check(
            setup_for(quantization, CUDA, slots),
            "chatglm-6b",
            lambda _: int(there * GIB),
            lambda kind: setup_for(kind, CUDA, slots),
        )
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_model_that_does_not_fit_is_rejected_with_settings_that_do() -> None:
    assert refusal(5.6) == (
        "chatglm-6b as float16 needs 18.9 GiB (weights 11.5, cache 7.0 for 8 sequences, workspace 0.4), but cuda has "
        'only 5.6 GiB free: engine.quantization = "int4" with max_batch_size = 2 fits'
    )


@pytest.mark.parametrize(
    ("there", "quantization", "slots", "advice"),
    [
        (16, "none", 8, 'engine.max_batch_size = 4, or engine.quantization = "int8" fits'),
        (8, "int4", 8, "engine.max_batch_size = 4 fits"),
        (8, "none", 1, 'engine.quantization = "int8" fits'),
        (3.9, "int4", 8, "engine.max_batch_size = 1 and context_length = 768 fit"),
        (1, "int8", 1, "this model needs at least 4.6 GiB; free memory, or name another device"),
    ],
)
def test_the_advice_is_close_to_the_requested_settings(
    there: float, quantization: Quantization, slots: int, advice: str
) -> None:
    assert refusal(there, quantization, slots).partition(" free: ")[2] == advice


def test_the_estimate_is_one_log_line() -> None:
    line = memory.check(setup_for("int4"), "chatglm-6b", lambda _: 8 * GIB, setup_for)
    assert line == (
        "chatglm-6b as int4: cuda needs 4.6 GiB (weights 3.3, cache 0.9 for 1 sequence, workspace 0.4), 8.0 GiB free"
    )
    assert memory.check(setup_for("int4"), "x", lambda _: None, setup_for).endswith("free memory unknown")


def test_the_total_adds_weights_cache_and_workspace() -> None:
    assert Need(1, 2, 3).total == 6


# In the program


def sees(there: dict[str, int]) -> Any:
    return lambda device, as_if_alone=False: there["alone" if as_if_alone else "now"]


def test_a_model_that_does_not_fit_is_rejected_before_reading_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_bytes", sees({"now": 1000}))
    with pytest.raises(
        EngineUnavailable, match=r"^my-model as float32 needs 0\.0 GiB .* but cpu has only 0\.0 GiB free: "
    ):
        load(GOLDEN, device="cpu", name="my-model", progress=lambda done, total: pytest.fail("it reads"))


def test_the_estimate_is_logged_before_loading(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=loading.__name__):
        load(GOLDEN, device="cpu", slots=1)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("golden as float32: cpu needs 0.0 GiB (weights 0.0, cache 0.0 for 1 sequence")


def test_a_shorter_context_is_used_and_needs_less_memory() -> None:
    assert load(GOLDEN, device="cpu", slots=1, context=50).context_length == 50
    assert load(GOLDEN, device="cpu", slots=1, context=10**6).context_length == 128
    whole = needs(setup_for("int4"))[CUDA]
    shorter = replace(setup_for("int4"), config=replace(PUBLISHED, max_sequence_length=1024))
    assert needs(shorter)[CUDA].cache * 2 == whole.cache


def test_the_preflight_counts_the_current_models_memory_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    section = EngineSection(model=str(GOLDEN), device="cpu", max_batch_size=2)
    monkeypatch.setattr(loading, "available_bytes", sees({"now": 0, "alone": GIB}))
    preflight(section)
    monkeypatch.setattr(loading, "available_bytes", sees({"now": GIB, "alone": 0}))
    with pytest.raises(EngineUnavailable, match="GiB free: this model needs at least"):
        preflight(section)


def test_the_preflight_leaves_the_memory_that_other_models_need(monkeypatch: pytest.MonkeyPatch) -> None:
    section = EngineSection(model=str(GOLDEN), device="cpu", max_batch_size=2)
    need = preflight(section)["cpu"]
    monkeypatch.setattr(loading, "available_bytes", sees({"now": 0, "alone": 2 * need}))
    assert preflight(section, {"cpu": need}) == {"cpu": need}
    with pytest.raises(EngineUnavailable, match="GiB free: "):
        preflight(section, {"cpu": need + 1})


def test_the_preflight_counts_a_prefix_without_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadParameters] = []
    monkeypatch.setattr(memory, "check", lambda setup, *_: seen.append(setup))
    preflight(EngineSection(model=str(GOLDEN), device="cpu", ptuning=str(GOLDEN / "ptuning" / "no_projection")))
    preflight(EngineSection(model=str(GOLDEN), device="cpu"))
    assert [max(setup.prefixes.values()) > 0 for setup in seen] == [True, False]


# Available memory


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A fake machine with 8 GiB available; tests write its cgroups and process status."""
    monkeypatch.setattr(memory_available, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory_available, "_OURS", tmp_path / "ours")
    monkeypatch.setattr(memory_available, "_STATUS", tmp_path / "status")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_a_cgroup_limit_the_machines_memory_is_available(machine: Path) -> None:
    assert memory_available.available_bytes(CPU) == 8 * GIB
    (machine / "ours").write_text("0::/\n")
    group(machine / "cgroup", memory__max="max", memory__current=5, memory__stat="inactive_file 1")
    assert memory_available.available_bytes(CPU) == 8 * GIB
    assert memory_available.available_bytes(torch.device("meta")) is None


def test_a_cgroups_page_cache_counts_as_available(machine: Path) -> None:
    (machine / "ours").write_text("0::/\n")
    group(machine / "cgroup", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=f"anon 7\ninactive_file {GIB}")
    assert memory_available.available_bytes(CPU) == 2 * GIB
    group(machine / "cgroup", memory__stat=f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}")
    assert memory_available.available_bytes(CPU) == 2.5 * GIB


def test_the_tightest_ancestor_cgroup_counts(machine: Path) -> None:
    (machine / "ours").write_text("0::/system.slice/bot.service\n")
    group(machine / "cgroup" / "system.slice", memory__max=3 * GIB, memory__current=GIB, memory__stat="anon 1")
    own = machine / "cgroup" / "system.slice" / "bot.service"
    group(own, memory__max=6 * GIB, memory__current=GIB, memory__stat="anon 1")
    assert memory_available.available_bytes(CPU) == 2 * GIB


def test_cgroup_v1_with_a_host_path_is_supported(machine: Path) -> None:
    (machine / "ours").write_text("5:cpu:/x\n4:memory:/docker/0123\n0::/\n")
    group(
        machine / "cgroup" / "memory",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=2 * GIB,
        memory__stat="total_inactive_file 0",
    )
    assert memory_available.available_bytes(CPU) == 0


def test_as_if_alone_adds_the_current_models_memory(machine: Path) -> None:
    (machine / "status").write_text(f"Name:\tpython\nRssAnon:\t{3 * GIB // 1024} kB\n")
    assert memory_available.available_bytes(CPU, as_if_alone=True) == 8 * GIB + 3 * GIB - memory_available.PROGRAM_BYTES
    (machine / "status").write_text("RssAnon:\t1024 kB\n")
    assert memory_available.available_bytes(CPU, as_if_alone=True) == 8 * GIB
    (machine / "status").unlink()
    assert (memory_available.available_bytes(CPU, as_if_alone=True) or 0) >= 8 * GIB


def test_torchs_reserved_gpu_memory_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 60)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 40)
    assert memory_available.available_bytes(CUDA) == 25
    assert memory_available.available_bytes(CUDA, as_if_alone=True) == 65

"""Decode steps on static buffers, captured once per batch size."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.decoding import padding
from bot.engine.chatglm.loading import load_random
from bot.engine.serving.base import Batch
from bot.engine.serving.cuda_graphs import CudaGraphs, GraphRunner, StepFunction, padded_size
from bot.engine.serving.h2d import to_device_async
from tests.engine.test_model import CONFIG

SLOTS = 6
CPU = torch.device("cpu")


def no_capture(step: StepFunction) -> StepFunction:
    """Run the step eagerly each time."""
    return step


class FakeCapture:
    """Captures like a CUDA graph: every replay writes to the same output memory."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: StepFunction) -> StepFunction:
        self.count += 1
        result = step()

        def replay() -> Tensor:
            return result.copy_(step())

        return replay


@pytest.fixture(scope="module")
def eager_model() -> ChatGLMForServing:
    return load_random(CONFIG, slots=SLOTS, dtype="float32")


def prompt_of(length: int) -> tuple[int, ...]:
    return (*range(5, 5 + length), CONFIG.gmask_token_id, CONFIG.bos_token_id)


@given(data=st.data())
@settings(max_examples=25)
def test_replayed_steps_equal_eager_steps_for_any_sequence_of_batches(
    eager_model: ChatGLMForServing, data: st.DataObject
) -> None:
    capture = FakeCapture()
    replayed = ChatGLMForServing(eager_model.network, slots=SLOTS, capture=capture)
    held: dict[int, int] = {}  # tokens in each slot
    results: list[tuple[Tensor, Tensor]] = []
    for _ in range(data.draw(st.integers(2, 8))):
        free = [slot for slot in range(SLOTS) if slot not in held]
        if free and (not held or data.draw(st.booleans())):
            slot, prompt = data.draw(st.sampled_from(free)), prompt_of(data.draw(st.integers(1, 20)))
            batch, held[slot] = Batch((slot,), (prompt,), (0,)), len(prompt)
        else:
            slots = data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, max_size=SLOTS, unique=True))
            tokens = tuple((data.draw(st.integers(0, 80)),) for _ in slots)
            batch = Batch(tuple(slots), tokens, tuple(held[slot] for slot in slots))
            for slot in slots:
                held[slot] += 1
            for slot in data.draw(st.lists(st.sampled_from(slots), unique=True)):
                del held[slot]  # this answer is complete
        results.append((replayed.forward(batch), eager_model.forward(batch)))
    # Compared at the end: later steps must not change earlier results.
    for found, wanted in results:
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert capture.count <= len({padded_size(rows, SLOTS) for rows in range(1, SLOTS + 1)})


@pytest.mark.parametrize("two_channels", [True, False])
def test_padding_rows_do_not_change_any_slot(two_channels: bool) -> None:
    config = replace(CONFIG, position_encoding_2d=two_channels)
    model = ChatGLMForServing(load_random(config).network, slots=SLOTS, capture=no_capture)
    model.forward(Batch((0, 5), (prompt_of(3), prompt_of(4)), (0, 0)))
    before = model._caches[0].keys.clone()
    assert model._graphs is not None
    model._graphs([padding(config.channels)] * 3)
    assert torch.equal(model._caches[0].keys, before)
    model.forward(Batch((5,), ((7,),), (6,)))
    changed = (model._caches[0].keys != before).any(-1).any(2).any(0)
    assert changed.nonzero().tolist() == [[5, 6]]


def test_a_prefix_shifts_the_index_of_every_token() -> None:
    network = load_random(CONFIG).network
    prefix = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    one, other = (ChatGLMForServing(network, slots=2, prefix=prefix, capture=record) for record in (None, no_capture))
    for model in (one, other):
        model.forward(Batch((1,), (prompt_of(3),), (0,)))
    step = Batch((1,), ((7,),), (5,))
    torch.testing.assert_close(other.forward(step), one.forward(step), atol=1e-4, rtol=1e-4)


def test_a_prefill_clears_a_slot_decoded_by_replay() -> None:
    model = ChatGLMForServing(load_random(CONFIG).network, slots=1, capture=no_capture)
    model.forward(Batch((0,), (prompt_of(3),), (0,)))
    model.forward(Batch((0,), ((7,),), (5,)))
    assert model._caches[0].keys[:, 0, :, 5].any()
    model.forward(Batch((0,), (prompt_of(1),), (0,)))
    assert not model._caches[0].keys[:, 0, :, 3:].any()


def test_layers_on_several_devices_are_not_captured() -> None:
    network = load_random(CONFIG).network
    model = ChatGLMForServing(network, slots=1, stages=2, capture=no_capture)
    assert model._graphs is None


def test_each_batch_size_is_captured_once() -> None:
    capture, seen = FakeCapture(), []

    def step(numbers: Tensor) -> Tensor:
        seen.append(tuple(numbers.shape))
        return numbers[0] * 10

    runner = GraphRunner(step, padding=(-1, 0), most=6, device=CPU, capture=capture)
    results = [runner([(n, 0) for n in range(rows)]).tolist() for rows in (1, 3, 4, 2, 5, 6, 3)]
    assert results == [[10 * n for n in range(rows)] for rows in (1, 3, 4, 2, 5, 6, 3)]
    assert capture.count == 4
    assert set(seen) == {(2, 1), (2, 2), (2, 4), (2, 6)}


def test_a_capture_that_ran_out_of_memory_is_retried() -> None:
    failures = [RuntimeError("CUDA error: out of memory")]

    def capture(step: StepFunction) -> StepFunction:
        if failures:
            raise failures.pop()
        return step

    runner = GraphRunner(lambda numbers: numbers[0], padding=(0,), most=4, device=CPU, capture=capture)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner([(5,)])
    assert runner([(5,)]).tolist() == [5]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA graphs can be captured on this machine")
def test_a_failed_capture_falls_back_to_eager_steps_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        step = CudaGraphs()(lambda: torch.ones(2))
    assert step().tolist() == [1, 1]
    assert "CUDA graph capture failed" in caplog.text


def test_out_of_memory_during_a_capture_is_raised_to_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(step: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CudaGraphs, "_warm_up", staticmethod(full))
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs()(lambda: torch.ones(2))


def test_a_graph_is_warmed_up_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            done.append("replay")

    class Entered:
        def __init__(self, graph: Graph, pool: object, capture_error_mode: str) -> None:
            done.append(f"capture in {pool}")

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Entered)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(CudaGraphs, "_warm_up", staticmethod(lambda step: done.append("warm up")))
    graphs = CudaGraphs()
    for _ in range(2):
        step = graphs(lambda: torch.ones(1))
        assert step().tolist() == [1]
    assert done == ["warm up", "capture in pool", "replay"] * 2


def test_to_device_async_returns_a_tensor_on_the_device() -> None:
    assert to_device_async(CPU, [(1, 2), (3, 4)]).tolist() == [[1, 2], [3, 4]]

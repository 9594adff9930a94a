"""Decoding steps on buffers that stay where they are, recorded once for each batch size."""

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
from bot.engine.serving.cuda_graphs import Call, CudaGraphs, Replay, padded_size, unrecorded
from bot.engine.serving.h2d import to_device_async
from tests.engine.test_model import CONFIG

SLOTS = 6
CPU = torch.device("cpu")


class Recording:
    """Records like a CUDA graph: whatever is replayed ends in the memory of the first time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Call) -> Call:
        self.count += 1
        result = call()

        def replay() -> Tensor:
            return result.copy_(call())

        return replay


@pytest.fixture(scope="module")
def plainly() -> ChatGLMForServing:
    return load_random(CONFIG, slots=SLOTS, dtype="float32")


def prompt_of(length: int) -> tuple[int, ...]:
    return (*range(5, 5 + length), CONFIG.gmask_token_id, CONFIG.bos_token_id)


@given(data=st.data())
@settings(max_examples=25)
def test_replayed_steps_are_plain_ones_whatever_comes_and_goes(plainly: ChatGLMForServing, data: st.DataObject) -> None:
    recording = Recording()
    replayed = ChatGLMForServing(plainly.network, slots=SLOTS, record=recording)
    held: dict[int, int] = {}  # how many tokens are in each slot
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
        results.append((replayed.forward(batch), plainly.forward(batch)))
    # At the end: what a step returned must not change with those after it.
    for found, wanted in results:
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert recording.count <= len({padded_size(rows, SLOTS) for rows in range(1, SLOTS + 1)})


@pytest.mark.parametrize("two_channels", [True, False])
def test_rows_of_padding_leave_every_slot_as_it_is(two_channels: bool) -> None:
    config = replace(CONFIG, position_encoding_2d=two_channels)
    model = ChatGLMForServing(load_random(config).network, slots=SLOTS, record=unrecorded)
    model.forward(Batch((0, 5), (prompt_of(3), prompt_of(4)), (0, 0)))
    before = model._caches[0].keys.clone()
    assert model._replay is not None
    model._replay([padding(config.channels)] * 3)
    assert torch.equal(model._caches[0].keys, before)
    model.forward(Batch((5,), ((7,),), (6,)))
    changed = (model._caches[0].keys != before).any(-1).any(2).any(0)
    assert changed.nonzero().tolist() == [[5, 6]]


def test_a_prefix_moves_the_place_of_every_token() -> None:
    network = load_random(CONFIG).network
    prefix = torch.randn(3, 2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    one, other = (ChatGLMForServing(network, slots=2, prefix=prefix, record=record) for record in (None, unrecorded))
    for model in (one, other):
        model.forward(Batch((1,), (prompt_of(3),), (0,)))
    step = Batch((1,), ((7,),), (5,))
    torch.testing.assert_close(other.forward(step), one.forward(step), atol=1e-4, rtol=1e-4)


def test_a_slot_that_was_decoded_by_replay_is_emptied_by_the_next_prompt() -> None:
    model = ChatGLMForServing(load_random(CONFIG).network, slots=1, record=unrecorded)
    model.forward(Batch((0,), (prompt_of(3),), (0,)))
    model.forward(Batch((0,), ((7,),), (5,)))
    assert model._caches[0].keys[:, 0, :, 5].any()
    model.forward(Batch((0,), (prompt_of(1),), (0,)))
    assert not model._caches[0].keys[:, 0, :, 3:].any()


def test_layers_on_several_devices_are_not_recorded() -> None:
    network = load_random(CONFIG).network
    model = ChatGLMForServing(network, slots=1, stretches=2, record=unrecorded)
    assert model._replay is None


def test_each_size_of_batch_is_recorded_once() -> None:
    recording, seen = Recording(), []

    def step(numbers: Tensor) -> Tensor:
        seen.append(tuple(numbers.shape))
        return numbers[0] * 10

    replay = Replay(step, padding=(-1, 0), most=6, device=CPU, record=recording)
    results = [replay([(n, 0) for n in range(rows)]).tolist() for rows in (1, 3, 4, 2, 5, 6, 3)]
    assert results == [[10 * n for n in range(rows)] for rows in (1, 3, 4, 2, 5, 6, 3)]
    assert recording.count == 4
    assert set(seen) == {(2, 1), (2, 2), (2, 4), (2, 6)}


def test_a_recording_that_failed_for_want_of_memory_is_tried_again() -> None:
    failures = [RuntimeError("CUDA error: out of memory")]

    def record(call: Call) -> Call:
        if failures:
            raise failures.pop()
        return call

    replay = Replay(lambda numbers: numbers[0], padding=(0,), most=4, device=CPU, record=record)
    with pytest.raises(RuntimeError, match="out of memory"):
        replay([(5,)])
    assert replay([(5,)]).tolist() == [5]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA graphs can be recorded here")
def test_what_cannot_be_recorded_is_run_each_time_and_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        call = CudaGraphs()(lambda: torch.ones(2))
    assert call().tolist() == [1, 1]
    assert "cannot be recorded as a CUDA graph" in caplog.text


def test_memory_that_ran_out_while_recording_is_the_runners_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CudaGraphs, "_warm_up", staticmethod(full))
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs()(lambda: torch.ones(2))


def test_a_graph_is_warmed_up_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            done.append("replay")

    class Entered:
        def __init__(self, graph: Graph, pool: object, capture_error_mode: str) -> None:
            done.append(f"record in {pool}")

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Entered)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(CudaGraphs, "_warm_up", staticmethod(lambda call: done.append("warm up")))
    graphs = CudaGraphs()
    for _ in range(2):
        call = graphs(lambda: torch.ones(1))
        assert call().tolist() == [1]
    assert done == ["warm up", "record in pool", "replay"] * 2


def test_numbers_reach_their_device() -> None:
    assert to_device_async(CPU, [(1, 2), (3, 4)]).tolist() == [[1, 2], [3, 4]]

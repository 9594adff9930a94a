"""The serving loop with failures: errors reach the affected requests only."""

import asyncio
import threading
import weakref

import pytest
import torch
from torch import Tensor

from bot.domain import Delta, EngineEvent
from bot.engine.base import Progress
from bot.engine.serving import runner
from bot.engine.serving.base import Batch
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.errors import EngineFailed, EngineUnavailable
from tests.harness.scripted_model import (
    FOREVER,
    START,
    Gate,
    ScriptedModel,
    Time,
    ask,
    events,
    loaded,
    serving,
    text_of,
)


async def test_a_failing_prompt_does_not_fail_the_others_of_its_batch() -> None:
    def poison(batch: Batch) -> None:
        if any(ord("!") in tokens for tokens in batch.tokens):
            raise ValueError("cannot read this")

    model, gate = ScriptedModel(), Gate()
    model.before = gate
    async with serving(model) as engine:
        first = asyncio.create_task(events(engine, ask("first")))
        await gate.arrival()
        others = [asyncio.create_task(events(engine, ask(text))) for text in ("good", "bad!", "fine")]
        await asyncio.sleep(0)
        model.before = poison
        gate.open()
        results = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(results[2], EngineFailed)
    assert "ValueError" in str(results[2])
    assert [text_of(seen) for seen in results if isinstance(seen, list)] == ["first", "good", "fine"]
    assert any(batch.is_prefill and len(batch) == 3 for batch in model.steps)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("shapes"), "RuntimeError"),
    ],
)
async def test_a_failing_decode_ends_its_rows_and_the_next_request_is_answered(error: Exception, words: str) -> None:
    model = ScriptedModel()

    def fail(batch: Batch) -> None:
        if not batch.is_prefill:
            raise error

    model.before = fail
    async with serving(model) as engine:
        with pytest.raises(EngineFailed, match=words):
            await events(engine, ask("hello"))
        assert engine.load.running == 0
        model.before = lambda batch: None
        assert text_of(await events(engine, ask("hello"))) == "hello"


async def test_a_step_succeeds_on_retry_after_memory_was_released() -> None:
    def fail(batch: Batch) -> None:
        if len(model.steps) % 2:
            raise torch.OutOfMemoryError

    model = ScriptedModel()
    model.before = fail
    async with serving(model) as engine:
        assert text_of(await events(engine, ask("hello"))) == "hello"


async def whole_batch(model: ScriptedModel, texts: list[str]) -> list[list[EngineEvent] | BaseException]:
    """Send all requests at once, so that they share all steps."""
    before, gate = model.before, Gate()
    model.before = gate
    async with serving(model) as engine:
        asking = [asyncio.create_task(events(engine, ask(text))) for text in ("x", *texts)]
        await gate.arrival()
        model.before = before
        gate.open()
        return (await asyncio.gather(*asking, return_exceptions=True))[1:]


async def test_only_the_row_that_runs_out_of_memory_fails() -> None:
    def fail(batch: Batch) -> None:
        if any(slot == 2 and start >= 8 for slot, start in zip(batch.slots, batch.starts, strict=True)):
            raise torch.OutOfMemoryError

    model = ScriptedModel()
    model.before = fail
    first, victim, last = await whole_batch(model, ["hello", "world", "there"])
    assert isinstance(victim, EngineFailed)
    assert [text_of(seen) for seen in (first, last) if isinstance(seen, list)] == ["hello", "there"]


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_step_too_large_for_memory_is_split(is_written: bool) -> None:
    def fail(batch: Batch) -> None:
        if len(batch) > 1 and not batch.is_prefill:
            raise torch.OutOfMemoryError

    def fail_late(batch: Batch, logits: Tensor) -> Tensor:
        fail(batch)
        return logits

    model = ScriptedModel()
    if is_written:  # keys and values are already cached when memory runs out
        model.after = fail_late
    else:
        model.before = fail
    texts = ["hello", "world", "there"]
    answers = await whole_batch(model, texts)
    assert [text_of(seen) for seen in answers if isinstance(seen, list)] == texts
    failed = [batch for batch in model.steps if len(batch) > 1 and not batch.is_prefill]
    assert len(failed) < len("hello"), "it is not tried together again at each step"


async def test_the_row_limit_grows_again_after_successful_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STEPS_BEFORE_GROWTH", 4)
    is_short = True

    def fail(batch: Batch) -> None:
        nonlocal is_short
        if is_short and len(batch) > 1 and not batch.is_prefill:
            is_short = False
            raise MemoryError

    model = ScriptedModel()
    model.before = fail
    answers = await whole_batch(model, ["a long answer", "another one", "and the last"])
    assert all(isinstance(seen, list) for seen in answers)
    sizes = [len(batch) for batch in model.steps if not batch.is_prefill]
    assert sizes.count(4) + sizes.count(3) > 2, "together before the shortage, and again after it"


async def test_memory_is_released_after_the_failed_steps_tensors_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Big:
        """A substitute for the step's tensors."""

    remains: list[Big | None] = []
    step: list[weakref.ref[Big]] = []
    model = ScriptedModel()

    def fail(batch: Batch) -> None:
        big = Big()
        step.append(weakref.ref(big))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(runner.log, "disabled", True)  # a logged traceback would keep the tensors alive
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: remains.append(step[0]()))
    model.before = fail
    async with serving(model) as engine:
        with pytest.raises(EngineFailed, match="not enough memory"):
            await events(engine, ask("hello"))
        assert remains == [None, None], "after each of both tries"


class Device:
    """A GPU with memory reserved by torch, and one without; once broken it raises at each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = False
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: device * 1024)
        monkeypatch.setattr(torch.cuda, "synchronize", self.call)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.call)

    def call(self, device: int = 1) -> None:
        assert device == 1, "a call alone would take memory there"
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


async def test_a_broken_device_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model, device = ScriptedModel(), Device(monkeypatch)

    def fail(batch: Batch) -> None:
        device.is_broken = True
        device.call()

    async with serving(model) as engine:
        assert text_of(await events(engine, ask("hello"))) == "hello"
        model.before = fail
        with pytest.raises(EngineFailed, match="died of RuntimeError: CUDA error"):
            await events(engine, ask("hello"))
        assert "CUDA error" in (engine.load.down or "")


async def test_a_failing_step_on_a_working_device_ends_only_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel()
    Device(monkeypatch)

    def fail(batch: Batch) -> None:
        raise RuntimeError("CUDA error: invalid configuration argument")

    model.before = fail
    async with serving(model) as engine:
        with pytest.raises(EngineFailed, match="a model step failed"):
            await events(engine, ask("hello"))
        model.before = lambda batch: None
        assert text_of(await events(engine, ask("hello"))) == "hello"
        assert engine.load.down is None
        assert engine.load.device_bytes == 1024


async def test_nan_logits_end_only_their_row() -> None:
    model, gate = ScriptedModel(), Gate()

    def break_second_row(batch: Batch, logits: Tensor) -> Tensor:
        if len(batch) == 2 and not batch.is_prefill:
            logits[1] = float("nan")
        return logits

    model.before, model.after = gate, break_second_row
    async with serving(model) as engine:
        tasks = [asyncio.create_task(events(engine, ask(text))) for text in ("hello", "world")]
        await gate.arrival()
        gate.open()
        good, bad = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(good, list)
    assert text_of(good) == "hello"
    assert isinstance(bad, EngineFailed)
    assert "NaN" in str(bad)


async def test_text_is_delivered_before_the_failure() -> None:
    model = ScriptedModel()

    def break_later(batch: Batch, logits: Tensor) -> Tensor:
        return logits * float("inf") if batch.starts[0] > 9 else logits

    model.after = break_later
    async with serving(model) as engine:
        stream = engine.generate(ask("hello, world"))
        assert await anext(stream) == Delta("h")
        with pytest.raises(EngineFailed):
            await anext(stream)


async def test_an_id_that_cannot_be_decoded_ends_only_its_row() -> None:
    def say_start(batch: Batch, logits: Tensor) -> Tensor:
        if len(batch) == 2 and not batch.is_prefill:
            logits[1, START] = 99.0
        return logits

    model, gate = ScriptedModel(), Gate()
    model.before, model.after = gate, say_start
    async with serving(model) as engine:
        tasks = [asyncio.create_task(events(engine, ask(text))) for text in ("hello", "world")]
        await gate.arrival()
        gate.open()
        good, bad = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(good, list)
    assert text_of(good) == "hello"
    assert isinstance(bad, EngineFailed)
    assert "ValueError" in str(bad)


async def test_a_dead_worker_fails_all_requests_and_is_reported() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    time = Time()

    async with serving(model, now=time) as engine:
        tasks = [asyncio.create_task(events(engine, ask("hello"))) for _ in range(3)]
        await gate.arrival()
        del time.seconds  # the next call of the clock raises
        gate.open()
        for failure in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(failure, EngineFailed)
        with pytest.raises(EngineFailed, match="died of AttributeError"):
            await events(engine, ask("hello"))
        assert "died of AttributeError" in (engine.load.down or "")


async def test_closing_the_engine_fails_running_and_waiting_requests() -> None:
    model, gate = ScriptedModel(slots=1), Gate()
    model.before = gate
    async with serving(model) as engine:
        tasks = [asyncio.create_task(events(engine, ask(FOREVER))) for _ in range(3)]
        await gate.arrival()
        gate.open()
    for failure in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(failure, EngineFailed)
        assert str(failure) == "the engine was closed"
    with pytest.raises(EngineFailed, match="closed"):
        await events(engine, ask("hello"))


async def test_closing_waits_for_the_running_step() -> None:
    model, gate = ScriptedModel(), Gate()
    model.before = gate
    engine = ServingEngine(lambda progress: loaded(model), max_waiting=1)
    await engine.__aenter__()
    task = asyncio.create_task(events(engine, ask("hello")))
    await gate.arrival()
    going = asyncio.create_task(engine.__aexit__(None, None, None))
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], EngineFailed)
    assert not going.done()
    gate.open()
    await going
    assert not any(thread.name == "engine" for thread in threading.enumerate())


async def test_using_an_engine_before_entering_raises() -> None:
    engine = ServingEngine(lambda progress: loaded(ScriptedModel()), max_waiting=1)
    with pytest.raises(EngineFailed, match="not running"):
        await events(engine, ask("hello"))
    with pytest.raises(EngineFailed, match="not running"):
        engine.count_tokens(())
    with pytest.raises(EngineFailed, match="not running"):
        _ = engine.info


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (EngineUnavailable("no such device"), EngineUnavailable, "no such device"),
        (OSError("disk on fire"), EngineFailed, "OSError: disk on fire"),
        (MemoryError(), EngineUnavailable, "does not fit into memory"),
    ],
)
async def test_a_loading_error_is_raised_on_entering(error: Exception, kind: type[Exception], words: str) -> None:
    def load(progress: Progress) -> LoadedModel:
        raise error

    engine = ServingEngine(load, max_waiting=1)
    with pytest.raises(kind, match=words):
        await engine.__aenter__()
    assert not any(thread.name == "engine" for thread in threading.enumerate())


@pytest.mark.parametrize("reports_again", [True, False])
async def test_loading_reports_progress_and_stops_when_cancelled(reports_again: bool) -> None:
    reports: list[tuple[int, int]] = []
    reached, go_on = asyncio.Event(), threading.Event()
    here = asyncio.get_running_loop()

    def load(progress: Progress) -> LoadedModel:
        progress(1, 2)
        here.call_soon_threadsafe(reached.set)
        assert go_on.wait(600)
        if reports_again:
            progress(2, 2)
            raise AssertionError("loading went on")
        return loaded(ScriptedModel())

    engine = ServingEngine(load, max_waiting=1, progress=lambda done, total: reports.append((done, total)))
    entering = asyncio.create_task(engine.__aenter__())
    await reached.wait()
    entering.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert reports == [(1, 2)]
    assert not any(thread.name == "engine" for thread in threading.enumerate())

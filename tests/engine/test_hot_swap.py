"""HotSwapEngine: requests waiting during a change are requeued, and failed changes are rolled back."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from structlog.testing import capture_logs

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, Finished, Queued
from bot.engine import open_engine
from bot.engine.base import Engine, Progress
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.hot_swap import CLOSING_SECONDS, STALLED_SECONDS, STUCK_SECONDS, SUPERSEDED, HotSwapEngine
from bot.engine.model_folder import DEMO
from bot.errors import CheckpointError, EngineBusy, EngineFailed, EngineUnavailable
from bot.util.aio import join_task
from bot.util.clock import MonotonicClock
from tests.harness.fakes import ManualClock, ScriptedEngine

OLD = EngineSection(model="old", max_batch_size=2, max_waiting=3)
NEW = EngineSection(model="new", max_batch_size=2, max_waiting=3)
NEWER = EngineSection(model="newer", max_batch_size=2, max_waiting=3)
TRIAL = ChatMessage("user", "hello")


class Model(ScriptedEngine):
    """Answers with its name; records in the factory's history when it enters and exits."""

    def __init__(self, factory: ModelFactory, section: EngineSection) -> None:
        super().__init__(
            default=[section.model], max_batch_size=section.max_batch_size, max_waiting=section.max_waiting
        )
        self.factory = factory
        self.name = section.model

    async def __aenter__(self) -> Self:
        self.factory.history.append(f"enter {self.name}")
        await self.factory.on_enter.get(self.name, nothing)()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.factory.history.append(f"exit {self.name}")
        await self.factory.on_exit.get(self.name, nothing)()

    def texts(self) -> list[str]:
        """Return the questions, without the trial request."""
        return [request.messages[-1].content for request in self.requests if request.messages != (TRIAL,)]


async def nothing() -> None:
    """Do nothing."""


class ModelFactory:
    """Opens models; `on_enter` and `on_exit` run then, `check_errors` fail the check, `prepare` gets each model."""

    def __init__(self) -> None:
        self.history: list[str] = []
        self.models: list[Model] = []
        self.on_enter: dict[str, Callable[[], Awaitable[None]]] = {}
        self.on_exit: dict[str, Callable[[], Awaitable[None]]] = {}
        self.check_errors: dict[str, str] = {}
        self.progress: Progress | None = None
        self.prepare: Callable[[Model], None] = lambda model: None
        self.clock = ManualClock()
        self.engine = HotSwapEngine(OLD, self.open, self.clock, check=self.check)

    def open(self, section: EngineSection, progress: Progress) -> Model:
        assert threading.current_thread() is not threading.main_thread(), "imports take seconds"
        self.progress = progress
        model = Model(self, section)
        self.prepare(model)
        self.models.append(model)
        return model

    def check(self, section: EngineSection) -> None:
        if section.model in self.check_errors:
            raise CheckpointError(self.check_errors[section.model])

    async def recorded(self, entry: str) -> None:
        """Wait until the history contains the entry."""
        while entry not in self.history:  # noqa: ASYNC110 - the entry is added after a thread that sets no event
            await asyncio.sleep(0)

    async def changing(self) -> None:
        """Wait until requests are held for another model."""
        while not self.engine.load.is_changing:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)


@pytest.fixture
async def factory() -> AsyncIterator[ModelFactory]:
    factory = ModelFactory()
    async with factory.engine:
        yield factory
    # A model that fails on entering cleans up itself: such tests add its exit to the history.
    assert sum("enter" in line for line in factory.history) == sum("exit" in line for line in factory.history)


def ask(text: str) -> ChatRequest:
    return ChatRequest((ChatMessage("user", text),))


class Client:
    """Sends a request and collects its events."""

    def __init__(self, factory: ModelFactory, text: str = "?") -> None:
        self.seen: list[EngineEvent] = []
        self._updated = asyncio.Event()
        self.task = asyncio.create_task(self._run(factory.engine.generate(ask(text))))
        self.task.add_done_callback(lambda _: self._updated.set())

    async def _run(self, events: AsyncGenerator[EngineEvent, None]) -> None:
        async with aclosing(events):
            async for event in events:
                self.seen.append(event)
                self._updated.set()

    async def received(self, count: int = 1) -> EngineEvent:
        """Wait for `count` events; return the last."""
        while len(self.seen) < count:
            assert not self.task.done(), self.task.result()
            self._updated.clear()
            await self._updated.wait()
        return self.seen[-1]

    async def text(self) -> str:
        """Wait for the end; return the answer."""
        await self.task
        assert [type(event) for event in self.seen].count(Finished) == 1
        return "".join(event.text for event in self.seen if isinstance(event, Delta))


async def test_the_old_model_is_freed_before_the_new_one_loads(factory: ModelFactory) -> None:
    assert await factory.engine.change(NEW) is None
    assert factory.history == ["enter old", "exit old", "enter new"]
    assert not factory.engine.load.is_changing
    assert await Client(factory).text() == "new"


async def test_an_answer_with_output_finishes_on_the_old_model(factory: ModelFactory) -> None:
    go_on = asyncio.Event()
    factory.models[0].add(["Hel", go_on, "lo"])
    reader = Client(factory)
    await reader.received()
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.changing()
    late = Client(factory)
    await late.received()
    assert (factory.engine.load.running, factory.engine.load.waiting) == (1, 1)
    assert factory.history == ["enter old"]
    go_on.set()
    assert await reader.text() == "Hello"
    assert await change is None
    assert await late.text() == "new"


async def test_requests_without_output_are_requeued_for_the_new_model_in_order(factory: ModelFactory) -> None:
    assert await factory.engine.change(OLD.model_copy(update={"max_waiting": 9})) is None
    factory.models[0].go_on.clear()
    early = [Client(factory, str(number)) for number in range(4)]
    await early[3].received()
    assert early[3].seen == [Queued(2)]
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await loaded.wait()

    factory.on_enter["new"] = load
    change = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    late = Client(factory, "4")
    await late.received()
    assert early[0].seen[-1] == Queued(1, None, is_model_changing=True)
    assert late.seen == [Queued(5, None, is_model_changing=True)]
    assert (factory.engine.load.running, factory.engine.load.waiting) == (0, 5)
    loaded.set()
    assert await change is None
    assert [await client.text() for client in [*early, late]] == ["new"] * 5
    assert factory.models[1].texts() == ["0", "1", "2", "3", "4"]


async def test_the_estimated_wait_is_the_last_loading_time(factory: ModelFactory) -> None:
    async def load() -> None:
        await factory.clock.sleep(40)

    factory.on_enter["new"] = factory.on_enter["newer"] = load
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.recorded("enter new")
    await factory.clock.advance(40)
    await change
    change = asyncio.create_task(factory.engine.change(NEWER))
    await factory.recorded("enter newer")
    await factory.clock.advance(10)
    client = Client(factory)
    assert await client.received() == Queued(1, 30.0, is_model_changing=True)
    await factory.clock.advance(12)
    assert client.seen[-1] == Queued(1, 20.0, is_model_changing=True)
    await factory.clock.advance(18)
    assert await change is None
    assert await client.text() == "newer"


async def test_the_queue_limit_holds_during_a_change(factory: ModelFactory) -> None:
    loading = asyncio.Event()
    factory.on_enter["new"] = forever(loading)
    factory.history.append("exit new")
    change = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    clients = [Client(factory) for _ in range(3)]
    for client in clients:
        await client.received()
    with pytest.raises(EngineBusy) as caught:
        await anext(factory.engine.generate(ask("one too many")))
    assert (caught.value.waiting, caught.value.limit, caught.value.wait) == (3, 3, 1.0)
    for client in clients:
        client.task.cancel()
    await asyncio.wait([client.task for client in clients])
    assert factory.engine.load.waiting == 0
    await stopped(change)


async def test_an_accepted_request_is_not_rejected_by_a_smaller_model(factory: ModelFactory) -> None:
    factory.models[0].go_on.clear()
    clients = [Client(factory) for _ in range(5)]
    await clients[4].received()
    small = NEW.model_copy(update={"max_batch_size": 1, "max_waiting": 1})
    assert await factory.engine.change(small) is None
    assert [await client.text() for client in clients] == ["new"] * 5


async def test_a_request_cancelled_during_a_change_is_not_requeued(factory: ModelFactory) -> None:
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await loaded.wait()

    factory.on_enter["new"] = load
    factory.models[0].go_on.clear()
    leaves, stays = Client(factory, "leaves"), Client(factory, "stays")
    await factory.models[0].asked(2)
    change = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    await stopped(leaves.task)
    loaded.set()
    assert await change is None
    assert await stays.text() == "new"
    assert factory.models[1].texts() == ["stays"]


async def test_a_request_cancelled_while_it_is_requeued_ends(factory: ModelFactory) -> None:
    factory.models[0].go_on.clear()
    client = Client(factory)
    await factory.models[0].asked(1)
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.changing()
    await stopped(client.task)
    assert await change is None
    assert factory.models[1].texts() == []


async def test_a_slow_reader_is_requeued_on_its_next_read(factory: ModelFactory) -> None:
    factory.models[0].go_on.clear()
    running = [Client(factory) for _ in range(2)]
    await factory.models[0].asked(2)
    slow = factory.engine.generate(ask("slow"))
    assert await anext(slow) == Queued(1)
    assert await factory.engine.change(NEW) is None
    async with aclosing(slow):
        assert [event async for event in slow][-2] == Delta("new")
    assert [await client.text() for client in running] == ["new"] * 2


async def test_a_failed_check_does_not_affect_running_requests(factory: ModelFactory) -> None:
    factory.check_errors["new"] = "there is no such folder"
    assert await factory.engine.change(NEW) == "there is no such folder"
    assert factory.history == ["enter old"]
    assert await Client(factory).text() == "old"


@pytest.mark.parametrize("fault", ["load", "first token"])
async def test_the_old_model_is_restored_if_the_new_one_fails(factory: ModelFactory, fault: str) -> None:
    async def fail() -> None:
        raise CheckpointError("it is broken")

    def prepare(model: Model) -> None:
        if model.name == "new":
            model.add([EngineFailed("it is broken")])

    if fault == "load":
        factory.on_enter["new"] = fail
        factory.history.append("exit new")
    else:
        factory.prepare = prepare
    factory.models[0].go_on.clear()
    client = Client(factory)
    await factory.models[0].asked(1)
    assert await factory.engine.change(NEW) == "it is broken"
    assert await client.text() == "old"
    assert [line for line in factory.history if "enter" in line] == ["enter old", "enter new", "enter old"]


async def test_a_stalled_load_is_given_up(factory: ModelFactory) -> None:
    async def load() -> None:
        assert factory.progress is not None
        await factory.clock.sleep(STALLED_SECONDS - 10)
        factory.progress(1, 2)
        await factory.clock.sleep(STALLED_SECONDS + 10)

    factory.on_enter["new"] = load
    factory.history.append("exit new")
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.recorded("enter new")
    await factory.clock.advance(STALLED_SECONDS + 10)
    assert not change.done()
    await factory.clock.advance(STALLED_SECONDS)
    assert await change == "loading stalled: no progress for 180 s"
    assert await Client(factory).text() == "old"


async def test_if_both_models_fail_the_change_raises_and_requests_stay_queued(factory: ModelFactory) -> None:
    async def fail() -> None:
        raise EngineUnavailable("no memory")

    factory.models[0].go_on.clear()
    client = Client(factory)
    await factory.models[0].asked(1)
    factory.on_enter = {"new": fail, "old": fail}
    factory.history += ["exit new", "exit old"]
    with pytest.raises(EngineUnavailable, match=r"(?s)no memory.*Restoring the previous model failed too: no memory"):
        await factory.engine.change(NEW)
    assert not client.task.done()
    assert client.seen
    assert all(isinstance(event, Queued) for event in client.seen)
    assert factory.engine.load.is_changing
    await stopped(client.task)


async def test_a_newer_change_supersedes_the_running_one(factory: ModelFactory) -> None:
    loading = asyncio.Event()
    factory.on_enter["new"] = forever(loading)
    factory.history.append("exit new")
    first = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    client = Client(factory)
    assert await factory.engine.change(NEWER) is None
    assert await first == SUPERSEDED
    assert await client.text() == "newer"


async def test_a_superseding_change_that_fails_restores_the_old_model(factory: ModelFactory) -> None:
    loading = asyncio.Event()
    factory.on_enter["new"] = forever(loading)
    factory.history.append("exit new")
    factory.check_errors["newer"] = "there is no such folder"
    first = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    assert await factory.engine.change(NEWER) == "there is no such folder"
    assert await first == SUPERSEDED
    assert await Client(factory).text() == "old"


async def test_a_change_back_to_the_old_section_loads_it_again(factory: ModelFactory) -> None:
    loading = asyncio.Event()
    factory.on_enter["new"] = forever(loading)
    factory.history.append("exit new")
    first = asyncio.create_task(factory.engine.change(NEW))
    await loading.wait()
    assert await factory.engine.change(OLD) is None
    assert await first == SUPERSEDED
    assert await Client(factory).text() == "old"


async def test_a_change_cancelled_before_the_old_model_closed_has_no_effect(factory: ModelFactory) -> None:
    factory.models[0].add(["Hel", asyncio.Event()])
    reader = Client(factory)
    await reader.received()
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.changing()
    late = Client(factory)
    await late.received()
    await stopped(change)
    assert await late.text() == "old"
    await stopped(reader.task)


class ExitGate:
    """Blocks a model's exit until it is opened."""

    def __init__(self) -> None:
        self.reached, self._opened = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def test_a_shutdown_during_a_change_waits_for_the_closing_model(factory: ModelFactory) -> None:
    gate = factory.on_exit["old"] = ExitGate()
    change = asyncio.create_task(factory.engine.change(NEW))
    await gate.reached.wait()
    await stopped(change)
    end = asyncio.create_task(factory.engine.__aexit__(None, None, None))
    await factory.clock.settle()
    assert not end.done()
    gate.open()
    await end


async def test_the_new_model_loads_only_after_the_old_models_last_step(factory: ModelFactory) -> None:
    gate = factory.on_exit["old"] = ExitGate()
    change = asyncio.create_task(factory.engine.change(NEW))
    await gate.reached.wait()
    await factory.clock.advance(STUCK_SECONDS - 1)
    assert factory.history == ["enter old", "exit old"]
    gate.open()
    assert await change is None
    assert await Client(factory).text() == "new"


async def test_a_newer_change_also_waits_for_the_closing_model(factory: ModelFactory) -> None:
    gate = factory.on_exit["old"] = ExitGate()
    first = asyncio.create_task(factory.engine.change(NEW))
    await gate.reached.wait()
    second = asyncio.create_task(factory.engine.change(NEWER))
    assert await first == SUPERSEDED
    await factory.clock.advance(1)
    assert factory.history == ["enter old", "exit old"]
    gate.open()
    assert await second is None


async def test_a_stuck_step_fails_the_change_instead_of_loading_a_second_model(factory: ModelFactory) -> None:
    gate = factory.on_exit["old"] = ExitGate()
    change = asyncio.create_task(factory.engine.change(NEW))
    await gate.reached.wait()
    await factory.clock.advance(2 * STUCK_SECONDS)
    with pytest.raises(EngineUnavailable, match=r"a step of the old model has not ended for 60 s, so its memory"):
        await change
    assert factory.history == ["enter old", "exit old"]
    gate.open()


async def test_the_old_model_is_restored_only_after_the_failed_one_is_freed(factory: ModelFactory) -> None:
    gate = factory.on_exit["new"] = ExitGate()
    factory.prepare = lambda model: model.add([EngineFailed("it is broken")]) if model.name == "new" else None
    change = asyncio.create_task(factory.engine.change(NEW))
    await gate.reached.wait()
    await factory.clock.advance(STUCK_SECONDS - 1)
    assert factory.history == ["enter old", "exit old", "enter new", "exit new"]
    gate.open()
    assert await change == "it is broken"
    assert await Client(factory).text() == "old"


async def test_a_load_that_ignores_its_cancellation_is_given_up(factory: ModelFactory) -> None:
    never = asyncio.Event()

    async def hang() -> None:
        try:
            await never.wait()
        finally:
            await never.wait()

    factory.on_enter["new"] = hang
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.recorded("enter new")
    await factory.clock.advance(STALLED_SECONDS + STUCK_SECONDS + 1)
    with pytest.raises(EngineUnavailable, match=r"(?s)loading stalled.*reading a model has not ended for 60 s"):
        await change
    assert factory.history == ["enter old", "exit old", "enter new"], "no second model beside it"
    never.set()
    factory.history.append("exit new")


def uninterruptible_read(factory: ModelFactory) -> asyncio.Event:
    """Let the new model be read until the event is set, whether it is still wanted or not."""
    read = asyncio.Event()

    async def ignore_cancellation() -> None:
        try:
            await read.wait()
        finally:
            await read.wait()
            factory.history.append("exit new")

    factory.on_enter["new"] = ignore_cancellation
    return read


async def test_a_long_read_that_goes_on_is_waited_for(factory: ModelFactory) -> None:
    read = uninterruptible_read(factory)
    first = asyncio.create_task(factory.engine.change(NEW))
    await factory.recorded("enter new")
    second = asyncio.create_task(factory.engine.change(NEW.model_copy(update={"model": "second"})))
    assert factory.progress is not None
    for done in range(10):
        await factory.clock.advance(STUCK_SECONDS / 2)
        factory.progress(done, 10)
    assert not second.done(), "it has waited for five minutes"
    read.set()
    assert (await first, await second) == (SUPERSEDED, None)
    assert await Client(factory).text() == "second"


async def test_of_three_changes_during_an_uninterruptible_read_only_the_last_loads(factory: ModelFactory) -> None:
    read = uninterruptible_read(factory)
    changes = [asyncio.create_task(factory.engine.change(NEW))]
    await factory.recorded("enter new")
    for model in ("second", "third", "fourth"):
        changes.append(asyncio.create_task(factory.engine.change(NEW.model_copy(update={"model": model}))))
        await factory.clock.advance(1)
    assert factory.history == ["enter old", "exit old", "enter new"]
    read.set()
    assert await asyncio.gather(*changes) == [SUPERSEDED, SUPERSEDED, SUPERSEDED, None]
    assert factory.history[3:] == ["exit new", "enter fourth"]
    assert await Client(factory).text() == "fourth"


class Memory:
    """Random models: their loads and exits take time, some fail, some ignore a cancellation for a while."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.held = self.most = 0
        self.engine = HotSwapEngine(OLD, self.open, self.clock, check=self.check)

    def check(self, section: EngineSection) -> None:
        if section.model.startswith("refused"):
            raise CheckpointError("refused")

    def open(self, section: EngineSection, progress: Progress) -> Engine:
        memory = self

        class Heavy(ScriptedEngine):
            async def __aenter__(self) -> Self:
                memory.held += 1
                memory.most = max(memory.most, memory.held)
                try:
                    await memory.sleep(memory.random.choice((0, 1, 10)))
                    if section.model.startswith("broken"):
                        raise CheckpointError("broken")
                except BaseException:
                    try:
                        await memory.sleep(memory.random.choice((0, 5, 30)))  # a read that cannot be interrupted
                    finally:
                        memory.held -= 1
                    raise
                return self

            async def __aexit__(self, *error: object) -> None:
                await memory.sleep(memory.random.choice((0, 1, 20)))
                memory.held -= 1

        return Heavy(default=[section.model])

    async def sleep(self, seconds: float) -> None:
        """Wait on the clock; a cancellation does not shorten it."""
        await join_task(asyncio.create_task(self.clock.sleep(seconds)))


@pytest.mark.parametrize("seed", range(40))
async def test_the_last_wish_wins_and_no_two_models_are_in_memory(seed: int) -> None:
    memory = Memory(seed)
    entering = asyncio.create_task(memory.engine.__aenter__())
    while not entering.done():
        await memory.clock.advance(1)
    changes: list[asyncio.Task[str | None]] = []
    for number in range(memory.random.randint(3, 9)):
        kind = memory.random.choice(("good", "good", "broken", "refused"))
        section = NEW.model_copy(update={"model": f"{kind} {number}"})
        changes.append(asyncio.create_task(memory.engine.change(section)))
        await memory.clock.advance(memory.random.choice((0, 0, 1, 7, 40)))
        if memory.random.random() < 0.2:
            memory.random.choice(changes).cancel()
            await memory.clock.advance(memory.random.choice((0, 1)))
    changes.append(asyncio.create_task(memory.engine.change(NEWER)))
    while not all(change.done() for change in changes):
        await memory.clock.advance(1)
    assert changes[-1].result() is None
    for change in changes[:-1]:
        assert change.cancelled() or change.result() in (None, SUPERSEDED, "refused", "broken")
    assert memory.held == memory.most == 1
    async with aclosing(memory.engine.generate(ask("?"))) as events:
        assert Delta("newer") in [event async for event in events]
    closing = asyncio.create_task(memory.engine.__aexit__(None, None, None))
    await memory.clock.advance(30)
    assert closing.done()
    assert memory.held == 0


async def test_a_backend_that_fails_unexpectedly_leaves_the_old_model(factory: ModelFactory) -> None:
    def fail(section: EngineSection) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    factory.engine._check = fail
    with capture_logs() as logs:
        assert await factory.engine.change(NEW) == "an unexpected error, see the log: RecursionError"
    assert [line["log_level"] for line in logs] == ["error"]
    assert await Client(factory).text() == "old"


async def test_a_stuck_step_does_not_block_the_shutdown(factory: ModelFactory) -> None:
    gate = factory.on_exit["old"] = ExitGate()
    end = asyncio.create_task(factory.engine.__aexit__(None, None, None))
    await gate.reached.wait()
    with capture_logs() as logs:
        await factory.clock.advance(CLOSING_SECONDS)
    assert end.done()
    assert [line["event"] for line in logs] == ["exiting before the model has stopped"]
    gate.open()


async def test_answers_of_a_stuck_model_are_abandoned(factory: ModelFactory) -> None:
    go_on = asyncio.Event()
    factory.models[0].add(["Hel", go_on])
    reader = Client(factory)
    await reader.received()
    change = asyncio.create_task(factory.engine.change(NEW))
    await factory.changing()
    factory.models[0].since_progress = STUCK_SECONDS
    await factory.clock.advance(1)
    assert await change is None
    assert await Client(factory).text() == "new"
    await stopped(reader.task)


async def test_max_waiting_changes_without_reloading(factory: ModelFactory) -> None:
    assert await factory.engine.change(OLD.model_copy(update={"max_waiting": 1})) is None
    assert factory.history == ["enter old"]
    factory.models[0].go_on.clear()
    clients = [Client(factory) for _ in range(3)]
    await clients[2].received()
    with pytest.raises(EngineBusy, match=r"max_waiting is 1"):
        await anext(factory.engine.generate(ask("one too many")))
    factory.models[0].go_on.set()
    assert [await client.text() for client in clients] == ["old"] * 3


async def test_at_most_one_model_is_in_memory(tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:-1000] if file.suffix == ".safetensors" else content)
    living: list[int] = []

    def open_alone(section: EngineSection, progress: Progress) -> Engine:
        gc.unfreeze()  # frozen objects are not listed
        living.append(sum(type(each) is ChatGLMForServing for each in gc.get_objects()))
        return open_engine(section, progress)

    section = EngineSection(model="demo")
    async with HotSwapEngine(section, open_alone, MonotonicClock()) as engine:
        assert [event async for event in engine.generate(ask("hello"))]
        assert await engine.change(section.model_copy(update={"quantization": "int8"})) is None
        failure = await engine.change(section.model_copy(update={"model": str(tmp_path)}))
        assert "model.safetensors" in (failure or "")
        assert engine.info.quantization == "int8"
    assert living == [0, 0, 0, 0]


async def test_counters_continue_across_models() -> None:
    """Prometheus treats a decreasing counter as a restart."""
    section = EngineSection(model="demo")
    async with HotSwapEngine(section, open_engine, MonotonicClock()) as engine:
        assert [event async for event in engine.generate(ask("hello"))]
        before = engine.load
        assert await engine.change(section.model_copy(update={"quantization": "int8"})) is None
        after = engine.load
        assert engine.info.quantization == "int8"
    assert after.tokens > before.tokens > 0
    assert after.steps > before.steps > 0
    assert after.started == before.started + 1  # the trial


async def test_using_it_before_entering_raises() -> None:
    with pytest.raises(EngineFailed, match="async with"):
        await anext(ModelFactory().engine.generate(ask("?")))


def forever(begun: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def load() -> None:
        begun.set()
        await asyncio.Event().wait()

    return load


async def stopped(task: asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[str | None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

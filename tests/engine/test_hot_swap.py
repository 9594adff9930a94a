"""The switch of models: who waits is answered by the next one, and what fails is taken back."""

from __future__ import annotations

import asyncio
import gc
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
from bot.engine.backends.chatglm import DEMO
from bot.engine.base import Engine, Progress
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.hot_swap import CLOSING_SECONDS, STALLED_SECONDS, STUCK_SECONDS, SUPERSEDED, HotSwapEngine
from bot.errors import CheckpointError, EngineBusy, EngineFailed, EngineUnavailable
from bot.util.clock import MonotonicClock
from tests.harness.fakes import ManualClock, ScriptedEngine

OLD = EngineSection(model="old", max_batch_size=2, max_waiting=3)
NEW = EngineSection(model="new", max_batch_size=2, max_waiting=3)
NEWER = EngineSection(model="newer", max_batch_size=2, max_waiting=3)
TRIAL = ChatMessage("user", "hello")


class Model(ScriptedEngine):
    """Says its name; notes in the garage's diary when it comes and goes."""

    def __init__(self, garage: Garage, section: EngineSection) -> None:
        super().__init__(
            default=[section.model], max_batch_size=section.max_batch_size, max_waiting=section.max_waiting
        )
        self.garage = garage
        self.name = section.model

    async def __aenter__(self) -> Self:
        self.garage.diary.append(f"{self.name} comes")
        await self.garage.comings.get(self.name, nothing)()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.garage.diary.append(f"{self.name} goes")
        await self.garage.goings.get(self.name, nothing)()

    def texts(self) -> list[str]:
        """What was asked, without the trial of a first token."""
        return [request.messages[-1].content for request in self.requests if request.messages != (TRIAL,)]


async def nothing() -> None:
    """Nothing happens."""


class Garage:
    """Where models come from: `prepare` is told of each, `comings` and `goings` happen then, `faults` the check finds."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.models: list[Model] = []
        self.comings: dict[str, Callable[[], Awaitable[None]]] = {}
        self.goings: dict[str, Callable[[], Awaitable[None]]] = {}
        self.faults: dict[str, str] = {}
        self.progress: Progress | None = None
        self.prepare: Callable[[Model], None] = lambda model: None
        self.clock = ManualClock()
        self.switch = HotSwapEngine(OLD, self.open, self.clock, check=self.check)

    def open(self, section: EngineSection, progress: Progress) -> Model:
        assert threading.current_thread() is not threading.main_thread(), "imports take seconds"
        self.progress = progress
        model = Model(self, section)
        self.prepare(model)
        self.models.append(model)
        return model

    def check(self, section: EngineSection) -> None:
        if section.model in self.faults:
            raise CheckpointError(self.faults[section.model])

    async def written(self, entry: str) -> None:
        """Wait until this stands in the diary."""
        while entry not in self.diary:  # noqa: ASYNC110 - a thread comes before it, which sets no event
            await asyncio.sleep(0)

    async def changing(self) -> None:
        """Wait until who asks waits for another model."""
        while not self.switch.load.is_changing:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)


@pytest.fixture
async def garage() -> AsyncIterator[Garage]:
    garage = Garage()
    async with garage.switch:
        yield garage
    # One that fails on its way in goes by itself: a test of that writes so into the diary.
    assert sum("comes" in line for line in garage.diary) == sum("goes" in line for line in garage.diary)


def ask(text: str) -> ChatRequest:
    return ChatRequest((ChatMessage("user", text),))


class Asker:
    """Asks, and keeps what it is told."""

    def __init__(self, garage: Garage, text: str = "?") -> None:
        self.seen: list[EngineEvent] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run(garage.switch.generate(ask(text))))
        self.task.add_done_callback(lambda _: self._news.set())

    async def _run(self, events: AsyncGenerator[EngineEvent, None]) -> None:
        async with aclosing(events):
            async for event in events:
                self.seen.append(event)
                self._news.set()

    async def told(self, count: int = 1) -> EngineEvent:
        """Wait until it was told so much; the last of it."""
        while len(self.seen) < count:
            assert not self.task.done(), self.task.result()
            self._news.clear()
            await self._news.wait()
        return self.seen[-1]

    async def text(self) -> str:
        """Wait for the end; the answer."""
        await self.task
        assert [type(event) for event in self.seen].count(Finished) == 1
        return "".join(event.text for event in self.seen if isinstance(event, Delta))


async def test_the_old_model_is_freed_before_the_new_one_loads(garage: Garage) -> None:
    assert await garage.switch.change(NEW) is None
    assert garage.diary == ["old comes", "old goes", "new comes"]
    assert not garage.switch.load.is_changing
    assert await Asker(garage).text() == "new"


async def test_an_answer_with_output_finishes_on_the_old_model(garage: Garage) -> None:
    go_on = asyncio.Event()
    garage.models[0].add(["Hel", go_on, "lo"])
    reader = Asker(garage)
    await reader.told()
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.changing()
    late = Asker(garage)
    await late.told()
    assert (garage.switch.load.running, garage.switch.load.waiting) == (1, 1)
    assert garage.diary == ["old comes"]
    go_on.set()
    assert await reader.text() == "Hello"
    assert await change is None
    assert await late.text() == "new"


async def test_requests_without_output_are_requeued_for_the_new_model_in_order(garage: Garage) -> None:
    assert await garage.switch.change(OLD.model_copy(update={"max_waiting": 9})) is None
    garage.models[0].go_on.clear()
    early = [Asker(garage, str(number)) for number in range(4)]
    await early[3].told()
    assert early[3].seen == [Queued(2)]
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await loaded.wait()

    garage.comings["new"] = load
    change = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    late = Asker(garage, "4")
    await late.told()
    assert early[0].seen[-1] == Queued(1, 1.0, is_model_changing=True)
    assert late.seen == [Queued(5, 1.0, is_model_changing=True)]
    assert (garage.switch.load.running, garage.switch.load.waiting) == (0, 5)
    loaded.set()
    assert await change is None
    assert [await asker.text() for asker in [*early, late]] == ["new"] * 5
    assert garage.models[1].texts() == ["0", "1", "2", "3", "4"]


async def test_the_estimated_wait_is_the_last_loading_time(garage: Garage) -> None:
    async def load() -> None:
        await garage.clock.sleep(40)

    garage.comings["new"] = garage.comings["newer"] = load
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.written("new comes")
    await garage.clock.advance(40)
    await change
    change = asyncio.create_task(garage.switch.change(NEWER))
    await garage.written("newer comes")
    await garage.clock.advance(10)
    asker = Asker(garage)
    assert await asker.told() == Queued(1, 30.0, is_model_changing=True)
    await garage.clock.advance(30)
    assert await change is None
    assert await asker.text() == "newer"


async def test_the_queue_limit_holds_during_a_change(garage: Garage) -> None:
    loading = asyncio.Event()
    garage.comings["new"] = forever(loading)
    garage.diary.append("new goes")
    change = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    askers = [Asker(garage) for _ in range(3)]
    for asker in askers:
        await asker.told()
    with pytest.raises(EngineBusy) as caught:
        await anext(garage.switch.generate(ask("one too many")))
    assert (caught.value.waiting, caught.value.limit, caught.value.wait) == (3, 3, 1.0)
    for asker in askers:
        asker.task.cancel()
    await asyncio.wait([asker.task for asker in askers])
    assert garage.switch.load.waiting == 0
    await stopped(change)


async def test_an_accepted_request_is_not_rejected_by_a_smaller_model(garage: Garage) -> None:
    garage.models[0].go_on.clear()
    askers = [Asker(garage) for _ in range(5)]
    await askers[4].told()
    small = NEW.model_copy(update={"max_batch_size": 1, "max_waiting": 1})
    assert await garage.switch.change(small) is None
    assert [await asker.text() for asker in askers] == ["new"] * 5


async def test_a_request_cancelled_during_a_change_is_not_requeued(garage: Garage) -> None:
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        loading.set()
        await loaded.wait()

    garage.comings["new"] = load
    garage.models[0].go_on.clear()
    leaves, stays = Asker(garage, "leaves"), Asker(garage, "stays")
    await garage.models[0].asked(2)
    change = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    await stopped(leaves.task)
    loaded.set()
    assert await change is None
    assert await stays.text() == "new"
    assert garage.models[1].texts() == ["stays"]


async def test_a_request_cancelled_while_it_is_requeued_ends(garage: Garage) -> None:
    garage.models[0].go_on.clear()
    asker = Asker(garage)
    await garage.models[0].asked(1)
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.changing()
    await stopped(asker.task)
    assert await change is None
    assert garage.models[1].texts() == []


async def test_a_slow_reader_is_requeued_on_its_next_read(garage: Garage) -> None:
    garage.models[0].go_on.clear()
    running = [Asker(garage) for _ in range(2)]
    await garage.models[0].asked(2)
    slow = garage.switch.generate(ask("slow"))
    assert await anext(slow) == Queued(1)
    assert await garage.switch.change(NEW) is None
    async with aclosing(slow):
        assert [event async for event in slow][-2] == Delta("new")
    assert [await asker.text() for asker in running] == ["new"] * 2


async def test_a_failed_check_does_not_affect_running_requests(garage: Garage) -> None:
    garage.faults["new"] = "there is no such folder"
    assert await garage.switch.change(NEW) == "there is no such folder"
    assert garage.diary == ["old comes"]
    assert await Asker(garage).text() == "old"


@pytest.mark.parametrize("fault", ["load", "first token"])
async def test_the_old_model_is_restored_if_the_new_one_fails(garage: Garage, fault: str) -> None:
    async def fail() -> None:
        raise CheckpointError("it is broken")

    def prepare(model: Model) -> None:
        if model.name == "new":
            model.add([EngineFailed("it is broken")])

    if fault == "load":
        garage.comings["new"] = fail
        garage.diary.append("new goes")
    else:
        garage.prepare = prepare
    garage.models[0].go_on.clear()
    asker = Asker(garage)
    await garage.models[0].asked(1)
    assert await garage.switch.change(NEW) == "it is broken"
    assert await asker.text() == "old"
    assert [line for line in garage.diary if "comes" in line] == ["old comes", "new comes", "old comes"]


async def test_a_stalled_load_is_given_up(garage: Garage) -> None:
    async def load() -> None:
        assert garage.progress is not None
        await garage.clock.sleep(STALLED_SECONDS - 10)
        garage.progress(1, 2)
        await garage.clock.sleep(STALLED_SECONDS + 10)

    garage.comings["new"] = load
    garage.diary.append("new goes")
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.written("new comes")
    await garage.clock.advance(STALLED_SECONDS + 10)
    assert not change.done()
    await garage.clock.advance(STALLED_SECONDS)
    assert await change == "loading stalled: no progress for 180 s"
    assert await Asker(garage).text() == "old"


async def test_if_both_models_fail_the_change_raises_and_requests_stay_queued(garage: Garage) -> None:
    async def fail() -> None:
        raise EngineUnavailable("no memory")

    garage.models[0].go_on.clear()
    asker = Asker(garage)
    await garage.models[0].asked(1)
    garage.comings = {"new": fail, "old": fail}
    garage.diary += ["new goes", "old goes"]
    with pytest.raises(EngineUnavailable, match=r"(?s)no memory.*Restoring the previous model failed too: no memory"):
        await garage.switch.change(NEW)
    assert not asker.task.done()
    assert asker.seen
    assert all(isinstance(event, Queued) for event in asker.seen)
    assert garage.switch.load.is_changing
    await stopped(asker.task)


async def test_a_newer_change_supersedes_the_running_one(garage: Garage) -> None:
    loading = asyncio.Event()
    garage.comings["new"] = forever(loading)
    garage.diary.append("new goes")
    first = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    asker = Asker(garage)
    assert await garage.switch.change(NEWER) is None
    assert await first == SUPERSEDED
    assert await asker.text() == "newer"


async def test_a_superseding_change_that_fails_restores_the_old_model(garage: Garage) -> None:
    loading = asyncio.Event()
    garage.comings["new"] = forever(loading)
    garage.diary.append("new goes")
    garage.faults["newer"] = "there is no such folder"
    first = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    assert await garage.switch.change(NEWER) == "there is no such folder"
    assert await first == SUPERSEDED
    assert await Asker(garage).text() == "old"


async def test_a_change_back_to_the_old_section_loads_it_again(garage: Garage) -> None:
    loading = asyncio.Event()
    garage.comings["new"] = forever(loading)
    garage.diary.append("new goes")
    first = asyncio.create_task(garage.switch.change(NEW))
    await loading.wait()
    assert await garage.switch.change(OLD) is None
    assert await first == SUPERSEDED
    assert await Asker(garage).text() == "old"


async def test_a_change_cancelled_before_the_old_model_closed_has_no_effect(garage: Garage) -> None:
    garage.models[0].add(["Hel", asyncio.Event()])
    reader = Asker(garage)
    await reader.told()
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.changing()
    late = Asker(garage)
    await late.told()
    await stopped(change)
    assert await late.text() == "old"
    await stopped(reader.task)


class Door:
    """On its way out a model stands in it until it is opened."""

    def __init__(self) -> None:
        self.reached, self._opened = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def test_a_shutdown_during_a_change_waits_for_the_closing_model(garage: Garage) -> None:
    door = garage.goings["old"] = Door()
    change = asyncio.create_task(garage.switch.change(NEW))
    await door.reached.wait()
    await stopped(change)
    end = asyncio.create_task(garage.switch.__aexit__(None, None, None))
    await garage.clock.settle()
    assert not end.done()
    door.open()
    await end


async def test_the_new_model_loads_only_after_the_old_models_last_step(garage: Garage) -> None:
    door = garage.goings["old"] = Door()
    change = asyncio.create_task(garage.switch.change(NEW))
    await door.reached.wait()
    await garage.clock.advance(STUCK_SECONDS - 1)
    assert garage.diary == ["old comes", "old goes"]
    door.open()
    assert await change is None
    assert await Asker(garage).text() == "new"


async def test_a_newer_change_also_waits_for_the_closing_model(garage: Garage) -> None:
    door = garage.goings["old"] = Door()
    first = asyncio.create_task(garage.switch.change(NEW))
    await door.reached.wait()
    second = asyncio.create_task(garage.switch.change(NEWER))
    assert await first == SUPERSEDED
    await garage.clock.advance(1)
    assert garage.diary == ["old comes", "old goes"]
    door.open()
    assert await second is None


async def test_a_stuck_step_fails_the_change_instead_of_loading_a_second_model(garage: Garage) -> None:
    door = garage.goings["old"] = Door()
    change = asyncio.create_task(garage.switch.change(NEW))
    await door.reached.wait()
    await garage.clock.advance(2 * STUCK_SECONDS)
    with pytest.raises(EngineUnavailable, match=r"a step of the old model has not ended for 60 s, so its memory"):
        await change
    assert garage.diary == ["old comes", "old goes"]
    door.open()


async def test_the_old_model_is_restored_only_after_the_failed_one_is_freed(garage: Garage) -> None:
    door = garage.goings["new"] = Door()
    garage.prepare = lambda model: model.add([EngineFailed("it is broken")]) if model.name == "new" else None
    change = asyncio.create_task(garage.switch.change(NEW))
    await door.reached.wait()
    await garage.clock.advance(STUCK_SECONDS - 1)
    assert garage.diary == ["old comes", "old goes", "new comes", "new goes"]
    door.open()
    assert await change == "it is broken"
    assert await Asker(garage).text() == "old"


async def test_a_load_that_ignores_its_cancellation_is_given_up(garage: Garage) -> None:
    never = asyncio.Event()

    async def hang() -> None:
        try:
            await never.wait()
        finally:
            await never.wait()

    garage.comings["new"] = hang
    garage.diary.append("new goes")
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.written("new comes")
    await garage.clock.advance(STALLED_SECONDS + STUCK_SECONDS + 1)
    assert "loading stalled" in (await change or "")
    assert await Asker(garage).text() == "old"
    never.set()


async def test_a_stuck_step_does_not_block_the_shutdown(garage: Garage) -> None:
    door = garage.goings["old"] = Door()
    end = asyncio.create_task(garage.switch.__aexit__(None, None, None))
    await door.reached.wait()
    with capture_logs() as logs:
        await garage.clock.advance(CLOSING_SECONDS)
    assert end.done()
    assert [line["event"] for line in logs] == ["the model's step did not end in time; exiting without it"]
    door.open()


async def test_answers_of_a_stuck_model_are_abandoned(garage: Garage) -> None:
    go_on = asyncio.Event()
    garage.models[0].add(["Hel", go_on])
    reader = Asker(garage)
    await reader.told()
    change = asyncio.create_task(garage.switch.change(NEW))
    await garage.changing()
    garage.models[0].since_progress = STUCK_SECONDS
    await garage.clock.advance(1)
    assert await change is None
    assert await Asker(garage).text() == "new"
    await stopped(reader.task)


async def test_max_waiting_changes_without_reloading(garage: Garage) -> None:
    assert await garage.switch.change(OLD.model_copy(update={"max_waiting": 1})) is None
    assert garage.diary == ["old comes"]
    garage.models[0].go_on.clear()
    askers = [Asker(garage) for _ in range(3)]
    await askers[2].told()
    with pytest.raises(EngineBusy, match=r"max_waiting is 1"):
        await anext(garage.switch.generate(ask("one too many")))
    garage.models[0].go_on.set()
    assert [await asker.text() for asker in askers] == ["old"] * 3


async def test_at_most_one_model_is_in_memory(tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:-1000] if file.suffix == ".safetensors" else content)
    living: list[int] = []

    def open_alone(section: EngineSection, progress: Progress) -> Engine:
        living.append(sum(type(each) is ChatGLMForServing for each in gc.get_objects()))
        return open_engine(section, progress)

    section = EngineSection(model="demo")
    async with HotSwapEngine(section, open_alone, MonotonicClock()) as switch:
        assert [event async for event in switch.generate(ask("hello"))]
        assert await switch.change(section.model_copy(update={"quantization": "int8"})) is None
        failure = await switch.change(section.model_copy(update={"model": str(tmp_path)}))
        assert "model.safetensors" in (failure or "")
        assert switch.info.quantization == "int8"
    assert living == [0, 0, 0, 0]


async def test_counters_continue_across_models() -> None:
    """Prometheus takes a counter that falls for a program that began anew."""
    section = EngineSection(model="demo")
    async with HotSwapEngine(section, open_engine, MonotonicClock()) as switch:
        assert [event async for event in switch.generate(ask("hello"))]
        before = switch.load
        assert await switch.change(section.model_copy(update={"quantization": "int8"})) is None
        after = switch.load
        assert switch.info.quantization == "int8"
    assert after.tokens > before.tokens > 0
    assert after.steps > before.steps > 0
    assert after.started == before.started + 1  # the trial


async def test_using_it_before_entering_raises() -> None:
    with pytest.raises(EngineFailed, match="async with"):
        await anext(Garage().switch.generate(ask("?")))


def forever(begun: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def load() -> None:
        begun.set()
        await asyncio.Event().wait()

    return load


async def stopped(task: asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[str | None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

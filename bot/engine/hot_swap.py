"""An Engine whose model can be exchanged while people wait: the one in use leaves before the next is loaded."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

import structlog

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, EngineEvent, EngineInfo, EngineLoad, Finished, Queued, SamplingParams
from bot.engine.base import Engine, Progress, silent
from bot.errors import EngineBusy, EngineError, EngineFailed, EngineUnavailable
from bot.util.aio import race
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A model that reads nothing for so long, in seconds, does not load any more.  Quantising one
# matrix of a 6B model, or its first token on a slow processor, takes seconds.
STALLED_SECONDS = 180.0
# When no step has ended for so long, answers under way are not waited for any more; nor is
# a model that shall go, and then no other is loaded.
STUCK_SECONDS = 60.0
# When the program ends, a model that shall go is waited for so long: whoever stops it waits 8 s in all.
CLOSING_SECONDS = 5.0
_LOOK_SECONDS = 1.0

_TRIAL = ChatRequest((ChatMessage("user", "hello"),), SamplingParams(temperature=0, max_tokens=1))

SUPERSEDED = "a newer change took its place"

Opener = Callable[[EngineSection, Progress], Engine]
Check = Callable[[EngineSection], None]


def unchecked(section: EngineSection) -> None:
    """Find nothing wrong."""


class HotSwapEngine:
    """The engine that `section` describes, until `change` puts another in its place.

    A request of whose answer nobody has read a word yet waits for the new model, in its
    place; one that is being read is answered by the old model to its end.  There is never
    more than one model in memory.

    `open` and `check` are called in a thread; `check` tells, while the old model still
    answers, why a section cannot work, by raising EngineError.
    """

    # The engines inside let everybody wait: only here it is known who was accepted before a
    # change, and none of those may be refused after it.

    def __init__(
        self,
        section: EngineSection,
        open: Opener,
        clock: Clock,
        *,
        check: Check = unchecked,
        progress: Progress = silent,
    ) -> None:
        self._section = section
        self._open = open
        self._clock = clock
        self._check = check
        self._progress = progress
        self._engine: Engine | None = None  # the latest: after it was left it still knows its info and tokens
        self._is_entered = False
        self._leaving: asyncio.Task[object] | None = None  # an engine's way out, which frees its memory
        self._slots = 0
        self._former = EngineLoad(0, 0)  # what the engines before this one have counted
        self._guests: dict[_Guest, None] = {}  # in the order they came
        self._is_changing = False
        self._change_under_way: asyncio.Task[str | None] | None = None
        self._someone_left = asyncio.Event()
        self._last_progress = 0.0
        self._loading_since: float | None = None
        self._loading_took = 0.0

    @property
    def info(self) -> EngineInfo:
        return self._latest().info

    @property
    def load(self) -> EngineLoad:
        load, former = self._latest().load, self._former
        elsewhere = sum(not guest.is_inside for guest in self._guests)
        return replace(
            load,
            waiting=load.waiting + elsewhere,
            slots=self._slots,
            is_changing=self._is_changing,
            tokens=load.tokens + former.tokens,
            steps=load.steps + former.steps,
            started=load.started + former.started,
            waited=load.waited + former.waited,
        )

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return self._latest().count_tokens(messages)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        guest = self._admit()
        try:
            while True:
                while self._is_changing:
                    yield self._outlook(guest)
                    await guest.news()
                guest.enter()
                async with aclosing(self._latest().generate(request)) as events:
                    while (event := await guest.unless_called_back(events)) is not None:
                        yield event
                        if isinstance(event, Finished):
                            return
                guest.is_inside = False
        finally:
            del self._guests[guest]
            self._someone_left.set()

    async def change(self, section: EngineSection) -> str | None:
        """Let the engine that `section` describes answer from now on; return why it does not, or None.

        Then the one before it answers again.  A change that is asked for meanwhile takes
        the place of this one.  Cancelled, it leaves those who wait where they are, unless
        there is an engine to answer them.

        Raises:
            EngineUnavailable: The one before it does not come back either.  Who waits goes
                on waiting: nobody is answered that something went wrong.
        """
        if self._change_under_way is not None:
            self._change_under_way.cancel()
            await asyncio.wait([self._change_under_way])
        change = self._change_under_way = asyncio.create_task(self._change(section), name="change of the model")
        try:
            return await change
        except asyncio.CancelledError:
            # Two may cancel here: a newer change this one, or somebody the task that waits for it.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                await asyncio.wait([change])
                raise
            return SUPERSEDED

    async def __aenter__(self) -> Self:
        await self._enter(self._section)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not await self._has_left(CLOSING_SECONDS):
            log.error("the model's step does not end; the program ends without it")

    # The requests.

    def _latest(self) -> Engine:
        if self._engine is None:
            raise EngineFailed("the engine is not running: no `async with` has entered it")
        return self._engine

    def _admit(self) -> _Guest:
        load = self._latest().load
        answered = sum(guest.is_being_read for guest in self._guests) if self._is_changing else self._slots
        waiting = max(len(self._guests) - answered, 0)
        is_free = not self._is_changing and len(self._guests) < self._slots
        if not is_free and waiting >= self._section.max_waiting:
            wait = self._remaining() if self._is_changing else load.wait
            raise EngineBusy(waiting, self._section.max_waiting, wait)
        guest = _Guest()
        self._guests[guest] = None
        return guest

    def _outlook(self, guest: _Guest) -> Queued:
        waiting = [each for each in self._guests if not each.is_being_read]
        return Queued(waiting.index(guest) + 1, self._remaining(), is_model_changing=True)

    def _remaining(self) -> float:
        """Seconds until the new model answers, if it loads as fast as the last one did."""
        begun = self._clock.now() if self._loading_since is None else self._loading_since
        return max(begun + self._loading_took - self._clock.now(), 1.0)

    def _tell_all(self) -> None:
        for guest in self._guests:
            if not guest.is_inside:
                guest.tell()

    # The change.

    async def _change(self, section: EngineSection) -> str | None:
        last = self._section
        failure: str | None
        if self._is_entered and _as_loaded(section) == _as_loaded(last):
            self._section = section  # only how many may wait, which is counted here
            self._open_again()
            return None
        try:
            await asyncio.to_thread(self._check, section)
        except EngineError as error:
            if self._is_entered:
                return str(error)
            failure = str(error)  # of a change that took another's place, which had begun
        else:
            self._call_back()
            try:
                await self._answers_to_end()
                failure = await self._exchange(section)
            finally:
                self._open_again()
        if self._is_entered:
            return failure
        log.warning("the new model does not run, so the one before it is loaded again", why=failure)
        try:
            again = await self._exchange(last)
        finally:
            self._open_again()
        if again is not None:
            raise EngineUnavailable(f"{failure}\nAnd the model before it does not come back: {again}")
        return failure

    def _call_back(self) -> None:
        self._is_changing = True
        for guest in self._guests:
            guest.call_back()

    def _open_again(self) -> None:
        if self._is_entered:
            self._is_changing = False
            self._tell_all()

    async def _answers_to_end(self) -> None:
        while any(guest.is_being_read for guest in self._guests):
            load = self._latest().load
            if load.down is not None or load.since_progress >= STUCK_SECONDS:
                return
            self._someone_left.clear()
            await race(self._someone_left.wait(), self._clock.sleep(_LOOK_SECONDS))

    async def _exchange(self, section: EngineSection) -> str | None:
        """Put it in the place of the engine there is; return why that failed, or None."""
        if not await self._has_left(STUCK_SECONDS):
            return f"a step of the last model has not ended for {STUCK_SECONDS:.0f} s, and it holds the memory"
        gc.collect()  # an exception of a load that failed may still hold tensors, in a circle
        self._last_progress = self._loading_since = self._clock.now()
        self._tell_all()  # about how long it takes is known better now
        loading = asyncio.create_task(self._enter(section, try_it=True), name="loading")
        try:
            while not loading.done():
                await race(asyncio.wait([loading]), self._clock.sleep(_LOOK_SECONDS))
                if not loading.done() and self._clock.now() - self._last_progress >= STALLED_SECONDS:
                    return f"nothing of the model was read for {STALLED_SECONDS:.0f} s: it does not go on loading"
            loading.result()
        except EngineError as error:
            return str(error)
        finally:
            self._loading_since = None
            loading.cancel()
            # What does not even read its next tensor is given up: it makes no whole model any more.
            await race(asyncio.wait([loading]), self._clock.sleep(STUCK_SECONDS))
        return None

    async def _enter(self, section: EngineSection, *, try_it: bool = False) -> None:
        began = self._clock.now()
        engine = await asyncio.to_thread(self._open, _as_loaded(section), self._note_progress)
        await engine.__aenter__()
        if try_it:
            try:
                async with aclosing(engine.generate(_TRIAL)) as events:
                    async for _ in events:
                        self._last_progress = self._clock.now()
            except BaseException:
                self._leave(engine)
                raise
        # From here on without a pause: cancelled, it is either in or out.
        self._note_counts()
        self._engine, self._section, self._is_entered = engine, section, True
        self._slots = engine.load.slots
        self._loading_took = self._clock.now() - began

    def _leave(self, engine: Engine) -> None:
        self._is_entered = False
        self._leaving = asyncio.create_task(engine.__aexit__(None, None, None), name="a model leaves")

    async def _has_left(self, seconds: float) -> bool:
        """Let the engine that there is go; whether it, or one that goes already, is gone within so many seconds."""
        if self._is_entered:
            self._leave(self._latest())
        if self._leaving is not None:
            await race(asyncio.wait([self._leaving]), self._clock.sleep(seconds))
            if not self._leaving.done():
                return False
            leaving, self._leaving = self._leaving, None
            leaving.result()
        return True

    def _note_progress(self, done: int, total: int) -> None:
        self._last_progress = self._clock.now()
        self._progress(done, total)

    def _note_counts(self) -> None:
        if self._engine is not None:
            self._former = replace(self.load, running=0, waiting=0)


class _Guest:
    """One request: outside, where it waits for a model, or inside, with the engine."""

    def __init__(self) -> None:
        self.is_inside = False
        self.is_being_read = False  # somebody has read the beginning of its answer
        self._called_back = asyncio.Event()
        self._news = asyncio.Event()
        self._step: asyncio.Future[EngineEvent] | None = None

    def enter(self) -> None:
        self.is_inside = True
        self._called_back.clear()

    def tell(self) -> None:
        self._news.set()

    async def news(self) -> None:
        await self._news.wait()
        self._news.clear()

    def call_back(self) -> None:
        """Out of the engine, unless its answer is being read."""
        if self.is_inside and not self.is_being_read:
            self._called_back.set()
            if self._step is not None:
                self._step.cancel()

    async def unless_called_back(self, events: AsyncGenerator[EngineEvent, None]) -> EngineEvent | None:
        """The next event; None once it is called back, whatever the engine has said by then."""
        if self.is_being_read:
            return await anext(events)
        if self._called_back.is_set():
            return None
        self._step = asyncio.ensure_future(anext(events))
        try:
            event = await self._step
        except asyncio.CancelledError:
            # Two may cancel here: `call_back` this step, or somebody the task that waits for it.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None
        except EngineError:
            if self._called_back.is_set():
                return None
            raise
        finally:
            self._step = None
        if self._called_back.is_set():
            return None
        self.is_being_read = not isinstance(event, Queued)
        return event


def _as_loaded(section: EngineSection) -> EngineSection:
    return section.model_copy(update={"max_waiting": sys.maxsize})

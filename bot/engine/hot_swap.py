"""Engine that replaces its model under load; the old model is freed before the new one loads."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from bot.config.schema import EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Finished,
    Queued,
    SamplingParams,
    Tokens,
)
from bot.engine.base import Engine, Progress, silent
from bot.engine.swap_requests import SwapRequest, SwapRequests
from bot.errors import EngineBusy, EngineError, EngineFailed, EngineUnavailable, PicturesRefused
from bot.util.aio import race
from bot.util.clock import Clock
from bot.util.garbage import collect_frozen

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds without a tensor read before loading is given up.  Quantising one matrix of a 6B
# model, or its first token on a slow CPU, takes seconds.
STALLED_SECONDS = 180.0
# Seconds without a finished step before running answers are abandoned, and before an old model
# that does not stop fails the change.
STUCK_SECONDS = 60.0
# Seconds to wait for the engine on shutdown (of 8 s in all).
CLOSING_SECONDS = 5.0
_POLL_SECONDS = 1.0
# Seconds between two estimates of the time that is left, for requests that wait.
_QUEUED_INTERVAL = 5.0

_TRIAL = ChatRequest((ChatMessage("user", "hello"),), SamplingParams(temperature=0, max_tokens=1))

SUPERSEDED = "superseded by a newer change"

T = TypeVar("T")

Opener = Callable[[EngineSection, Progress], Engine]
Check = Callable[[EngineSection], object]


class HotSwapEngine:
    """The engine that `section` describes, until `change` replaces it.

    During a change, requests without output are requeued for the new model in their order;
    answers that have begun finish on the old one.  At most one model is in memory.

    `open` and `check` run in a thread.  `check` raises EngineError if a section cannot work,
    while the old model still serves.
    """

    # The inner engines have an unlimited queue: the limit is enforced here, where requests
    # accepted before a change are known, because none of those may be refused after it.

    def __init__(
        self,
        section: EngineSection,
        open: Opener,
        clock: Clock,
        *,
        check: Check = lambda section: None,
        progress: Progress = silent,
    ) -> None:
        self._section = section
        self._open = open
        self._clock = clock
        self._check = check
        self._progress = progress
        self._engine: Engine | None = None  # the latest: info and token counts outlive its exit
        self._is_entered = False
        self._loading: asyncio.Task[None] | None = None  # also one that was given up, and may still read
        self._closing: asyncio.Task[object] | None = None  # the exit of an engine, which frees its memory
        self._previous = EngineLoad(0, 0)  # counters of the earlier engines
        self._requests = SwapRequests()
        self._is_changing = False
        self._latest_change: object = None
        self._changes = asyncio.Lock()
        self._running_change: asyncio.Task[str | None] | None = None
        self._last_progress = 0.0
        self._loading_since: float | None = None
        self._loading_took = 0.0
        self._loaded: float | None = None

    @property
    def info(self) -> EngineInfo:
        return self._latest().info

    @property
    def load(self) -> EngineLoad:
        load, previous = self._latest().load, self._previous
        return replace(
            load,
            waiting=load.waiting + self._requests.held,
            is_changing=self._is_changing,
            loaded=self._loaded,
            tokens=load.tokens + previous.tokens,
            steps=load.steps + previous.steps,
            started=load.started + previous.started,
            waited=load.waited + previous.waited,
        )

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return self._latest().count_tokens(messages)

    def tokenize(self, text: str) -> Tokens | None:
        return self._latest().tokenize(text)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        entry = self._admit()
        try:
            while True:
                while self._is_changing:
                    yield self._queued(entry)
                    await race(entry.changed.wait(), self._clock.sleep(_QUEUED_INTERVAL))
                    entry.changed.clear()
                entry.submit()
                most = self._latest().info.most_pictures
                if sum(len(message.pictures) for message in request.messages) > most:
                    raise PicturesRefused(most)  # the model was changed since they were chosen
                async with aclosing(self._latest().generate(request)) as events:
                    while (event := await entry.next_event(events)) is not None:
                        yield event
                        if isinstance(event, Finished):
                            return
                entry.is_submitted = False
        finally:
            self._requests.remove(entry)

    async def change(self, section: EngineSection) -> str | None:
        """Replace the engine; return None, or the reason if the old engine serves again.

        A later change supersedes this one.  If cancelled before an engine serves again,
        waiting requests stay queued.

        Raises:
            EngineUnavailable: Restoring the old engine failed too.  Waiting requests stay
                queued until a later change succeeds.
        """
        self._latest_change = this = object()
        # Once: a second cancellation would cut off the cleanup after the first.
        if self._running_change is not None and not self._running_change.cancelling():
            self._running_change.cancel()
        async with self._changes:
            if self._latest_change is not this:
                return SUPERSEDED
            change = self._running_change = asyncio.create_task(self._change(section), name="change of the model")
            try:
                return await change
            except asyncio.CancelledError:
                # Either a newer change cancelled this one, or the caller was cancelled.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    await asyncio.wait([change])
                    raise
                return SUPERSEDED
            except EngineUnavailable:
                if self._latest_change is not this:
                    return SUPERSEDED  # the newer change may still succeed
                raise
            finally:
                self._running_change = None

    async def check(self, section: EngineSection) -> None:
        """Check, in a thread, whether a section can work.

        Raises:
            EngineError: It cannot.
        """
        await asyncio.to_thread(guarded, self._check, section)

    async def __aenter__(self) -> Self:
        await self._enter(self._section)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (reason := await self._close(CLOSING_SECONDS)) is not None:
            log.error("exiting before the model has stopped", reason=reason)

    # Requests.

    def _latest(self) -> Engine:
        if self._engine is None:
            raise EngineFailed("the engine is not running: enter it with `async with` first")
        return self._engine

    def _admit(self) -> SwapRequest:
        load = self._latest().load
        running = self._requests.begun if self._is_changing else load.slots
        waiting = max(len(self._requests) - running, 0)
        is_free = not self._is_changing and len(self._requests) < load.slots
        if not is_free and waiting >= self._section.max_waiting:
            wait = self._seconds_left() if self._is_changing else load.wait
            raise EngineBusy(waiting, self._section.max_waiting, wait)
        return self._requests.add()

    def _queued(self, request: SwapRequest) -> Queued:
        left = self._seconds_left()
        return Queued(self._requests.position(request), left if left > 1.0 else None, is_model_changing=True)

    def _seconds_left(self) -> float:
        """Estimate the seconds until the new model serves, from the last loading time."""
        began = self._clock.now() if self._loading_since is None else self._loading_since
        return max(began + self._loading_took - self._clock.now(), 1.0)

    # The change.

    async def _change(self, section: EngineSection) -> str | None:
        last = self._section
        failure: str | None
        if self._is_entered and _as_loaded(section) == _as_loaded(last):
            self._section = section  # only max_waiting differs, which is enforced here, or the fallback
            self._resume()
            return None
        try:
            await self.check(section)
        except EngineError as error:
            if self._is_entered:
                return str(error)
            failure = str(error)  # and a superseded change has already stopped the old model
        else:
            self._is_changing = True
            self._requests.requeue()
            try:
                await self._finish_started_answers()
                failure = await self._swap(section)
            finally:
                self._resume()
        if self._is_entered:
            return failure
        log.warning("the new model failed to load, restoring the previous one", why=failure)
        try:
            second_failure = await self._swap(last)
        finally:
            self._resume()
        if second_failure is not None:
            raise EngineUnavailable(f"{failure}\nRestoring the previous model failed too: {second_failure}")
        return failure

    def _resume(self) -> None:
        if self._is_entered:
            self._is_changing = False
            self._requests.notify_held()

    async def _finish_started_answers(self) -> None:
        while self._requests.begun:
            load = self._latest().load
            if load.down is not None or load.since_progress >= STUCK_SECONDS:
                return
            await race(self._requests.next_end(), self._clock.sleep(_POLL_SECONDS))

    async def _swap(self, section: EngineSection) -> str | None:
        """Close the engine and load another; return the reason if that failed."""
        if (reason := await self._close(STUCK_SECONDS)) is not None:
            return reason
        await asyncio.to_thread(collect_frozen)  # the exception of a failed load may keep tensors in a reference cycle
        self._last_progress = self._loading_since = self._clock.now()
        self._loaded = 0.0
        self._requests.notify_held()  # the estimated wait has changed
        loading = self._loading = asyncio.create_task(self._enter(section, with_trial=True), name="loading")
        try:
            while not loading.done():
                await race(asyncio.wait([loading]), self._clock.sleep(_POLL_SECONDS))
                if not loading.done() and self._clock.now() - self._last_progress >= STALLED_SECONDS:
                    return f"loading stalled: no progress for {STALLED_SECONDS:.0f} s"
            loading.result()
        except EngineError as error:
            return str(error)
        finally:
            self._loading_since = self._loaded = None
            loading.cancel()  # `_close` waits for its end
        return None

    async def _enter(self, section: EngineSection, *, with_trial: bool = False) -> None:
        began = self._clock.now()
        engine = await asyncio.to_thread(guarded, self._open, _as_loaded(section), self._on_progress)
        await engine.__aenter__()
        if with_trial:
            try:
                async with aclosing(engine.generate(_TRIAL)) as events:
                    async for _ in events:
                        self._last_progress = self._clock.now()
            except BaseException:
                self._start_closing(engine)
                raise
        # No await from here on: after a cancellation the engine is either in use or not.
        if self._engine is not None:
            self._previous = replace(self.load, running=0, waiting=0)
        self._engine, self._section, self._is_entered = engine, section, True
        self._loading_took = self._clock.now() - began

    def _start_closing(self, engine: Engine) -> None:
        self._is_entered = False
        self._closing = asyncio.create_task(engine.__aexit__(None, None, None), name="closing a model")

    async def _close(self, seconds: float) -> str | None:
        """Free the memory of all models; return the reason if one does not stop in time."""
        if not await self._ended(self._loading, seconds):
            return f"reading a model has not ended for {seconds:.0f} s, so its memory is not free"
        self._loading = None
        if self._is_entered:
            self._start_closing(self._latest())
        if not await self._ended(self._closing, seconds):
            return f"a step of the old model has not ended for {seconds:.0f} s, so its memory is not free"
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.result()
        return None

    async def _ended(self, task: asyncio.Task[Any] | None, seconds: float) -> bool:
        """Wait until a task has ended; return False once there was no progress for so long."""
        began = self._clock.now()
        while task is not None and not task.done():
            left = seconds - (self._clock.now() - max(began, self._last_progress))
            if left <= 0:
                return False
            await race(asyncio.wait([task]), self._clock.sleep(left))
        return True

    def _on_progress(self, done: int, total: int) -> None:
        self._last_progress = self._clock.now()
        if self._loaded is not None and total:
            self._loaded = done / total
        self._progress(done, total)


def _as_loaded(section: EngineSection) -> EngineSection:
    return section.model_copy(update={"max_waiting": sys.maxsize, "fallback": ""})


def guarded(call: Callable[..., T], *args: object) -> T:
    """Turn an unexpected error into an EngineFailed: whatever a model folder holds, it must not end a running bot."""
    try:
        return call(*args)
    except EngineError:
        raise
    except Exception as error:
        log.exception("unexpected error of the backend")
        raise EngineFailed(f"an unexpected error, see the log: {type(error).__name__}") from error

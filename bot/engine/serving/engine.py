"""An Engine over one worker thread that owns the device, from loading the model to freeing it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVarTuple

from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, EngineInfo, EngineLoad, Finished, Queued
from bot.engine.base import Progress, silent
from bot.engine.serving.base import CausalLM, Tokenizer
from bot.engine.serving.collector import Stream, StreamItem
from bot.engine.serving.runner import Outcome, Runner, device_memory, is_out_of_memory, return_memory
from bot.engine.serving.scheduler import Scheduler, Step
from bot.engine.serving.sequence import Sequence
from bot.engine.serving.throughput import Speed
from bot.errors import EngineBusy, EngineError, EngineFailed, EngineUnavailable, PromptTooLong

log = logging.getLogger(__name__)

# Between two looks at the devices' memory.
LOOK_SECONDS = 1.0

Ts = TypeVarTuple("Ts")

NOT_ENTERED = "the engine is not running: no `async with` has entered it"


@dataclass(frozen=True, slots=True)
class Loaded:
    model: CausalLM
    tokenizer: Tokenizer
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class _Known:
    """What stays on the event loop's side; the model itself is the worker's alone."""

    tokenizer: Tokenizer
    info: EngineInfo
    context: int


class ServingEngine:
    """Answers many requests at once with one model.

    `load` runs in the worker thread and calls the progress it is given; `progress` is called from that
    thread.  Closing the engine ends what is running or waiting with EngineFailed.

    Only when that returns is the memory free: a step under way, or a tensor that is being
    read, cannot be interrupted.  Whoever does not wait so long cancels it; the thread is a
    daemon, and the program may end without it.
    """

    # The worker holds the lock between two steps and never during one, so the event
    # loop takes it without noticing.  Everything that both sides write is under it.

    def __init__(
        self,
        load: Callable[[Progress], Loaded],
        *,
        max_waiting: int,
        progress: Progress = silent,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_model = load
        self._max_waiting = max_waiting
        self._progress = progress
        self._now = now
        self._lock = threading.Condition()
        self._scheduler: Scheduler[Sequence] = Scheduler(0)
        self._streams: dict[Sequence, Stream] = {}
        self._speed = Speed()
        self._known: _Known | None = None
        self._down: str | None = NOT_ENTERED
        self._closing = False
        self._is_in_step = False
        self._last_progress = now()
        self._device_bytes = self._tokens = self._steps = self._started = 0
        self._waited = 0.0

    @property
    def info(self) -> EngineInfo:
        return self._entered().info

    @property
    def load(self) -> EngineLoad:
        with self._lock:
            return EngineLoad(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                tokens_per_second=self._speed.tokens_per_second,
                since_progress=self._now() - self._last_progress if self._is_at_work() else 0.0,
                down=self._down,
                slots=self._scheduler.slots,
                wait=self._speed.wait(len(self._scheduler.waiting), self._scheduler.slots),
                device_bytes=self._device_bytes,
                tokens=self._tokens,
                steps=self._steps,
                started=self._started,
                waited=self._waited,
            )

    def count_tokens(self, messages: Many[ChatMessage]) -> int:
        return len(self._entered().tokenizer.prompt(messages))

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        sequence, stream = self._enqueue(request)
        try:
            while True:
                event = await stream.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._cancel(sequence)

    async def __aenter__(self) -> Self:
        self._home = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._home.create_future()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        try:
            await self._ready
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        with self._lock:
            self._closing = True
            self._abandon("the engine was closed")
            self._lock.notify()
        await self._ended.wait()
        self._thread.join()

    # On the event loop.

    def _entered(self) -> _Known:
        if self._known is None:
            raise EngineFailed(NOT_ENTERED)
        return self._known

    def _enqueue(self, request: ChatRequest) -> tuple[Sequence, Stream]:
        known = self._entered()
        prompt = tuple(known.tokenizer.prompt(request.messages))
        if len(prompt) >= known.context:
            raise PromptTooLong(len(prompt), known.context)
        sequence, stream = Sequence.of(request, prompt, known.tokenizer, known.context), Stream()
        with self._lock:
            if self._down is not None:
                raise EngineFailed(self._down)
            waiting = len(self._scheduler.waiting)
            if not self._scheduler.free and waiting >= self._max_waiting:
                raise EngineBusy(waiting, self._max_waiting, self._speed.wait(waiting, self._scheduler.slots))
            if not self._is_at_work():
                self._last_progress = self._now()
            sequence.asked = self._now()
            self._streams[sequence] = stream
            self._scheduler.add(sequence)
            self._tell(self._moved())
            self._lock.notify()
        return sequence, stream

    def _cancel(self, sequence: Sequence) -> None:
        with self._lock:
            if sequence in self._streams:
                self._leave(sequence)
                self._tell(self._moved())

    # In the worker thread.

    def _work(self) -> None:
        failure: EngineError = EngineFailed("the engine's worker ended")
        try:
            self._serve()
        except EngineError as error:
            failure = error
        except Exception as error:
            # The thread's outermost frame: whoever waits must hear of the end, whatever it was.
            log.exception("the engine's worker died")
            if is_out_of_memory(error):
                failure = EngineUnavailable(
                    'the model does not fit into memory; engine.quantization = "int4" needs the least'
                )
            else:
                failure = EngineFailed(f"the engine's worker died of {type(error).__name__}: {error}")
        finally:
            with suppress(RuntimeError):  # a broken device takes nothing back
                return_memory()
            with self._lock:
                self._is_in_step = False
                self._abandon(str(failure))
            self._call(self._end, failure)

    def _serve(self) -> None:
        loaded = self._load_model(self._report)
        runner, slots = Runner(loaded.model, loaded.tokenizer.vocabulary), loaded.model.slots
        self._known = _Known(loaded.tokenizer, loaded.info, loaded.model.context_length)
        with self._lock:
            if self._closing:
                return
            self._scheduler = Scheduler(slots)
            self._down = None
        self._call(self._start)
        looked = -math.inf
        while (step := self._next_step()) is not None:
            began = self._now()
            outcomes = runner.run(step)
            if began - looked >= LOOK_SECONDS:
                # Asked here, and not by who wants to know: a device that hangs may hold up the answer.
                looked, self._device_bytes = began, device_memory()
            self._pass_on(outcomes, self._now() - began)

    def _report(self, done: int, total: int) -> None:
        if self._closing:
            raise EngineFailed("the engine was closed while it loaded")
        self._progress(done, total)

    def _next_step(self) -> Step[Sequence] | None:
        with self._lock:
            self._lock.wait_for(lambda: self._closing or self._scheduler.running)
            step = None if self._closing else self._scheduler.step()
            self._is_in_step = step is not None
            if step is not None and step.is_prefill:
                for sequence in step.jobs:
                    sequence.started = self._now()
                    self._started += 1
                    self._waited += sequence.started - sequence.asked
            return step

    def _pass_on(self, outcomes: Mapping[Sequence, Outcome], seconds: float) -> None:
        news: list[tuple[Stream, StreamItem]] = []
        with self._lock:
            self._is_in_step = False
            self._last_progress = self._now()
            self._steps += 1
            self._tokens += len(outcomes)
            self._speed.step(len(outcomes), seconds)
            for sequence, outcome in outcomes.items():
                stream = self._streams.get(sequence)
                if stream is None:  # cancelled while the step ran
                    continue
                if isinstance(outcome, EngineFailed):
                    news.append((stream, outcome))
                    self._leave(sequence)
                    continue
                if outcome:
                    news.append((stream, Delta(outcome)))
                if sequence.reason is not None:
                    news.append((stream, Finished(sequence.reason, sequence.usage)))
                    self._leave(sequence)
            self._tell(news + self._moved())

    # On both sides, with the lock held.

    def _is_at_work(self) -> bool:
        # A step that is stuck stays so when all who waited for it have gone.
        return self._is_in_step or bool(self._scheduler.running)

    def _leave(self, sequence: Sequence) -> None:
        del self._streams[sequence]
        self._scheduler.remove(sequence)
        if sequence.started is not None:
            self._speed.answer(self._now() - sequence.started)

    def _moved(self) -> list[tuple[Stream, StreamItem]]:
        news: list[tuple[Stream, StreamItem]] = []
        for position, sequence in enumerate(self._scheduler.waiting, start=1):
            if sequence.position != position:
                sequence.position = position
                news.append(
                    (self._streams[sequence], Queued(position, self._speed.wait(position, self._scheduler.slots)))
                )
        return news

    def _abandon(self, why: str) -> None:
        if self._down is None:
            self._down = why
        self._tell([(stream, EngineFailed(why)) for stream in self._streams.values()])
        self._streams.clear()
        self._scheduler = Scheduler(0)

    def _tell(self, news: Many[tuple[Stream, StreamItem]]) -> None:
        # One call a step, whatever the number of rows: each one wakes the event loop.
        if news:
            self._call(_put_all, news)

    def _call(self, function: Callable[[*Ts], None], *args: *Ts) -> None:
        # An event loop that is closed has nobody left who reads.
        with suppress(RuntimeError):
            self._home.call_soon_threadsafe(function, *args)

    # Called by `_call`.

    def _start(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _end(self, failure: EngineError) -> None:
        if not self._ready.done():
            self._ready.set_exception(failure)
        self._ended.set()


def _put_all(news: Many[tuple[Stream, StreamItem]]) -> None:
    for stream, item in news:
        stream.put(item)

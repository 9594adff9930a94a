"""Engine whose worker thread owns the model: loading, continuous batching, freeing."""

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

from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, EngineInfo, EngineLoad, Finished, Queued, Tokens
from bot.engine.base import Progress, is_long, silent
from bot.engine.serving.base import CausalLM, Tokenizer
from bot.engine.serving.collector import OutputCollector, OutputItem
from bot.engine.serving.queue import Throughput
from bot.engine.serving.runner import Runner, StepResult, device_memory, is_out_of_memory, release_memory
from bot.engine.serving.scheduler import Scheduler, Step
from bot.engine.serving.sequence import Sequence
from bot.engine.thoughts import Thoughts, without_thoughts
from bot.errors import EngineBusy, EngineError, EngineFailed, EngineUnavailable, PromptTooLong

log = logging.getLogger(__name__)

MEMORY_CHECK_SECONDS = 1.0

Ts = TypeVarTuple("Ts")

NOT_ENTERED = "the engine is not running: enter it with `async with` first"

Output = tuple[OutputCollector, OutputItem]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, used by the worker thread only, with its tokenizer and its properties.

    `thoughts` makes what tells the reasoning of one answer from its text, if the model may think.
    `step_tokens` are the most tokens of a decode step with drafts; 0 if the model takes none.
    """

    model: CausalLM
    tokenizer: Tokenizer
    info: EngineInfo
    thoughts: Callable[[], Thoughts] | None = None
    step_tokens: int = 0


class ServingEngine:
    """Answers many requests at once with one model.

    `load` and `progress` run in the worker thread.  Closing the engine ends running and
    waiting requests with EngineFailed, and returns once the memory is free: a running step
    or read cannot be interrupted.  Cancel it to give up; the thread is a daemon.
    """

    # The lock guards all state shared by the worker and the event loop.  The worker never
    # holds it during a step, so the event loop does not block on it.

    def __init__(
        self,
        load: Callable[[Progress], LoadedModel],
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
        self._collectors: dict[Sequence, OutputCollector] = {}
        self._throughput = Throughput()
        # Without the model: only the worker refers to it, so that its memory is freed with the thread.
        self._loaded: tuple[Tokenizer, EngineInfo] | None = None
        self._new_thoughts: Callable[[], Thoughts] | None = None
        self._down: str | None = NOT_ENTERED
        self._closing = False
        self._is_in_step = False
        self._last_progress = now()
        self._device_bytes = self._tokens = self._steps = self._started = 0
        self._waited = 0.0

    @property
    def info(self) -> EngineInfo:
        return self._entered()[1]

    @property
    def load(self) -> EngineLoad:
        with self._lock:
            return EngineLoad(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                tokens_per_second=self._throughput.tokens_per_second,
                since_progress=self._now() - self._last_progress if self._is_busy() else 0.0,
                down=self._down,
                slots=self._scheduler.slots,
                wait=self._throughput.wait(len(self._scheduler.waiting), self._scheduler.slots),
                device_bytes=self._device_bytes,
                tokens=self._tokens,
                steps=self._steps,
                started=self._started,
                waited=self._waited,
            )

    def count_tokens(self, messages: Many[ChatMessage]) -> int:
        return len(self._entered()[0].prompt(messages))

    def tokenize(self, text: str) -> Tokens:
        return self._entered()[0].tokenize(text)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        sequence, collector = self._enqueue(request, await self._prompt(request.messages))
        thoughts = None if self._new_thoughts is None else self._new_thoughts()
        try:
            while True:
                event = await collector.get()
                for each in (event,) if thoughts is None else without_thoughts(thoughts, event):
                    yield each
                if isinstance(event, Finished):
                    return
        finally:
            self._cancel(sequence)

    async def __aenter__(self) -> Self:
        self._event_loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._event_loop.create_future()
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
            self._fail_all("the engine was closed")
            self._lock.notify()
        await self._ended.wait()
        self._thread.join()

    # On the event loop.

    def _entered(self) -> tuple[Tokenizer, EngineInfo]:
        if self._loaded is None:
            raise EngineFailed(NOT_ENTERED)
        return self._loaded

    async def _prompt(self, messages: Many[ChatMessage]) -> tuple[int, ...]:
        """Return the ids of a prompt; those of a long one, which may be beyond the context, take seconds."""
        tokenizer, _ = self._entered()
        if not is_long(messages):
            return tuple(tokenizer.prompt(messages))
        return tuple(await asyncio.to_thread(tokenizer.prompt, messages))

    def _enqueue(self, request: ChatRequest, prompt: tuple[int, ...]) -> tuple[Sequence, OutputCollector]:
        tokenizer, info = self._entered()
        if len(prompt) >= info.context_length:
            raise PromptTooLong(len(prompt), info.context_length)
        sequence, collector = Sequence.of(request, prompt, tokenizer, info.context_length), OutputCollector()
        with self._lock:
            if self._down is not None:
                raise EngineFailed(self._down)
            waiting = len(self._scheduler.waiting)
            if not self._scheduler.free and waiting >= self._max_waiting:
                raise EngineBusy(waiting, self._max_waiting, self._throughput.wait(waiting, self._scheduler.slots))
            if not self._is_busy():
                self._last_progress = self._now()
            sequence.enqueued_at = self._now()
            self._collectors[sequence] = collector
            self._scheduler.add(sequence)
            self._send(self._position_changes())
            self._lock.notify()
        return sequence, collector

    def _cancel(self, sequence: Sequence) -> None:
        with self._lock:
            if sequence in self._collectors:
                self._remove(sequence)
                self._send(self._position_changes())

    # In the worker thread.

    def _work(self) -> None:
        failure: EngineError = EngineFailed("the engine's worker ended")
        try:
            self._serve()
        except EngineError as error:
            failure = error
        except Exception as error:
            # Outermost frame of the thread: pending requests must fail, whatever the error is.
            log.exception("the engine's worker died")
            if is_out_of_memory(error):
                failure = EngineUnavailable(
                    'the model does not fit into memory; engine.quantization = "int4" needs the least'
                )
            else:
                failure = EngineFailed(f"the engine's worker died of {type(error).__name__}: {error}")
        finally:
            with suppress(RuntimeError):  # raised by a broken device
                release_memory()
            with self._lock:
                self._is_in_step = False
                self._fail_all(str(failure))
            self._call_soon(self._end, failure)

    def _serve(self) -> None:
        loaded = self._load_model(self._report)
        runner = Runner(loaded.model, loaded.tokenizer.vocabulary, loaded.step_tokens)
        self._loaded, self._new_thoughts = (loaded.tokenizer, loaded.info), loaded.thoughts
        with self._lock:
            if self._closing:
                return
            self._scheduler = Scheduler(loaded.model.slots)
            self._down = None
        self._call_soon(self._start)
        checked = -math.inf
        while (step := self._next_step()) is not None:
            began, before = self._now(), _tokens(step)
            results = runner.run(step)
            if began - checked >= MEMORY_CHECK_SECONDS:
                # Queried in this thread: a hanging device may block the call.
                checked, self._device_bytes = began, device_memory()
            self._deliver(results, _tokens(step) - before, self._now() - began)

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
                    sequence.prefill_started_at = self._now()
                    self._started += 1
                    self._waited += sequence.prefill_started_at - sequence.enqueued_at
            return step

    def _deliver(self, results: Mapping[Sequence, StepResult], tokens: int, seconds: float) -> None:
        outputs: list[Output] = []
        with self._lock:
            self._is_in_step = False
            self._last_progress = self._now()
            self._steps += 1
            self._tokens += tokens
            self._throughput.step(tokens, seconds)
            for sequence, result in results.items():
                collector = self._collectors.get(sequence)
                if collector is None:  # cancelled during the step
                    continue
                if isinstance(result, EngineFailed):
                    outputs.append((collector, result))
                    self._remove(sequence)
                    continue
                if result:
                    outputs.append((collector, Delta(result)))
                if sequence.reason is not None:
                    outputs.append((collector, Finished(sequence.reason, sequence.usage)))
                    self._remove(sequence)
            self._send(outputs + self._position_changes())

    # In both threads, with the lock held.

    def _is_busy(self) -> bool:
        # A stuck step still counts after all its requests were cancelled.
        return self._is_in_step or bool(self._scheduler.running)

    def _remove(self, sequence: Sequence) -> None:
        del self._collectors[sequence]
        self._scheduler.remove(sequence)
        if sequence.prefill_started_at is not None:
            self._throughput.answer(self._now() - sequence.prefill_started_at)

    def _position_changes(self) -> list[Output]:
        outputs: list[Output] = []
        for position, sequence in enumerate(self._scheduler.waiting, start=1):
            if sequence.position != position:
                sequence.position = position
                wait = self._throughput.wait(position, self._scheduler.slots)
                outputs.append((self._collectors[sequence], Queued(position, wait)))
        return outputs

    def _fail_all(self, reason: str) -> None:
        if self._down is None:
            self._down = reason
        self._send([(collector, EngineFailed(reason)) for collector in self._collectors.values()])
        self._collectors.clear()
        self._scheduler = Scheduler(0)

    def _send(self, outputs: Many[Output]) -> None:
        # One call per step for all rows: each call wakes the event loop.
        if outputs:
            self._call_soon(_put_all, outputs)

    def _call_soon(self, function: Callable[[*Ts], None], *args: *Ts) -> None:
        with suppress(RuntimeError):  # the event loop is closed: no reader is left
            self._event_loop.call_soon_threadsafe(function, *args)

    # Called through `_call_soon`.

    def _start(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _end(self, failure: EngineError) -> None:
        if not self._ready.done():
            self._ready.set_exception(failure)
        self._ended.set()


def _tokens(step: Step[Sequence]) -> int:
    return sum(sequence.tokens for sequence in step.jobs)


def _put_all(outputs: Many[Output]) -> None:
    for collector, item in outputs:
        collector.put(item)

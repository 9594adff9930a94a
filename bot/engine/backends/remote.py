"""Remote backend: any server with an OpenAI-compatible API (Ollama, vLLM, llama-server, LM Studio, …)."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Self

import httpx
import structlog

from bot.config.schema import EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Finished,
    FinishReason,
    Queued,
    Thought,
    Usage,
)
from bot.engine.base import Memory, Progress, silent
from bot.engine.remote.api import ServerApi, certificates
from bot.engine.remote.endpoints import Endpoint, Endpoints, has_well, is_loading, mistake, reasons, require_urls
from bot.engine.remote.errors import ContextExceeded, ServerFailed, describe
from bot.engine.remote.stream import ContinuedText, WholeText
from bot.engine.remote.tokens import TokenEstimates
from bot.engine.serving.detokenizer import StopSearch
from bot.engine.serving.queue import FairQueue, SlotTicket
from bot.errors import AnswerBrokenOff, EngineFailed, EngineMisconfigured, PicturesRefused, PromptTooLong
from bot.util.aio import race
from bot.util.clock import Clock, MonotonicClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Tokens, where neither the server nor engine.context_length tells: Ollama's default.
_DEFAULT_CONTEXT = 4096
# Seconds until a request that no server accepts is given up; longer while a model loads.
_GIVE_UP_SECONDS = 120.0
_LOADING_SECONDS = 900.0
# Failures of one request on servers that are well otherwise; it may be the cause.
_MOST_FAILURES = 6
# Seconds that a broken answer waits for a server that continues it.
_CONTINUE_SECONDS = 30.0
_POLL_SECONDS = 0.1
# Seconds that a question tries a server which had all of engine.first_token_seconds before, while another one is well.
_TRIAL_SECONDS = 10.0
# Of the context, for what a model's template adds to a prompt beyond its estimate: roles, and instructions of its own.
_TEMPLATE_TOKENS = 64
# Of a prompt.  Each takes up to 1,400 tokens of the context, and half a megabyte of the database.
_MOST_PICTURES = 4

_FAULTS = (ServerFailed, httpx.HTTPError, TimeoutError)


def preflight(options: EngineSection, taken: Memory) -> Memory:
    """Check the settings, without a connection: servers may start later than the bot.

    Raises:
        EngineMisconfigured: `engine.urls` is empty, or the file of certificates cannot be read.
    """
    require_urls(options)
    certificates(options)
    return {}  # of this machine


def open_engine(options: EngineSection, progress: Progress = silent) -> "RemoteEngine":
    """Create the engine; entering it asks the servers for their models."""
    require_urls(options)
    return RemoteEngine(options, MonotonicClock())


@dataclass(slots=True)
class _Answer:
    """The text that its reader has, and how many seconds it waits for a server at most: none with a fallback."""

    prompt_tokens: int
    able: Sequence[Endpoint]  # those that take its pictures
    patience: float
    give_up: float
    text: str = ""
    deltas: int = 0
    failures: int = 0
    failed_on: Endpoint | None = None
    refused_by: set[Endpoint] = field(default_factory=set)

    def failed(self, endpoint: Endpoint, error: Exception, *, is_only: bool) -> None:
        """Count an attempt that failed; a busy server was not asked to answer."""
        self.failed_on = endpoint
        fault = error if isinstance(error, ServerFailed) else ServerFailed("")
        # Others wait while the only server rests, and a request may be the cause of its 500s.
        self.failures += 0 if fault.is_busy else 2 if is_only and fault.status == 500 else 1
        if fault.is_refusal:
            self.refused_by.add(endpoint)


class RemoteEngine:
    """Answers from the servers at `options.urls`, each with `options.max_batch_size` slots.

    Before its first text a request may move to another server, since nothing was shown.
    After it, a broken answer is continued by a server that can, or it ends.
    """

    def __init__(self, options: EngineSection, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._api = ServerApi(options)
        most_pictures = _MOST_PICTURES if options.vision else 0
        self._endpoints = Endpoints(options.urls, options.max_batch_size, clock, most_pictures)
        self._queue = FairQueue(0, options.max_waiting, clock.now)
        self._model = "" if options.model == "demo" else options.model
        self._tokens = TokenEstimates(clock)
        self._has_failure = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        hosts = ", ".join(each.host for each in self._endpoints.all)
        return EngineInfo(
            *(self._model or "unknown", "remote", "none", "none", hosts, self._context_length),
            most_pictures=self._endpoints.most_pictures,
        )

    @property
    def load(self) -> EngineLoad:
        return replace(self._queue.load, fault=self._endpoints.fault)

    @property
    def _context_length(self) -> int:
        known = self._endpoints.context_length
        wanted = self._options.context_length
        return min(known or wanted, wanted or known or _DEFAULT_CONTEXT) or _DEFAULT_CONTEXT

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Estimate the tokens, as the last prompt that a server has counted suggests."""
        return self._tokens.of(messages)

    def tokenize(self, text: str) -> None:
        """Return None: the servers have the tokenizer."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        patience = 0.0 if request.has_fallback else _GIVE_UP_SECONDS
        tokens = await self._count(request.messages)
        able = self._able(request)
        answer = _Answer(tokens, able, patience, self._clock.now() + patience)
        if answer.prompt_tokens >= self._context_length:
            raise PromptTooLong(answer.prompt_tokens, self._context_length)
        if not able:
            raise PicturesRefused(self._endpoints.most_pictures)
        ticket = self._queue.enqueue(request, answer.prompt_tokens, partial(self._endpoints.has_free, able))
        try:
            while True:
                async with aclosing(self._turn(ticket, answer)) as positions:
                    async for queued in positions:
                        yield queued
                others = [each for each in able if each is not answer.failed_on]
                endpoint = self._endpoints.choose(request.channel, others) or self._endpoints.choose(
                    request.channel, able
                )
                if endpoint is not None:
                    try:
                        async with aclosing(self._stream(endpoint, request, answer)) as events:
                            async for event in events:
                                yield event
                    except _FAULTS as error:
                        self._report(endpoint, error)
                        if answer.text:
                            break
                        if (what := mistake(able)) is not None:
                            raise EngineFailed(f"no model server can be used: {what}") from error
                        answer.failed(endpoint, error, is_only=len(able) == 1)
                        if answer.failures >= _MOST_FAILURES or len(answer.refused_by) in {2, len(able)}:
                            why = f"{endpoint.host}: {self._describe(error)}"
                            raise EngineFailed(f"the model servers fail at this request: {why}") from error
                    else:
                        return
                self._queue.resize(self._endpoints.slots)
                self._queue.requeue(ticket)
            async with aclosing(self._continue(request, answer)) as events:
                async for event in events:
                    yield event
        finally:
            self._queue.resize(self._endpoints.slots)
            self._queue.release(ticket)

    def _able(self, request: ChatRequest) -> list[Endpoint]:
        """Return the servers that take as many pictures."""
        pictures = sum(len(message.pictures) for message in request.messages)
        return [each for each in self._endpoints.all if each.most_pictures >= pictures]

    async def _count(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens of a prompt that may be too long; of a shorter one the estimate is enough."""
        if 2 * self.count_tokens(messages) >= self._context_length:
            now = self._clock.now()
            able = (each for each in self._endpoints.all if each.counts_from <= now and not each.failures)
            if (endpoint := next(able, None)) is not None:
                tokens = await self._api.count(endpoint, self._model, messages, now)
                if tokens:
                    self._tokens.counted(messages, tokens)
        return self.count_tokens(messages)

    async def _turn(self, ticket: SlotTicket, answer: _Answer) -> AsyncGenerator[Queued, None]:
        """Yield the positions of a request until it may run.

        Raises:
            EngineFailed: No server answers.
        """
        while True:
            if not ticket.position_changed.is_set():
                seconds = max(answer.give_up - self._clock.now(), _POLL_SECONDS)
                await race(ticket.position_changed.wait(), self._clock.sleep(seconds))
            if ticket.position_changed.is_set():
                queued = await ticket.queued()
                if queued is None:
                    return
                yield replace(queued, is_model_loading=is_loading(answer.able))
            if (what := mistake(answer.able)) is not None:
                raise EngineFailed(f"no model server can be used: {what}")
            now = self._clock.now()
            if has_well(answer.able):
                answer.give_up = now + answer.patience
            elif now >= answer.give_up + (_LOADING_SECONDS if is_loading(answer.able) and answer.patience else 0.0):
                raise EngineFailed(f"no model server answers: {reasons(answer.able)}")

    async def _stream(
        self, endpoint: Endpoint, request: ChatRequest, answer: _Answer
    ) -> AsyncGenerator[EngineEvent, None]:
        """Yield one server's answer, or the rest of an answer; it is complete if the last event is a Finished."""
        params = request.params
        if params.max_tokens is not None:
            room = self._context_length - answer.prompt_tokens
            room -= min(_TEMPLATE_TOKENS, room // 2)
            left = max(min(params.max_tokens, room) - answer.deltas, 1)
            request = replace(request, params=replace(params, max_tokens=left))
        shown = answer.text.rstrip()
        space, is_rest = answer.text[len(shown) :], bool(shown)
        reader = ContinuedText(space) if is_rest else WholeText(endpoint)
        stops = StopSearch(params.stop)  # servers may not know them
        seconds = self._options.first_token_seconds
        if endpoint.failures and endpoint.is_silent and has_well(answer.able):
            seconds = min(seconds, _TRIAL_SECONDS)
        usage: Usage | None = None
        reason: FinishReason | None = None
        try:
            with endpoint.request():
                async with aclosing(self._api.answer(endpoint, self._model, request, shown, seconds)) as chunks:
                    async for chunk in chunks:
                        usage, reason = chunk.usage or usage, reason or chunk.reason
                        thought, text = reader.feed(chunk)
                        if thought:
                            yield Thought(thought)
                        if text := stops.feed(text):
                            answer.text += text
                            answer.deltas += 1
                            yield Delta(text)
                        if stops.stopped:
                            reason = FinishReason.STOP
                            break
        except ContextExceeded as error:
            if is_rest:
                yield Finished(FinishReason.LENGTH, Usage(answer.prompt_tokens, answer.deltas))
                return
            raise self._too_long(endpoint, request, error) from error
        if reason is None or reason is FinishReason.ERROR:
            raise ServerFailed("its stream ended before the answer")
        if text := stops.feed(reader.finish(reason)) + stops.finish():
            answer.deltas += 1
            yield Delta(text)
        endpoint.succeed()
        endpoint.accepts_key = True
        if usage is not None and usage.prompt_tokens and not is_rest:
            self._tokens.answered(request.messages, usage.prompt_tokens)
        if usage is None or is_rest:
            usage = Usage(answer.prompt_tokens, answer.deltas + 1)
        yield Finished(reason, usage)

    async def _continue(self, request: ChatRequest, answer: _Answer) -> AsyncGenerator[EngineEvent, None]:
        """Continue a broken answer after the text that was shown, on any server that does so.

        Raises:
            AnswerBrokenOff: None does.
        """
        able = [each for each in self._able(request) if each.server != "other"]
        give_up = self._clock.now() + _CONTINUE_SECONDS
        while able and self._clock.now() < give_up:
            if request.params.max_tokens is not None and answer.deltas >= request.params.max_tokens:
                yield Finished(FinishReason.LENGTH, Usage(answer.prompt_tokens, answer.deltas))
                return
            self._queue.resize(self._endpoints.slots)
            endpoint = self._endpoints.choose(request.channel, able)
            if endpoint is None:
                await self._clock.sleep(_POLL_SECONDS)
                continue
            length = len(answer.text)
            if not await self._api.can_continue(endpoint, request, answer.text.rstrip()):
                able.remove(endpoint)
                continue
            try:
                async with aclosing(self._stream(endpoint, request, answer)) as events:
                    async for event in events:
                        yield event
            except _FAULTS as error:
                if isinstance(error, ServerFailed) and (error.is_lasting or error.is_refusal):
                    log.info("a model server does not continue an answer", server=endpoint.host, why=error.why)
                    able.remove(endpoint)
                else:
                    self._report(endpoint, error)
                if len(answer.text) > length:
                    give_up = self._clock.now() + _CONTINUE_SECONDS
            else:
                log.info("a broken answer was continued", server=endpoint.host)
                return
        raise AnswerBrokenOff("the model server broke its answer off")

    def _too_long(self, endpoint: Endpoint, request: ChatRequest, error: ContextExceeded) -> PromptTooLong:
        if error.limit:
            endpoint.context_length = min(error.limit, self._context_length)
        limit = self._context_length
        self._tokens.refused(request.messages, limit)
        return PromptTooLong(max(self.count_tokens(request.messages), limit), limit)

    def _report(self, endpoint: Endpoint, error: Exception) -> None:
        fault = error if isinstance(error, ServerFailed) else ServerFailed("")
        why = self._describe(error)
        if fault.is_refusal:  # of one request: the server is well
            log.warning("a model server refuses a request", server=endpoint.host, why=why)
            return
        endpoint.fail(
            self._clock.now(),
            why,
            fault.seconds,
            is_unreachable=isinstance(error, httpx.TransportError | TimeoutError),
            is_silent=isinstance(error, httpx.ReadTimeout | TimeoutError),
            is_loading=fault.is_loading,
            is_misconfigured=fault.is_lasting,
        )
        self._has_failure.set()
        log.warning("a model server failed", server=endpoint.host, why=why, failures=endpoint.failures)

    def _describe(self, error: Exception) -> str:
        return error.why if isinstance(error, ServerFailed) else describe(error, self._options)

    async def __aenter__(self) -> Self:
        """Ask the servers for their models; they may also start later.

        Raises:
            EngineMisconfigured: A server has several models, and engine.model names none.
        """
        await asyncio.gather(*(self._list(each) for each in self._endpoints.all))
        wrong = next((each for each in self._endpoints.all if each.is_misconfigured and not self._model), None)
        if wrong is not None:
            await self._api.close()
            raise EngineMisconfigured(wrong.why)
        self._queue.resize(self._endpoints.slots)
        self._watching = asyncio.create_task(self._watch(), name="model servers")
        return self

    async def _watch(self) -> None:
        """List the models of servers that could not be reached, and follow the servers' pauses."""
        while True:
            self._has_failure.clear()
            now = self._clock.now()
            away = [each for each in self._endpoints.all if each.is_unreachable or not each.is_listed]
            await asyncio.gather(*(self._list(each) for each in away if each.paused_until <= now))
            self._queue.resize(self._endpoints.slots)
            seconds = max(self._endpoints.next_end() - self._clock.now(), 0.0)
            await race(self._has_failure.wait(), self._clock.sleep(seconds))

    async def _list(self, endpoint: Endpoint) -> None:
        """Find the model and its context; a server without a list is used if engine.model names the model."""
        try:
            models = await self._api.models(endpoint)
        except _FAULTS as error:
            # transformers' own server answers 500 where the hub's cache is missing.
            is_missing = isinstance(error, ServerFailed) and error.status in {403, 404, 405, 500, 501}
            if not (is_missing and self._model):
                self._report(endpoint, error)
                return
            models = {}
        else:
            endpoint.accepts_key = True
        if not self._model:
            if len(models) != 1:
                known = ", ".join(sorted(models)[:20])
                why = f"set engine.model to one of the models at {endpoint.host}: {known}"
                missing = f"{endpoint.host} has no model: load one there, and set engine.model to its name"
                self._report(endpoint, ServerFailed(why if models else missing, is_lasting=True))
                return
            self._model = next(iter(models))
        before, endpoint.models = endpoint.models, tuple(sorted(models))
        if models and endpoint.models != before and not endpoint.has(self._model):
            # A proxy may have more than it lists.
            known = ", ".join(endpoint.models[:20])
            log.warning("the model is not in a server's list", model=self._model, server=endpoint.host, known=known)
        if not self._options.context_length:
            endpoint.context_length = models.get(self._model) or endpoint.context_length
        if not endpoint.is_listed:
            endpoint.succeed()
        endpoint.is_listed, endpoint.is_unreachable = True, False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._api.close()

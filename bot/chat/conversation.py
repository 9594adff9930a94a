"""Answer questions with the model: history, prompt, generation."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from bot.chat.context import Context
from bot.chat.exchanges import Exchanges
from bot.chat.files import Files, is_unread, unread_notices
from bot.chat.i18n import Translate
from bot.chat.loops import LONGEST_LOOP, REPEATS, loop_at_end
from bot.chat.pictures import mark_unseen
from bot.chat.prompt import NothingToAsk, Prompt, TurnCounts, build_prompt
from bot.chat.quotas import Quotas
from bot.chat.settings import ChatSettings, Choices
from bot.chat.stream import REFUSED, ReplyStream
from bot.chat.worker import Worker
from bot.config.schema import DEFAULT_MODEL
from bot.domain import (
    Answer,
    ChatRequest,
    Delta,
    Fallback,
    Finished,
    FinishReason,
    IncomingMessage,
    Notice,
    Queued,
    Status,
    Thought,
    Usage,
    UsageSum,
)
from bot.engine.base import Engine
from bot.errors import (
    AnswerBrokenOff,
    BotError,
    EngineBusy,
    EngineError,
    PicturesRefused,
    PromptTooLong,
    StoreDamaged,
    StoreError,
    StoreLost,
)
from bot.observability.metrics import Metrics, engine_outcome
from bot.storage.base import Store
from bot.util.aio import race
from bot.util.clock import Clock
from bot.util.retry import Backoff, log_retry, retry
from bot.util.text import replace_surrogates

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


# Times that a prompt, cut to the context, may be too long after all.
_MOST_REFUSALS = 3


# Seconds until a question of the backlog asks a full queue again.
_BUSY_SECONDS = 2.0


# Seconds that a question waits for a database that cannot be used, and between two attempts at first and at most.
# A server that restarts or fails over takes seconds to minutes.
_OUTAGE = 300.0
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 10.0


# Deltas that a loop has at least: a delta is about a token, and a cycle has two or more.
_LOOP_DELTAS = 2 * REPEATS


class _Draft:
    """The answer so far, stored at the end; each addition is shown at once."""

    def __init__(self, stream: ReplyStream, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._began: float | None = None  # the first text or thought of the model
        self.seconds = 0.0  # from there to the last one
        self._texts: list[str] = []
        self._notices: list[str] = []
        self._end = ""  # as much of the text as a loop may take
        self._model = self._persona = ""

    @property
    def has_begun(self) -> bool:
        return bool(self._texts)

    def is_in_loop(self, question: str) -> bool:
        """Return whether the text repeats itself; text that the question has twice is repeated at its wish."""
        length = loop_at_end(self._end)
        return length > 0 and 2 * self._end[-length:] not in question

    def extend(self, text: str) -> None:
        self._write()
        text = replace_surrogates(text)
        self._texts.append(text)
        self._end = (self._end + text)[-LONGEST_LOOP:]
        self._stream.put(Delta(text))

    def sign(self, model: str | None, persona: str) -> None:
        """Note the names of the model and the persona that answer."""
        self._model = "" if model is None or model == DEFAULT_MODEL else model
        self._persona = persona

    def note(self, sentence: str) -> None:
        self._notices.append(sentence)
        self._stream.put(Notice(sentence))

    def queued(self, event: Queued) -> None:
        self._stream.put(event)

    def think(self, thought: Thought) -> None:
        self._write()
        self._stream.put(replace(thought, text=replace_surrogates(thought.text)))

    def _write(self) -> None:
        now = self._clock.now()
        self._began = now if self._began is None else self._began
        self.seconds = now - self._began

    def answer(self, finished: Finished) -> Answer:
        notice = "\n\n".join(self._notices)
        return Answer("".join(self._texts), notice, finished.reason, finished.usage, self._model, self._persona)


class Conversations:
    """Generates the answers of a channel one after the other."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        exchanges: Exchanges,
        settings: ChatSettings,
        choices: Choices,
        quotas: Quotas,
        clock: Clock,
        metrics: Metrics,
        files: Files,
        context: Context,
        model: Callable[[str | None], Engine] | None = None,
    ) -> None:
        """Answer with `engine`; `model` returns the engine that answers for a name of `[models.NAME]`."""
        self._engine = engine
        self._choices = choices
        self._quotas = quotas
        self._model = model or (lambda name: engine)
        self._store = store
        self._exchanges = exchanges
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._files = files
        self._context = context
        self._counts = TurnCounts()

    async def answer(self, worker: Worker, stream: ReplyStream) -> Finished:
        """Answer a question when its turn comes, store the answer, and return how it ended.

        Faults of the engine and the store become a sentence for the author.  If this is
        cancelled, nothing is stored: the exchange stays open.
        """
        draft = _Draft(stream, self._clock)
        translate = self._settings.translator_for(worker.exchange.message)
        try:
            try:
                await self._retried(worker, lambda: self._read_files(worker))
                settings = self._settings.at(worker.exchange.message)
                count = settings.conversation.context_messages
                is_read = await self._retried(worker, lambda: self._context.read(worker, count))
                if not (worker.is_stopped or is_read):
                    draft.note(translate("I could not read what was said before your question."))
                while not worker.is_stopped and (position := self._exchanges.queues.position(worker)):
                    draft.queued(Queued(position))
                    await worker.wait_for_position()
                finished = await self._generate(worker, draft, translate)
            except (EngineError, NothingToAsk, StoreError) as error:
                log.warning("exchange failed", exchange=worker.exchange.id, error=type(error).__name__)
                draft.note(self._explain(error, translate))
                is_refusal = isinstance(error, EngineBusy | PromptTooLong | NothingToAsk)
                finished = REFUSED if is_refusal else Finished(FinishReason.ERROR)
            await self._quotas.record_answer(worker, draft.answer(finished), draft.seconds)
            return finished
        finally:
            self._quotas.leave(worker)
            self._exchanges.queues.leave(worker)

    async def _retried(self, worker: Worker, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `attempt`, which is repeated while the database cannot be used.

        The question is stored and people wait for its answer; a sentence in its place would be final.

        Raises:
            StoreError: The worker was stopped, the database is damaged or lost, or it cannot be used for `_OUTAGE`.
        """
        until = self._clock.now() + _OUTAGE
        report = log_retry("question waits for the database")

        def go_on(error: BotError, seconds: float) -> None:
            if isinstance(error, StoreDamaged | StoreLost) or worker.is_stopped or self._clock.now() >= until:
                raise error
            report(error, seconds)

        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        return await retry(
            attempt, StoreError, clock=self._clock, backoff=backoff, on_failure=go_on, stopped=worker.wait_stopped
        )

    async def _read_files(self, worker: Worker) -> None:
        """Fetch and read the files of the message, while earlier questions of the channel are answered."""
        message = worker.exchange.message
        if not any(is_unread(file, sees=True) for file in message.whole.files):
            return
        most = await self.most_pictures(message)
        if not any(is_unread(file, sees=most > 0) for file in message.whole.files):
            return
        reading = asyncio.create_task(self._files.read_all(message, most_pictures=most), name="files")
        await race(reading, worker.wait_stopped())
        if not reading.cancelled():
            await self._exchanges.record_files(worker, *reading.result())

    async def most_pictures(self, message: IncomingMessage) -> int:
        """Return how many pictures the model for a message sees at once.

        Raises:
            EngineUnavailable: There is none.
            StoreError: The settings of its place cannot be read.
        """
        await self._choices.load()
        return self._model(self._settings.at(message).model).info.most_pictures

    def _explain(self, error: EngineError | NothingToAsk | StoreError, translate: Translate) -> str:
        if isinstance(error, NothingToAsk) and error.files:
            return "\n\n".join(unread_notices(error.files, self._settings.files.max_megabytes, translate))
        return _sentence(error, translate)

    async def _generate(self, worker: Worker, draft: _Draft, translate: Translate) -> Finished:
        refusals = 0
        while not worker.is_stopped:
            worker.prompt_in_doubt.clear()
            worker.is_interrupted = False
            prompt, settings = await self._retried(
                worker, lambda: self._exchanges.read_undeleted(lambda: self._prompt(worker))
            )
            refusal = await self._retried(
                worker, partial(self._quota_refusal, worker, prompt, settings, draft, translate)
            )
            if refusal:
                self._metrics.refusals.labels("question").inc()
                draft.note(refusal)
                return REFUSED
            if worker.prompt_in_doubt.is_set():
                continue  # the answer had to wait, and the prompt may hold a text that was deleted meanwhile
            try:
                finished = await self._run_model(worker, prompt, settings, draft, translate)
            except PromptTooLong:
                # The prompt was cut to the context: since then the model was replaced, or its tokens counted better.
                refusals += 1
                if refusals >= _MOST_REFUSALS or draft.has_begun:
                    raise
            except PicturesRefused as error:
                if draft.has_begun or error.most >= sum(len(message.pictures) for message in prompt.messages):
                    raise
                worker.most_pictures = error.most
            except EngineBusy:
                # After an outage more may be owed than the engine's queue holds.
                if not worker.is_backlog:
                    raise
                await race(self._clock.sleep(_BUSY_SECONDS), worker.wait_stopped())
            else:
                if finished is not None:
                    return finished
        return Finished(FinishReason.CANCELLED)  # perhaps before the files of the prompt were read

    async def _quota_refusal(
        self, worker: Worker, prompt: Prompt, settings: ChatSettings, draft: _Draft, translate: Translate
    ) -> str | None:
        """Wait until the quotas have room for the answer, and return a sentence if one is used up by then."""
        if not self._settings.quotas:
            return None
        # A fallback may answer in place of the model.
        context = max(each.info.context_length for each in (self._engine, self._model(settings.model)))
        longest = min(settings.params.max_tokens or context, max(0, context - prompt.tokens))
        most = UsageSum(1, prompt.tokens, longest, round(settings.answer_seconds * 1000))
        return await self._quotas.enter(worker, most, translate, draft.queued)

    async def _run_model(
        self, worker: Worker, prompt: Prompt, settings: ChatSettings, draft: _Draft, translate: Translate
    ) -> Finished | None:
        """Pass the engine's events on until they end, the worker is stopped, or the time is over.

        None if the prompt had to change before the first text.
        """
        if worker.is_stopped:
            return Finished(FinishReason.CANCELLED)
        exchange = worker.exchange
        draft.sign(settings.model, settings.persona)
        request = ChatRequest(
            prompt.messages,
            replace(settings.params, seed=exchange.seed),
            channel=str(exchange.message.channel),
            user=exchange.message.author.key,
            model=settings.model,
        )
        limit = self._settings.files.max_megabytes
        unread = unread_notices(prompt.files, limit, translate) if prompt.files else []
        notices = [*prompt.notices(translate), *unread]
        # The engine counts what it finishes; of a generation that is cut off, a delta is about a token, also one of
        # the reasoning.  A request that still waits in the engine's queue has used nothing.
        began, outcome, deltas, thoughts, is_waiting = self._clock.now(), "closed", 0, 0, False
        thinking_since: float | None = None
        guard = asyncio.create_task(self._interrupt_if_changed(worker, prompt), name="prompt guard")
        try:
            async with worker.generating(), aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    is_waiting = isinstance(event, Queued)
                    if isinstance(event, Queued):
                        draft.queued(event)
                        continue
                    if isinstance(event, Fallback):
                        draft.sign(event.model, settings.persona)
                        cut = replace(prompt, left_out=prompt.left_out + (event.left_out + 1) // 2)
                        answered_by = translate("Answered by {model}.").format(model=event.model)
                        unseen = mark_unseen(prompt.files, self._model(event.model).info.most_pictures)
                        unread = unread_notices(unseen, limit, translate)
                        notices = [*cut.notices(translate), *unread, answered_by]
                        continue
                    if worker.is_interrupted:
                        return None
                    if isinstance(event, Thought):
                        thoughts += 1
                        if thinking_since is None:
                            thinking_since = self._clock.now()
                            worker.limit(settings.answer_seconds)
                        text = event.text if settings.conversation.show_thoughts else ""
                        draft.think(Thought(text, self._clock.now() - thinking_since))
                        continue
                    # From the first text on the answer goes on: people have read it, and it is no quotation.
                    guard.cancel()
                    for notice in notices:
                        draft.note(notice)
                    notices = []
                    if prompt.context is not None and not prompt.is_context_told:
                        with suppress(StoreError):
                            await self._store.record_context_told(worker.exchange.message.channel)
                    if prompt.left_out and not prompt.is_told:
                        with suppress(StoreError):  # it is told again
                            await self._store.record_shortening(worker.exchange.message.channel)
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                        return event
                    if not deltas:
                        self._metrics.first_token.observe(self._clock.now() - began)
                    if not deltas and thinking_since is None:
                        worker.limit(settings.answer_seconds)
                    deltas += 1
                    draft.extend(event.text)
                    if deltas >= _LOOP_DELTAS and draft.is_in_loop(prompt.messages[-1].content):
                        outcome = "loop"
                        draft.note(translate("(The answer was ended here: it repeated itself.)"))
                        return Finished(FinishReason.STOP, Usage(prompt.tokens, thoughts + deltas))
        except TimeoutError:
            if worker.is_interrupted and not worker.is_stopped:
                return None
            reason = worker.cut_off_reason()
            return Finished(reason, Usage() if is_waiting else Usage(prompt.tokens, thoughts + deltas))
        except EngineError as error:
            outcome = engine_outcome(error)
            raise
        finally:
            guard.cancel()
            self._metrics.requests.labels(outcome).inc()
        raise AssertionError("the events of an engine end with Finished")

    async def _interrupt_if_changed(self, worker: Worker, prompt: Prompt) -> None:
        """Interrupt the worker once a deletion or an edit has changed its prompt.

        While a request waits, for its turn or for another model, it holds the text of its prompt.
        """
        while True:
            await worker.prompt_in_doubt.wait()
            worker.prompt_in_doubt.clear()
            try:
                now, _ = await self._exchanges.read_undeleted(lambda: self._prompt(worker))
            except BotError:
                break  # met again when the prompt is read for the next request
            if now.messages != prompt.messages:
                break
        worker.interrupt()

    async def _prompt(self, worker: Worker) -> tuple[Prompt, ChatSettings]:
        """Build the prompt of now, and return it with the settings of now: a deletion may have taken a persona."""
        await self._choices.load()
        settings = self._settings.at(worker.exchange.message)
        turns, is_own = settings.conversation.history_turns, settings.has_own_history
        engine = self._model(settings.model)
        pictures = engine.info.most_pictures
        history = await self._store.history(worker.exchange, turns, is_own=is_own, pictures=pictures)
        if history.now.status is Status.CLEARED:
            worker.is_deleted = True  # it was claimed after the deletion had looked for workers
            worker.stop()
            return Prompt(()), settings
        # Tokenising a book would block the event loop.
        prompt = await asyncio.to_thread(build_prompt, history, settings, engine, self._counts, worker.most_pictures)
        if prompt.context is None:
            return prompt, settings
        is_told = await self._store.is_context_told(worker.exchange.message.channel)
        return replace(prompt, is_context_told=is_told), settings


def _sentence(error: EngineError | NothingToAsk | StoreError, translate: Translate) -> str:
    match error:
        case EngineBusy():
            return translate("The queue is full. Please ask again in {minutes} min.").format(
                minutes=max(1, math.ceil((error.wait or 0) / 60))
            )
        case PromptTooLong():
            return translate("Your message is too long: {tokens} tokens, the limit is {limit}.").format(
                tokens=error.tokens, limit=error.limit
            )
        case NothingToAsk():
            return translate("The message you refer to was deleted, and yours has no other text.")
        case AnswerBrokenOff():
            return translate("(The answer broke off here: the model server failed.)")
        case StoreError():
            return translate("My database has a problem, so I cannot answer now. Please try again later.")
        case _:
            return translate("Something went wrong while I was answering. Please try again.")

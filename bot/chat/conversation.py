"""Answer questions with the model: history, prompt, generation."""

import asyncio
import bisect
import math
from contextlib import aclosing
from dataclasses import replace

import structlog

from bot.chat.exchanges import Exchanges, Worker
from bot.chat.i18n import Translate
from bot.chat.settings import ChatSettings
from bot.chat.stream import ReplyStream
from bot.domain import (
    Answer,
    ChatMessage,
    ChatRequest,
    Delta,
    Finished,
    FinishReason,
    IncomingMessage,
    Notice,
    Queued,
    Status,
    Usage,
)
from bot.engine.base import Engine
from bot.errors import EngineBusy, EngineError, PromptTooLong, StoreError
from bot.observability.metrics import Metrics, engine_outcome
from bot.storage.base import Store
from bot.util.clock import Clock
from bot.util.text import replace_surrogates

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Draft:
    """The answer so far, stored at the end; each addition is shown at once."""

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream
        self._texts: list[str] = []
        self._notices: list[str] = []

    def extend(self, text: str) -> None:
        text = replace_surrogates(text)
        self._texts.append(text)
        self._stream.put(Delta(text))

    def note(self, sentence: str) -> None:
        self._notices.append(sentence)
        self._stream.put(Notice(sentence))

    def queued(self, event: Queued) -> None:
        self._stream.put(event)

    def answer(self, finished: Finished) -> Answer:
        return Answer("".join(self._texts), "\n\n".join(self._notices), finished.reason, finished.usage)


class Conversations:
    """Generates the answers of a channel one after the other."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        exchanges: Exchanges,
        settings: ChatSettings,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._store = store
        self._exchanges = exchanges
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def answer(self, worker: Worker, stream: ReplyStream) -> Finished:
        """Answer a question when its turn comes, store the answer, and return how it ended.

        Faults of the engine and the store become a sentence for the author.  If this is
        cancelled, nothing is stored: the exchange stays open.
        """
        draft = _Draft(stream)
        translate = self._settings.translator_for(worker.exchange.message)
        try:
            while not worker.is_stopped and (position := self._exchanges.position(worker)):
                draft.queued(Queued(position))
                await worker.wait_for_position()
            try:
                finished = await self._generate(worker, draft, translate)
            except (EngineError, StoreError) as error:
                log.warning("exchange failed", exchange=worker.exchange.id, error=type(error).__name__)
                draft.note(_sentence(error, translate))
                finished = Finished(FinishReason.ERROR)
            await self._exchanges.record_answer(worker.exchange, draft.answer(finished))
            return finished
        finally:
            self._exchanges.leave_channel(worker)

    async def _generate(self, worker: Worker, draft: _Draft, translate: Translate) -> Finished:
        while True:
            messages, left_out = await self._exchanges.read_undeleted(lambda: self._prompt(worker))
            model = self._engine.info
            sentence = translate("The oldest turns of this conversation were left out: {count}.")
            try:
                return await self._run_model(
                    worker, messages, draft, sentence.format(count=left_out) if left_out else ""
                )
            except PromptTooLong:
                # The model may have been replaced since the prompt was cut to its context.
                if self._engine.info == model:
                    raise

    async def _run_model(
        self, worker: Worker, messages: tuple[ChatMessage, ...], draft: _Draft, notice: str
    ) -> Finished:
        """Pass the engine's events on until they end, the worker is stopped, or the time is over."""
        if worker.is_stopped:
            return Finished(FinishReason.CANCELLED)
        exchange = worker.exchange
        request = ChatRequest(
            messages,
            replace(self._settings.params, seed=exchange.seed),
            channel=str(exchange.message.channel),
            user=exchange.message.author.key,
        )
        began, outcome, deltas = self._clock.now(), "closed", 0
        try:
            async with worker.generating(), aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Queued):
                        draft.queued(event)
                        continue
                    if notice:
                        draft.note(notice)
                        notice = ""
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                        return event
                    if not deltas:
                        self._metrics.first_token.observe(self._clock.now() - began)
                        worker.limit(self._settings.answer_seconds)
                    deltas += 1
                    draft.extend(event.text)
        except TimeoutError:
            reason = worker.cut_off_reason()
            # The engine counts what it finishes; of a generation that was cut off, a delta is about a token.
            return Finished(reason, Usage(self._engine.count_tokens(messages), deltas))
        except EngineError as error:
            outcome = engine_outcome(error)
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()
        raise AssertionError("the events of an engine end with Finished")

    async def _prompt(self, worker: Worker) -> tuple[tuple[ChatMessage, ...], int]:
        """Return the messages for the model, and how many older turns did not fit."""
        conversation = self._settings.conversation
        history = await self._store.history(worker.exchange, conversation.history_turns)
        exchange = history.now
        if exchange.status is Status.CLEARED:
            worker.stop()  # it was claimed after the deletion had looked for workers
            return (), 0
        opening = [ChatMessage("system", conversation.system_prompt)] if conversation.system_prompt else []
        turns = [
            (ChatMessage("user", self._spoken(past.message)), ChatMessage("assistant", past.answer.text))
            for past in history.exchanges
            if past.answer is not None
        ]
        question = ChatMessage("user", self._spoken(exchange.message))

        def without(oldest: int) -> tuple[ChatMessage, ...]:
            return (*opening, *(message for turn in turns[oldest:] for message in turn), question)

        context = self._engine.info.context_length
        # A small context is shared evenly, however much is reserved for the answer.
        room = context - min(conversation.answer_tokens, context // 2)

        def fewest_left_out() -> int:
            needed = self._engine.count_tokens(without(len(turns)))
            if needed >= context:
                raise PromptTooLong(needed, context)
            return bisect.bisect_left(
                range(len(turns)), True, key=lambda oldest: self._engine.count_tokens(without(oldest)) <= room
            )

        # Tokenising a book would block the event loop.
        left_out = await asyncio.to_thread(fewest_left_out)
        return without(left_out), history.older + left_out

    def _spoken(self, message: IncomingMessage) -> str:
        """Return what the model reads: the speaker where there are several, the quotation, the text."""
        text = message.text
        if self._settings.conversation.name_speakers and not message.is_direct:
            text = f"{message.author.name}: {text}"
        if message.quoted:
            quoted = "\n".join(f"> {line}" for line in message.quoted.splitlines())
            text = f"{quoted}\n\n{text}"
        return text


def _sentence(error: EngineError | StoreError, translate: Translate) -> str:
    match error:
        case EngineBusy():
            return translate("Too many people are waiting for me just now. Please ask again in {minutes} min.").format(
                minutes=max(1, math.ceil((error.wait or 0) / 60))
            )
        case PromptTooLong():
            return translate("Your message is too long: {tokens} tokens, the limit is {limit}.").format(
                tokens=error.tokens, limit=error.limit
            )
        case StoreError():
            return translate("My database has a problem, so I cannot answer now. Please try again later.")
        case _:
            return translate("Something went wrong while I was answering. Please try again.")

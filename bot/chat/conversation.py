"""Each channel's conversation: whose turn it is, what the model is shown, how it ends."""

import asyncio
import bisect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from bot.chat.i18n import Translate, translator_for
from bot.chat.lines import Lines, Turn
from bot.config.schema import ConversationSection
from bot.domain import (
    Answer,
    ChannelKey,
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    Exchange,
    Finished,
    FinishReason,
    IncomingMessage,
    Notice,
    Queued,
    QueueDepth,
    ReplyEvent,
    SamplingParams,
    Status,
    Usage,
)
from bot.engine.base import Engine
from bot.errors import EngineBusy, EngineError, PromptTooLong, StoreError
from bot.observability.metrics import Metrics, engine_outcome
from bot.storage.base import Store
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import retry_until_stored
from bot.util.text import replace_surrogates

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Conversations:
    """Answers the exchanges of a channel one after the other, in the order of their rows."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        settings: ConversationSection,
        params: SamplingParams,
        *,
        answer_seconds: float,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._params = params
        self._answer_seconds = answer_seconds
        self._clock = clock or MonotonicClock()
        self._metrics = metrics or Metrics()
        self._lines = Lines()
        self._deletions = 0  # ever begun
        self._deleting = 0  # under way
        self._nothing_is_deleted = asyncio.Event()
        self._nothing_is_deleted.set()

    def reconfigure(self, settings: ConversationSection, params: SamplingParams, *, answer_seconds: float) -> None:
        """Answer by these settings from the next prompt on."""
        self._settings = settings
        self._params = params
        self._answer_seconds = answer_seconds

    def expect(self, exchange: Exchange) -> None:
        """Take a place in the channel's line; `reply` or `dismiss` must follow.

        Places go by the row, not by who comes to `reply` first.
        """
        self._lines.join(exchange)

    def dismiss(self, exchange: Exchange) -> None:
        """Give the place up."""
        self._lines.leave(self._lines.turn(exchange))

    def awaits(self, exchange: Exchange) -> bool:
        """Whether it has a place in its line."""
        return self._lines.find(exchange) is not None

    def active(self, channel: ChannelKey) -> list[Exchange]:
        """The exchanges here that wait or are being answered, in order."""
        return [turn.exchange for turn in self._lines.of(channel)]

    def standing(self, exchange: Exchange) -> QueueDepth:
        """What came before this exchange and is not answered yet; a retry comes when it is asked for."""
        return self._lines.standing(exchange)

    async def reply(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        """Answer an expected exchange: keep the answer, then tell that it is finished.

        What goes wrong on the way becomes a sentence for the asker.  Whoever closes
        the generator early leaves the exchange open: it is owed, not answered.
        """
        turn = self._lines.turn(exchange)
        try:
            while (position := self._lines.position(turn)) and not turn.is_stopped:
                yield Queued(position)
                await turn.movement()
            async with aclosing(self._answer(turn)) as events:
                async for event in events:
                    yield event
        finally:
            self._lines.leave(turn)

    def stop(self, exchange: Exchange) -> bool:
        """End its generation, running or still waiting; the partial answer is kept."""
        turn = self._lines.find(exchange)
        if turn is None:
            return False
        turn.stop()
        return True

    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        """Forget what was said here, a channel's threads included; return how much.

        With `before`, only what was said before that exchange.  What is being answered is
        stopped and not kept.
        """

        def goes(exchange: Exchange) -> bool:
            key = exchange.message.channel
            is_here = key == channel or (channel.thread is None and replace(key, thread=None) == channel)
            return is_here and (before is None or exchange.id < before.id)

        async with self._deletion(goes):
            return await self._store.clear(channel, before)

    async def forget(self, by: Exchange) -> int:
        """Forget all that its author said before this exchange, wherever; return how much.

        What is being answered to them is stopped and not kept.
        """
        author = by.message.author
        async with self._deletion(lambda past: past.message.author.key == author.key and past.id < by.id):
            return await self._store.forget(author, by)

    async def reopen(self, exchange: Exchange, text: str | None = None) -> Exchange | None:
        """Open an exchange again, to be answered anew, or with a new text; None if it was cleared."""
        turn = self._lines.find(exchange)
        if turn is not None:
            turn.stop()
            await turn.left.wait()
        if text is None:
            return await self._store.requeue(exchange.id)
        async with self._deletion(lambda past: past.id == exchange.id):
            return await self._store.requeue(exchange.id, text)

    async def erase(self, exchange: Exchange) -> None:
        """Forget one exchange: its message was deleted."""
        async with self._deletion(lambda past: past.id == exchange.id):
            await self._store.erase(exchange.id)

    @asynccontextmanager
    async def _deletion(self, goes: Callable[[Exchange], bool]) -> AsyncIterator[None]:
        """Stop answering what goes; until it is gone, no prompt is made that could still hold it."""
        self._deletions += 1
        self._deleting += 1
        self._nothing_is_deleted.clear()
        for turn in self._lines:
            if goes(turn.exchange):
                turn.stop()
        try:
            yield
        finally:
            self._deleting -= 1
            if not self._deleting:
                self._nothing_is_deleted.set()

    async def _answer(self, turn: Turn) -> AsyncGenerator[ReplyEvent, None]:
        exchange = turn.exchange
        translate = translator_for(exchange.message, self._settings.language)
        text: list[str] = []
        notices: list[str] = []
        finished = Finished(FinishReason.CANCELLED)
        try:
            async with aclosing(self._generated(turn)) as events:
                async for event in events:
                    match event:
                        case Delta():
                            said = replace_surrogates(event.text)
                            text.append(said)
                            yield Delta(said)
                        case Queued():
                            yield event
                        case LeftOut(count):
                            notices.append(
                                translate("The oldest turns of this conversation were left out: {count}.").format(
                                    count=count
                                )
                            )
                            yield Notice(notices[-1])
                        case Finished():
                            finished = event
                        case _:
                            assert_never(event)
        except (EngineError, StoreError) as error:
            log.warning("exchange failed", exchange=exchange.id, error=type(error).__name__)
            finished = Finished(FinishReason.ERROR)
            notices.append(_sentence(error, translate))
            yield Notice(notices[-1])
        answer = Answer("".join(text), "\n\n".join(notices), finished.reason, finished.usage)
        await retry_until_stored(lambda: self._store.record_answer(exchange.id, answer), self._clock)
        yield finished

    async def _generated(self, turn: Turn) -> AsyncGenerator["EngineEvent | LeftOut", None]:
        """The events of a prompt made for the model that answers it, even if that is another by then."""
        while True:
            messages, left_out = await self._prompt_without_deleted(turn)
            info = self._engine.info
            try:
                async with aclosing(self._generate(turn, messages)) as events:
                    async for event in events:
                        if left_out and not isinstance(event, Queued):
                            yield LeftOut(left_out)
                            left_out = 0
                        yield event
                return
            except PromptTooLong:
                if self._engine.info == info:
                    raise

    async def _generate(self, turn: Turn, messages: tuple[ChatMessage, ...]) -> AsyncGenerator[EngineEvent, None]:
        """The engine's events until they end, or until the turn is stopped; always one `Finished`."""
        if turn.is_stopped:  # while it waited for its turn
            yield Finished(FinishReason.CANCELLED)
            return
        request = ChatRequest(
            messages,
            replace(self._params, seed=turn.exchange.seed),
            channel=str(turn.exchange.message.channel),
            user=turn.exchange.message.author.key,
        )
        deltas = 0
        began, outcome = self._clock.now(), "closed"
        timer: asyncio.TimerHandle | None = None
        try:
            async with aclosing(self._engine.generate(request)) as generated:
                while event := await turn.unless_stopped(generated):
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                    if isinstance(event, Delta) and not deltas:
                        self._metrics.first_token.observe(self._clock.now() - began)
                    yield event
                    match event:
                        case Delta():
                            deltas += 1
                            timer = timer or asyncio.get_running_loop().call_later(self._answer_seconds, turn.time_out)
                        case Finished():
                            return
        except EngineError as error:
            outcome = engine_outcome(error)
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()
            if timer is not None:
                timer.cancel()
        reason = FinishReason.LENGTH if turn.is_late else FinishReason.CANCELLED
        # The engine counts what it finishes; of what was stopped, a delta is about a token.
        yield Finished(reason, Usage(self._engine.count_tokens(messages), deltas))

    async def _prompt_without_deleted(self, turn: Turn) -> tuple[tuple[ChatMessage, ...], int]:
        """A prompt that no deletion overtook: one made while something was deleted may hold it."""
        while True:
            await self._nothing_is_deleted.wait()
            deletions = self._deletions
            prompt = await self._prompt(turn)
            if deletions == self._deletions:
                return prompt

    async def _prompt(self, turn: Turn) -> tuple[tuple[ChatMessage, ...], int]:
        """The messages for the model, and how many older turns did not fit; stops the turn if it was cleared."""
        history = await self._store.history(turn.exchange, self._settings.history_turns)
        exchange = history.now
        if exchange.status is Status.CLEARED:
            # It was kept before a deletion, and took its place in the line after it.
            turn.stop()
            return (), 0
        opening = [ChatMessage("system", self._settings.system_prompt)] if self._settings.system_prompt else []
        turns = [
            (ChatMessage("user", self._spoken(past.message)), ChatMessage("assistant", past.answer.text))
            for past in history.exchanges
            if past.answer is not None
        ]
        question = ChatMessage("user", self._spoken(exchange.message))

        def without(oldest: int) -> tuple[ChatMessage, ...]:
            return (*opening, *(message for turn in turns[oldest:] for message in turn), question)

        context = self._engine.info.context_length
        # A small context is shared evenly, however much is asked for the answer.
        room = context - min(self._settings.answer_tokens, context // 2)

        def fewest_left_out() -> int:
            needed = self._engine.count_tokens(without(len(turns)))
            if needed >= context:
                raise PromptTooLong(needed, context)
            return bisect.bisect_left(
                range(len(turns)), True, key=lambda oldest: self._engine.count_tokens(without(oldest)) <= room
            )

        # Counting is quick for a turn and slow for a book; the event loop must not wait for a book.
        left_out = await asyncio.to_thread(fewest_left_out)
        return without(left_out), history.older + left_out

    def _spoken(self, message: IncomingMessage) -> str:
        """What the model reads of a message: who spoke, where several do, and what they quoted."""
        text = message.text
        if self._settings.name_speakers and not message.is_direct:
            text = f"{message.author.name}: {text}"
        if message.quoted:
            quoted = "\n".join(f"> {line}" for line in message.quoted.splitlines())
            text = f"{quoted}\n\n{text}"
        return text


@dataclass(frozen=True, slots=True)
class LeftOut:
    """So many of the oldest turns did not fit the prompt."""

    count: int


def _sentence(error: EngineError | StoreError, translate: Translate) -> str:
    match error:
        case EngineBusy():
            return translate("Too many people are waiting for me just now. Please ask again in {minutes} min.").format(
                minutes=max(1, math.ceil((error.wait or 0) / 60))
            )
        case PromptTooLong():
            return translate("Your message takes {tokens} tokens, and I can read {limit}. Please shorten it.").format(
                tokens=error.tokens, limit=error.limit
            )
        case StoreError():
            return translate("My database has a problem, so I cannot answer now. Please try again later.")
        case _:
            return translate("Something went wrong while I was answering. Please try again.")

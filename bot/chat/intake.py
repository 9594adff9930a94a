"""The front door of every adapter: what is kept, and who answers it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never
from weakref import WeakValueDictionary

import structlog

from bot.chat.access import Access
from bot.chat.commands import Call, is_forget, is_retry, parse
from bot.chat.conversation import Conversations
from bot.chat.hands import Hands
from bot.chat.i18n import Translate, translator_for
from bot.config.reload import ConfigWatcher
from bot.config.schema import ConversationSection
from bot.domain import (
    Action,
    Answer,
    Author,
    ChannelKey,
    Delta,
    Exchange,
    Finished,
    FinishReason,
    IncomingMessage,
    Kind,
    Notice,
    QueueDepth,
    ReplyEvent,
    Status,
)
from bot.engine.base import Engine
from bot.errors import StoreError
from bot.observability.metrics import Metrics
from bot.storage.base import Store
from bot.util.clock import Calendar, Clock, MonotonicClock
from bot.util.retry import retry_until_stored
from bot.util.text import clean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ButtonResult:
    """What came of a button: an exchange to answer anew, or a sentence for who pressed it."""

    again: Exchange | None = None
    notice: str = ""


class Intake:
    """Keeps messages, then has them answered by a command or by the conversation."""

    def __init__(
        self,
        access: Access,
        conversations: Conversations,
        engine: Engine,
        store: Store,
        settings: ConversationSection,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Clock | None = None,
        live: ConfigWatcher | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._access = access
        self._conversations = conversations
        self._engine = engine
        self._store = store
        self._settings = settings
        self._live = live
        self._clock = clock or MonotonicClock()
        self._calendar = Calendar(self._clock, today)
        self._hands = Hands()
        self._one_at_a_time = asyncio.Lock()
        self._owed: set[int] = set()
        self._without_trace: set[int] = set()
        self._reopening: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._counted: set[int] = set()  # what was let through before its old answer was given up

    def reconfigure(self, settings: ConversationSection) -> None:
        """Go by these settings from now on."""
        self._settings = settings

    async def accept(self, message: IncomingMessage) -> Exchange | None:
        """Keep the message; None if it is a duplicate or not for us.

        When this returns, the platform may be told that the message arrived: whatever
        happens next, it is answered or it is owed.  `handle` must follow for what is
        returned: a retry returns the exchange that is to be answered again.
        """
        with self._hands.reaching(message):
            exchange = await self._kept(message)
            if exchange is None:
                return None
            return await self._called_back(exchange) if _calls_back(exchange) else self._taken_up(exchange)

    def admits(self, message: IncomingMessage) -> bool:
        """Whether the message is for us; one that is not gets no reply of any kind."""
        return self._access.admits(message)

    async def store(self, message: IncomingMessage) -> None:
        """Keep a message that was missed; `owed` then returns it with all the others."""
        await self._kept(message)

    async def recover(self, platform: str) -> list[Exchange]:
        """What a crash or a time away left undone; `handle` must follow for each.

        Questions older than `catch_up_minutes` whose reply had not begun are not answered any
        more: in each channel the newest gets a notice, which settles them all.
        """
        async with self._one_at_a_time:
            await self._settle(await self._hands.free(self._store.owed(platform)))
            # All that has to be waited for is done: from the rows to their places in the line it is one step.
            owed = [self._taken_up(exchange) for exchange in await self._hands.free(self._store.owed(platform))]
            self._owed.update(exchange.id for exchange in owed)
            return owed

    async def edit(self, message: IncomingMessage) -> Exchange | None:
        """Take the new text of a question; return the exchange to be answered anew, in place."""
        with self._hands.reaching(message):
            return await self._changed(message, self._taken_up)

    async def store_edit(self, message: IncomingMessage) -> None:
        """Keep the new text of a question while others may be missing; `owed` then returns it in its place."""
        with self._hands.reaching(message):
            await self._changed(message, self._freed)

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        """Forget a message that its author took back, and stop answering it."""
        exchange = await self._store.find(channel, message_id)
        if exchange is not None:
            await self._conversations.erase(exchange)

    async def on_button(
        self, channel: ChannelKey, message_id: str, action: Action, by: Author, *, later: bool = False
    ) -> ButtonResult:
        """Do what a button under one of the bot's messages says, if its presser may.

        With `later`, while others may be missing, what is to be answered anew is for `owed` to return.
        """
        exchange = await self._store.find_by_reply(channel, message_id)
        if exchange is None or not self._access.admits(replace(exchange.message, author=by)):
            return ButtonResult()
        translate = self.translator_for(exchange)
        if not self._access.may_control(by, exchange):
            return ButtonResult(notice=translate("Only the person who asked, and admins, may do that."))
        match action:
            case Action.STOP:
                self._conversations.stop(exchange)
                return ButtonResult()
            case Action.RETRY:
                if refusal := self._why_not_again(exchange):
                    return ButtonResult(notice=refusal)
                with self._hands.reaching(exchange.message):
                    async with self._alone_with(exchange):
                        reopened = await self._conversations.reopen(exchange)
                        if reopened is not None and later:
                            self._freed(reopened)
                            return ButtonResult()
                        return ButtonResult() if reopened is None else ButtonResult(again=self._taken_up(reopened))
            case _:
                assert_never(action)

    async def has_history(self, channel: ChannelKey) -> bool:
        """Whether the bot was spoken to here before: in a thread it then listens."""
        return await self._store.has_history(channel)

    async def rename_channel(self, channel: ChannelKey, to: str) -> None:
        """Take a channel's history along: its platform gave it another id."""
        if count := await self._store.rename_channel(channel, to):
            log.info("channel moved", channel=str(channel), to=to, exchanges=count)

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """The newest message known per channel: where catching up begins."""
        return await self._store.last_message_ids(platform)

    async def handle(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        """The reply to an exchange as it grows; it is kept before `Finished` is told."""
        channel = str(exchange.message.channel)
        log.info("exchange begins", exchange=exchange.id, kind=exchange.kind.value, channel=channel)
        if exchange.kind is Kind.COMMAND and is_forget(exchange):
            self._without_trace.add(exchange.id)
        platform, outcome = exchange.message.channel.platform, "broken_off"
        changes = self.metrics.reply_changes.labels(platform)
        try:
            async with aclosing(self._reply(exchange)) as events:
                async for event in events:
                    changes.inc()
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                        if exchange.answer is None:  # else it was counted when it was made
                            self._access.spend(exchange.message, event.usage)
                        log.info("exchange answered", exchange=exchange.id, reason=event.reason.value)
                    yield event
        finally:
            self.metrics.exchanges.labels(platform, exchange.kind.value, outcome).inc()

    def stop(self, exchange: Exchange) -> bool:
        """End its generation; the partial answer is kept."""
        return self._conversations.stop(exchange)

    async def reload(self, exchange: Exchange) -> Exchange | None:
        """The exchange as it is kept now; None if its channel has got another name."""
        message = exchange.message
        return await retry_until_stored(lambda: self._store.find(message.channel, message.id), self._clock)

    async def record_part(self, exchange: int, part: int, message_id: str) -> None:
        await self._store.record_part(exchange, part, message_id)

    async def complete(self, exchange: int) -> None:
        if exchange in self._without_trace:
            # At once instead of afterwards: a crash in between would leave it for ever.
            await retry_until_stored(lambda: self._store.erase(exchange), self._clock)
        else:
            await retry_until_stored(lambda: self._store.complete(exchange), self._clock)

    async def fail(self, exchange: int, why: str) -> None:
        if exchange in self._without_trace:
            await retry_until_stored(lambda: self._store.erase(exchange), self._clock)
        else:
            await retry_until_stored(lambda: self._store.fail(exchange, why), self._clock)

    def release(self, exchange: Exchange) -> None:
        """Who took this up works on it no more; if it is not done nor taken up anew, it is owed again."""
        if self._hands.let_go(exchange):
            self._owed.discard(exchange.id)
            self._without_trace.discard(exchange.id)

    def translator_for(self, exchange: Exchange) -> Translate:
        """The bot's own words in the asker's language."""
        return self.translator_for_author(exchange.message)

    def translator_for_author(self, message: IncomingMessage) -> Translate:
        return translator_for(message, self._settings.language)

    async def _kept(self, message: IncomingMessage) -> Exchange | None:
        message = _cleaned(message)
        if not self._access.admits(message):
            return None
        kind = Kind.COMMAND if parse(message.text) else Kind.CHAT
        return await self._store.enqueue(message, kind)

    async def _changed(self, message: IncomingMessage, then: Callable[[Exchange], Exchange]) -> Exchange | None:
        """Reopen the exchange of an edited question, and do `then` with it before anybody else reopens it."""
        message = _cleaned(message)
        known = await self._store.find(message.channel, message.id) if self._access.admits(message) else None
        if known is None or known.kind is not Kind.CHAT:
            return None
        async with self._alone_with(known):
            changed = await self._reopened(message)
            return None if changed is None else then(changed)

    async def _reopened(self, message: IncomingMessage) -> Exchange | None:
        """The exchange with its new text; answered as before, with a sentence why, if that is refused."""
        exchange = await self._store.find(message.channel, message.id)
        if exchange is None:
            return None
        if exchange.message.text == message.text:
            # Written down already by one who was told that it was not: nobody answers it yet.
            is_left = exchange.status is Status.OPEN and not self._conversations.awaits(exchange)
            return exchange if is_left else None
        refusal = self._why_not_again(replace(exchange, message=replace(exchange.message, text=message.text)))
        # Even so the old words go: whoever takes them out may have a reason.
        reopened = await self._conversations.reopen(exchange, message.text)
        if reopened is None or refusal is None or exchange.answer is None:
            return reopened  # without an answer to lose it is refused as a new question is
        answer = replace(exchange.answer, notice=refusal)
        await retry_until_stored(lambda: self._store.record_answer(exchange.id, answer), self._clock)
        return replace(reopened, status=Status.ANSWERED, answer=answer)

    async def _settle(self, owed: list[Exchange]) -> None:
        """Bring to an end what gets no reply or another one than it asked for; the rows say what is left.

        While nothing of it has a place in the line, a retry can wait for the answer that it calls back.
        """
        admitted = []
        for exchange in owed:
            # Who asked to be forgotten is, also if they were denied since.
            if self._access.admits(exchange.message) or is_forget(exchange):
                admitted.append(exchange)
            else:
                await self._store.fail(exchange.id, "not admitted any more")
        late = self._late(admitted)
        await self._settle_late(late)
        for exchange in admitted:
            if exchange not in late and _calls_back(exchange):
                await self._settle_retry(exchange)

    def _late(self, owed: list[Exchange]) -> list[Exchange]:
        """Those that nobody waits for any more; for one that was let through just now somebody does.

        A reply that stands in the channel already is finished however late: it may be one that is
        made anew for somebody, and an edit disturbs nobody.
        """
        oldest = self._calendar.today() - timedelta(minutes=self._settings.catch_up_minutes)
        return [
            exchange
            for exchange in owed
            if exchange.answer is None
            and not exchange.parts
            and exchange.message.sent_at < oldest
            and exchange.id not in self._counted
            and not is_forget(exchange)  # who asked for that need not ask again
        ]

    async def _settle_late(self, late: list[Exchange]) -> None:
        """Give a notice to the newest late question of a channel and settle the others with it."""
        # Threads count with their channel: where each question has a thread of its own, a storm would come.
        newest = {replace(exchange.message.channel, thread=None): exchange.id for exchange in late}
        for exchange in late:
            if exchange.id in newest.values():
                translate = self.translator_for(exchange)
                notice = translate("I was away, and this was some time ago. Please ask again if you like.")
                await self._store.record_answer(exchange.id, Answer("", notice, FinishReason.ERROR))
            else:
                await self._store.record_answer(exchange.id, Answer("", reason=FinishReason.ERROR))
                await self._store.complete(exchange.id)

    async def _settle_retry(self, retry: Exchange) -> None:
        """Have what it means answered again, once, together with all that is owed."""
        latest = await self._latest(retry)
        if latest is None:
            return  # then it says so itself
        if latest.status is Status.OPEN:
            await self._settle_silently(retry)  # it is yet to be answered
        else:
            async with self._alone_with(latest):
                self._freed(await self._answered_again(retry, latest))

    async def _called_back(self, retry: Exchange) -> Exchange:
        """The exchange that a retry reopens, in its place in the line; the retry itself if there is none to reopen."""
        latest = await self._latest(retry)
        if latest is None:
            return self._taken_up(retry)
        with self._hands.reaching(latest.message):
            async with self._alone_with(latest):
                return self._taken_up(await self._answered_again(retry, latest))

    async def _latest(self, retry: Exchange) -> Exchange | None:
        """The exchange that a retry means."""
        author, channel = retry.message.author, retry.message.channel
        asker = None if self._access.is_admin(author) else author
        # The row of the retry stands already: whoever gave up here would not come again.
        return await retry_until_stored(lambda: self._store.latest(channel, asker), self._clock)

    async def _answered_again(self, retry: Exchange, latest: Exchange) -> Exchange:
        """The reopened exchange; the retry if that is refused, or if `latest` was cleared meanwhile."""
        if refusal := self._why_not_again(latest):
            answer = Answer("", refusal, FinishReason.ERROR)
            await retry_until_stored(lambda: self._store.record_answer(retry.id, answer), self._clock)
            return replace(retry, status=Status.ANSWERED, answer=answer)
        reopened = await retry_until_stored(lambda: self._conversations.reopen(latest), self._clock)
        if reopened is None:
            return retry
        # The answer is the other reply, edited; the command itself says nothing.
        await self._settle_silently(retry)
        return reopened

    async def _settle_silently(self, exchange: Exchange) -> None:
        await retry_until_stored(lambda: self._store.record_answer(exchange.id, Answer("")), self._clock)
        await retry_until_stored(lambda: self._store.complete(exchange.id), self._clock)
        self._freed(exchange)

    def _taken_up(self, exchange: Exchange) -> Exchange:
        """Put it into somebody's hands, and a question into its place in the line."""
        if exchange.kind is Kind.CHAT and exchange.answer is None:
            self._conversations.expect(exchange)
        self._hands.take(exchange)
        return exchange

    def _freed(self, exchange: Exchange) -> Exchange:
        """Take it out of all hands: whoever still shows an older answer ends without it."""
        self._hands.free_up(exchange.id)
        self._owed.discard(exchange.id)
        self._without_trace.discard(exchange.id)
        return exchange

    def _alone_with(self, exchange: Exchange) -> asyncio.Lock:
        """For whoever opens an exchange again, until it has its place in the line: else it could have two."""
        return self._reopening.setdefault(exchange.id, asyncio.Lock())

    def _why_not_again(self, exchange: Exchange) -> str | None:
        """Why it is not answered again; asked before its answer is given up, for a refusal is no better one."""
        refusal = self._access.refusal(
            exchange.message, self.translator_for(exchange), self._conversations.standing(exchange)
        )
        if refusal is None:
            self._counted.add(exchange.id)
        else:
            self.metrics.refusals.labels("question").inc()
        return refusal

    def _reply(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        if exchange.answer is not None:
            return _again(exchange.answer)
        translate = self.translator_for(exchange)
        if exchange.kind is Kind.COMMAND:
            refusal = self._access.command_refusal(exchange.message, translate)
            return self._command(exchange) if refusal is None else self._refused(exchange, refusal, "command")
        if exchange.id in self._counted:
            self._counted.discard(exchange.id)
            return self._conversations.reply(exchange)
        # That several wait is not their fault who asked while we were away.
        standing = QueueDepth() if exchange.id in self._owed else self._conversations.standing(exchange)
        refusal = self._access.refusal(exchange.message, translate, standing)
        if refusal is None:
            return self._conversations.reply(exchange)
        self._conversations.dismiss(exchange)
        return self._refused(exchange, refusal, "question")

    async def _command(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        called = parse(exchange.message.text)
        assert called is not None, "an exchange of kind command calls one"
        command, args = called
        call = Call(
            exchange, args, self.translator_for(exchange), self._access, self._conversations, self._engine, self._live
        )
        notices: list[str] = []
        try:
            async with aclosing(command.run(call)) as events:
                async for event in events:
                    if isinstance(event, Notice):
                        notices.append(event.text)
                    yield event
        except StoreError as error:
            log.warning("command failed", exchange=exchange.id, error=str(error))
            notices.append(call.translate("My database has a problem, so I cannot answer now. Please try again later."))
            yield Notice(notices[-1])
        answer = Answer("", "\n\n".join(notices))
        await retry_until_stored(lambda: self._store.record_answer(exchange.id, answer), self._clock)
        yield Finished(FinishReason.STOP)

    async def _refused(self, exchange: Exchange, why: str, kind: str) -> AsyncGenerator[ReplyEvent, None]:
        self.metrics.refusals.labels(kind).inc()
        yield Notice(why)
        await retry_until_stored(
            lambda: self._store.record_answer(exchange.id, Answer("", why, FinishReason.ERROR)), self._clock
        )
        yield Finished(FinishReason.ERROR)


async def _again(answer: Answer) -> AsyncGenerator[ReplyEvent, None]:
    """An answer that was kept before it could be delivered."""
    if answer.text:
        yield Delta(answer.text)
    if answer.notice:
        yield Notice(answer.notice)
    yield Finished(answer.reason, answer.usage)


def _calls_back(exchange: Exchange) -> bool:
    """Whether it is a retry that nothing has come of yet."""
    return exchange.kind is Kind.COMMAND and exchange.answer is None and is_retry(exchange)


def _cleaned(message: IncomingMessage) -> IncomingMessage:
    return replace(
        message,
        text=clean(message.text),
        quoted=None if message.quoted is None else clean(message.quoted),
        author=replace(message.author, name=clean(message.author.name).replace("\n", " ")),
    )

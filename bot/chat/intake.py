"""Events of a platform, turned into exchanges: messages, edits, deletions, buttons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import assert_never

import structlog

from bot.chat.access import Access
from bot.chat.answers import Answers
from bot.chat.choices import Choices
from bot.chat.command_table import offers
from bot.chat.commands import is_open_retry, parse
from bot.chat.conversation import Conversations
from bot.chat.exchanges import Exchanges
from bot.chat.files import Files, cleaned, may_have_text, updated
from bot.chat.recovery import Recovery
from bot.chat.retries import Retries
from bot.chat.rights import Rights
from bot.chat.settings import ChatSettings
from bot.chat.standing import Standing, StandingReply
from bot.config.reload import ConfigWatcher
from bot.domain import Action, Author, ChannelKey, Exchange, IncomingMessage, Kind
from bot.engine.base import Engine
from bot.errors import ClaimLost
from bot.observability.health import Components
from bot.observability.metrics import Metrics
from bot.storage.base import Store
from bot.util.clock import Calendar, Clock, MonotonicClock
from bot.util.text import clean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ButtonResult:
    """Outcome of a button: an exchange to be answered again, or a sentence for its presser."""

    again: Exchange | None = None
    notice: str = ""


class Intake:
    """All events of an adapter; each exchange it returns must be shown with `Replies.start`.

    Each call returns when its effect is stored: then the platform may be told that the
    event arrived.  All of them may raise StoreError; the event must then come again.
    """

    def __init__(
        self,
        access: Access,
        engine: Engine,
        store: Store,
        settings: ChatSettings,
        *,
        clock: Clock | None = None,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
        metrics: Metrics | None = None,
        watcher: ConfigWatcher | None = None,
        components: Components | None = None,
        exchanges: Exchanges | None = None,
        model: Callable[[str | None], Engine] | None = None,
    ) -> None:
        """Build the chat; `model` returns the engine that answers for a name of `[models.NAME]`, if there are several."""
        clock, metrics = clock or MonotonicClock(), metrics or Metrics()
        self.access = access
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.exchanges = exchanges = exchanges or Exchanges(store, clock)
        self.files = Files(settings, clock)
        calendar = Calendar(clock, today)
        self.today = calendar.today
        self.rights = Rights(access)
        self._choices = choices = Choices(store, settings.rules, self.today)
        self.conversations = Conversations(
            engine, store, exchanges, settings, choices, clock, metrics, self.files, model
        )
        self.answers = Answers(
            access,
            exchanges,
            self.conversations,
            engine,
            settings,
            choices,
            self.rights,
            metrics,
            watcher,
            components,
        )
        self._store = store
        self._retries = Retries(access, exchanges, store, settings, clock, metrics)
        self._recovery = Recovery(access, exchanges, self._retries, settings, calendar)

    def admits(self, message: IncomingMessage) -> bool:
        """Return whether the message is for the bot; any other gets no reply at all."""
        return self.access.admits(message)

    async def accept(self, message: IncomingMessage) -> Exchange | None:
        """Store and claim a live message; None if it is a duplicate or not for the bot.

        A /retry returns the exchange that it requeues.
        """
        message = _cleaned(message)
        if not self.access.admits(message):
            return None
        exchange = await self.exchanges.enqueue(message, _kind(message))
        if exchange is None or not is_open_retry(exchange):
            return exchange
        try:
            return await self._retries.resolve(exchange, await self._retries.target(exchange))
        except ClaimLost:
            self.exchanges.release(exchange)
            return None  # the /retry was deleted meanwhile
        except BaseException:
            self.exchanges.release(exchange)
            raise

    async def store(self, message: IncomingMessage) -> None:
        """Store a message that was missed; `recover` then returns it with the others."""
        message = _cleaned(message)
        if self.access.admits(message):
            await self.exchanges.enqueue_backlog(message, _kind(message))

    async def recover(self, platform: str) -> list[Exchange]:
        """Claim what a crash or an outage left undone; return what is to be shown, in order."""
        return await self._recovery.recover(platform)

    def saw_date(self, platform: str, date: str) -> None:
        """Note a platform's time, an HTTP Date header; messages are not too old because the host's clock is ahead."""
        self._recovery.saw_date(platform, date)

    async def claim_owed(self, platform: str) -> list[Exchange]:
        """Claim what a crash or an outage left undone; each exchange is passed to `settle` or released."""
        return await self._recovery.claim(platform)

    def is_late(self, exchange: Exchange) -> bool:
        """Return whether an owed question is too old to be answered."""
        return self._recovery.is_late(exchange)

    async def settle(self, owed: Sequence[Exchange], standing: Standing) -> list[Exchange]:
        """Apply what their channels show; return exchanges to be shown, in order.

        If it fails, all of `owed` are released.
        """
        return await self._recovery.settle(owed, standing)

    async def edit(self, message: IncomingMessage) -> Exchange | None:
        """Take the new text of a message; return the exchange to be answered again, in place.

        None also for a message that has no exchange: if the edit calls the bot, `accept` it.
        Quotations of the message get the new text in any case.
        """
        message = _cleaned(message)
        known = await self._store.find(message.channel, message.id)
        if known is None:
            await self.exchanges.replace_quotes(message.channel, message.id, message.text)
            return None
        files = updated(known.message.files, message.files)
        if (known.message.text, known.message.files) == (message.text, files):
            # An earlier attempt may have stored the edit and lost the acknowledgement.
            return await self.exchanges.claim(known) if known.kind is Kind.CHAT else None
        if not self.access.admits(message):
            # Its author may have a reason to take the old text back, and gets no answer any more.
            await self.exchanges.delete_messages(message.channel, [message.id])
            return None
        refusal = self._retries.refusal(replace(known, message=replace(known.message, text=message.text)))
        # Even if it is refused, the old text goes.
        requeued = await self.exchanges.requeue(known, message.text, files, is_admitted=refusal is None)
        has_words = message.text.strip() or (known.message.quoted or "").strip() or may_have_text(known.message)
        if requeued is None or refusal is None or known.answer is None or not has_words or known.kind is not Kind.CHAT:
            return requeued
        try:
            return await self.exchanges.answer_with(requeued, replace(known.answer, notice=refusal))
        except ClaimLost:
            self.exchanges.release(requeued)
            return None  # the question was deleted meanwhile
        except BaseException:
            self.exchanges.release(requeued)
            raise

    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        """Let quotations of an edited message that is no question, such as an app's, have its new text."""
        await self.exchanges.replace_quotes(channel, message_id, clean(text))

    async def store_edit(self, message: IncomingMessage) -> None:
        """Take the new text of a question while others may be missing; `recover` then returns it."""
        if (exchange := await self.edit(message)) is not None:
            self.exchanges.postpone(exchange)

    async def store_change(self, known: Exchange, message: IncomingMessage, reply: StandingReply | None) -> None:
        """Take the text of a known message that was edited while events may have been lost.

        `reply` is the one that stands in the channel: after a restored backup it may be another
        than the row has, and answer the new text.
        """
        message = _cleaned(message)
        if known.kind is not Kind.CHAT or known.message.text == message.text:
            return
        is_answered = known.answer is not None and reply is not None and reply.answers_anew(known.answer)
        answer = reply.answer if reply is not None and is_answered else None
        if answer is None or not self.access.admits(message):
            await self.store_edit(message)
        elif (requeued := await self.exchanges.requeue(known, message.text)) is not None:
            await self.exchanges.settle(requeued, answer)

    async def delete(self, channel: ChannelKey, *message_ids: str, is_expected: bool = False) -> None:
        """Delete the exchanges of deleted messages and quotations of them, and stop answering them.

        A message that arrives later is ignored where the bot has exchanges in its channel, or
        with `is_expected`: for a message that `accept` would have been called with.
        """
        await self.exchanges.delete_messages(channel, message_ids, is_expected=is_expected)

    async def on_button(
        self, channel: ChannelKey, message_id: str, action: Action, by: Author, *, later: bool = False
    ) -> ButtonResult:
        """Carry out a button under one of the bot's messages, if its presser may.

        With `later`, while others may be missing, `recover` returns what is to be answered again.
        """
        exchange = await self._store.find_by_reply(channel, message_id)
        if exchange is None or not self.access.admits(replace(exchange.message, author=by)):
            return ButtonResult()
        if not self.access.may_control(by, exchange):
            translate = self.settings.translator_for(exchange.message)
            return ButtonResult(notice=translate("Only the person who asked, and admins, may do that."))
        match action:
            case Action.STOP:
                self.exchanges.stop(exchange)
                return ButtonResult()
            case Action.RETRY:
                if refusal := self._retries.refusal(exchange):
                    return ButtonResult(notice=refusal)
                requeued = await self.exchanges.requeue(exchange, is_admitted=True)
                if requeued is not None and later:
                    self.exchanges.postpone(requeued)
                    return ButtonResult()
                return ButtonResult(requeued)
            case _:
                assert_never(action)

    async def is_known(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the message has an exchange."""
        return await self._store.find(channel, message_id) is not None

    async def has_history(self, channel: ChannelKey) -> bool:
        """Return whether the bot was spoken to here before: in a thread it then listens."""
        return await self._store.has_history(channel)

    def offers(self, message: IncomingMessage) -> list[str]:
        """Return what may stand in place of the last word of a command that is being typed."""
        return offers(message.text, self.settings, message) if self.access.admits(message) else []

    async def rename_channel(self, channel: ChannelKey, to: str) -> None:
        """Move a channel's history and settings to the id that its platform gave it."""
        count = await self.exchanges.rename_channel(channel, to)
        await self._choices.reload()
        if count:
            log.info("channel moved", channel=str(channel), to=to, exchanges=count)

    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        """Return the platform's exchanges said at this time or later, to compare them with the channels."""
        return await self._store.said_since(platform, time)

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """Return the newest message known per channel: where a backfill begins."""
        return await self._store.last_message_ids(platform)


def _kind(message: IncomingMessage) -> Kind:
    return Kind.COMMAND if parse(message.text) else Kind.CHAT


def _cleaned(message: IncomingMessage) -> IncomingMessage:
    return replace(
        message,
        text=clean(message.text),
        quoted=None if message.quoted is None else clean(message.quoted),
        author=replace(message.author, name=clean(message.author.name).replace("\n", " ")),
        files=cleaned(message.files),
    )

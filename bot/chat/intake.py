"""Events of a platform, turned into exchanges: messages, edits, deletions, buttons."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import assert_never

import structlog

from bot.chat.access import RIGHTS_SECONDS, Access
from bot.chat.answers import Answers
from bot.chat.command_table import offers
from bot.chat.commands import called_by, is_open_retry
from bot.chat.context import Context
from bot.chat.continuation import Continuations, to_continuation
from bot.chat.conversation import Conversations
from bot.chat.exchanges import Exchanges
from bot.chat.feedback import Feedback
from bot.chat.files import Files, may_be_read, updated
from bot.chat.forms import Forms
from bot.chat.incoming import clean_message, used_by
from bot.chat.quotas import Quotas
from bot.chat.recovery import Recovery
from bot.chat.retries import Retries, with_roles_of
from bot.chat.settings import ChatSettings, Choices
from bot.chat.sign_in import SignIn
from bot.chat.standing import StandingReply
from bot.config.places import MANAGERS
from bot.config.reload import ConfigWatcher
from bot.domain import Action, Answer, Author, ChannelKey, Exchange, IncomingMessage, Kind, Status, UsageSum, Vote
from bot.engine.base import Engine
from bot.errors import ClaimLost, PlatformError
from bot.observability.health import Components
from bot.observability.metrics import Metrics
from bot.storage.base import Store
from bot.usage import use_of
from bot.util.clock import Calendar, Clock, MonotonicClock
from bot.util.recent import RecentDict
from bot.util.text import clean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds until a person who did not manage a channel is heard there without a mention, if that has changed.
_BYSTANDER_SECONDS = 60.0


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
        sign_in: SignIn | None = None,
    ) -> None:
        """Build the chat; `model` returns the engine that answers for a name of `[models.NAME]`, if there are several."""
        clock, metrics = clock or MonotonicClock(), metrics or Metrics()
        self.access = access
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.sign_in = sign_in = sign_in or SignIn(clock)
        self.exchanges = exchanges = exchanges or Exchanges(store, clock)
        self.files = Files(settings, clock)
        calendar = Calendar(clock, today)
        self.today = calendar.today
        self.context = Context(access, exchanges)
        self.continuations = Continuations(store, clock, self.today())
        self._quotas = quotas = Quotas(store, exchanges, settings, self.today)
        self.choices = choices = Choices(store, settings.rules, self.today)
        self.conversations = Conversations(
            engine, store, exchanges, settings, choices, quotas, clock, metrics, self.files, self.context, model
        )
        self.answers = Answers(
            access,
            exchanges,
            self.conversations,
            engine,
            settings,
            choices,
            quotas,
            metrics,
            sign_in,
            watcher,
            components,
        )
        self.forms = Forms(access, settings, choices, self.answers)
        self._clock = clock
        # Until when people who do not manage a channel are passed over there: each message would cost calls, which
        # platforms limit.
        self._bystanders: RecentDict[tuple[str, str, str, tuple[str, ...]], float] = RecentDict()
        self._presses: RecentDict[tuple[str, str], None] = RecentDict()  # that asked for another answer
        self._store = store
        self._feedback = Feedback(access, store, settings, self.today, metrics)
        self._retries = Retries(access, exchanges, store, settings, quotas, clock, metrics)
        self.recovery = Recovery(access, exchanges, self._retries, settings, calendar)

    async def accept(self, message: IncomingMessage) -> Exchange | None:
        """Store and claim a live message; None if it is a duplicate or not for the bot.

        A /retry returns the exchange that it requeues.
        """
        message = clean_message(message)
        if not self.access.admits(message):
            return None
        if (question := await self._join(message)) is not None:
            return question
        exchange = await self.exchanges.enqueue(message, _kind(message))
        if exchange is not None:
            self.continuations.note(exchange, message)
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
        message = clean_message(message)
        if self.access.admits(message) and not await self._store_continuation(message):
            self.continuations.pass_over(message)
            await self.exchanges.enqueue_backlog(message, _kind(message))

    async def accept_continuation(self, message: IncomingMessage) -> Exchange | None:
        """Store a live message that is not for the bot by itself if it is more of a question; return that, to be answered.

        `continuations` tells whether a message is worth parsing for it.
        """
        message = clean_message(message)
        return await self._join(message) if self.access.admits(message) else None

    async def store_continuation(self, message: IncomingMessage) -> None:
        """Store a missed message that is not for the bot by itself if it is more of a question, as `store` does."""
        message = clean_message(message)
        if self.access.admits(message):
            await self._store_continuation(message)

    async def _store_continuation(self, message: IncomingMessage) -> bool:
        question = await self._join(message, is_missed=True)
        if question is not None:
            self.exchanges.postpone(question)
        return question is not None

    async def _join(self, message: IncomingMessage, *, is_missed: bool = False) -> Exchange | None:
        """Add the message to the question that it is more of; None if it is none, or known."""
        question = await self.continuations.find(message, is_missed=is_missed)
        if question is None:
            return None
        known, part = await self._store.find(question.message.channel, question.message.id), to_continuation(message)
        answer = None if known is None else known.answer
        was_answered = answer is not None and use_of(answer, 0) != UsageSum()
        refusal = await self._retries.refusal_of_part(known, part) if known is not None and was_answered else None
        joined = await self.exchanges.join(question, part, is_missed=is_missed, was_answered=was_answered)
        if joined is None:
            return None
        self.continuations.note(joined, message)
        if answer is None or refusal is None or joined.answer is not None:
            return joined
        return await self._keep(answer, joined, refusal)

    def forget_before(self) -> None:
        """Read again what another bot, which has served a platform until now, may have changed."""
        self.choices.forget()
        self._quotas.reread_sums()
        self.continuations.begin(self.today())

    async def recover(self, platform: str) -> list[Exchange]:
        """Claim what a crash or an outage left undone; return what is to be shown, in order."""
        return await self.recovery.recover(platform)

    async def edit(self, message: IncomingMessage) -> Exchange | None:
        """Take the new text of a message; return the exchange to be answered again, in place.

        None also for a message that has no exchange, or a cleared one: if the edit calls the bot, `accept` it.
        Quotations of the message get the new text in any case.
        """
        message = clean_message(message)
        known = await self._store.find(message.channel, message.id)
        if known is None or known.status is Status.CLEARED:
            return await self._edit_part(message)
        files = updated(known.message.files, message.files)
        if (known.message.text, known.message.files) == (message.text, files):
            # An earlier attempt may have stored the edit and lost the acknowledgement.
            return await self.exchanges.claim(known) if known.kind is Kind.CHAT else None
        if not self.access.admits(message):
            # Its author may have a reason to take the old text back, and gets no answer any more.
            await self.exchanges.delete_messages(message.channel, [message.id])
            return None
        known = with_roles_of(known, message.author)
        if known.is_unreadable:  # it is nobody's by now
            known = replace(known, message=replace(known.message, author=message.author))
        known = replace(known, message=replace(known.message, is_addressed=message.is_addressed))
        refusal = await self._retries.refusal(replace(known, message=replace(known.message, text=message.text)))
        self.continuations.forget(message)
        # Even if it is refused, the old text goes.
        requeued = await self.exchanges.requeue(known, message.text, files, is_admitted=refusal is None)
        edited = replace(known.message, text=message.text)
        if requeued is None or refusal is None or known.answer is None or known.kind is not Kind.CHAT:
            return requeued
        return await self._keep(known.answer, requeued, refusal) if _has_words(edited) else requeued

    async def _edit_part(self, message: IncomingMessage) -> Exchange | None:
        """Take the new text of a message that is no question, but perhaps a part of one, or quoted."""
        channel, id, part = message.channel, message.id, to_continuation(message)
        question = await self._store.find_continued(channel, id)
        old = next((each for each in question.message.further if each.id == id), None) if question is not None else None
        if question is None or old is None:
            await self.exchanges.replace_quotes(channel, id, message.text)
            return None
        if (old.text, old.files) == (part.text, updated(old.files, part.files)):
            return await self.exchanges.edit_continuation(channel, id, part.text, part.files)
        if not self.access.admits(message):
            await self.exchanges.delete_messages(channel, [id])
            return None
        further = tuple(replace(part, kind=old.kind) if each is old else each for each in question.message.further)
        edited = with_roles_of(replace(question, message=replace(question.message, further=further)), message.author)
        refusal = await self._retries.refusal(edited)
        self.continuations.forget(message)
        is_admitted = refusal is None
        reopened = await self.exchanges.edit_continuation(channel, id, part.text, part.files, is_admitted=is_admitted)
        if reopened is None or refusal is None or question.answer is None:
            return reopened
        return await self._keep(question.answer, reopened, refusal) if _has_words(edited.message) else reopened

    async def _keep(self, answer: Answer, reopened: Exchange, refusal: str) -> Exchange | None:
        """Store the old answer of a question that was opened again, with a sentence; None if it was deleted meanwhile."""
        try:
            return await self.exchanges.answer_with(reopened, replace(answer, notice=refusal))
        except ClaimLost:
            self.exchanges.release(reopened)
            return None
        except BaseException:
            self.exchanges.release(reopened)
            raise

    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        """Let quotations of an edited message that is no question, such as an app's, have its new text."""
        await self.exchanges.replace_quotes(channel, message_id, clean(text))

    async def store_edit(self, message: IncomingMessage) -> None:
        """Take the new text of a question while others may be missing; `recover` then returns it."""
        if (exchange := await self.edit(message)) is not None:
            self.exchanges.postpone(exchange)

    async def store_change(self, known: Exchange, message: IncomingMessage, reply: StandingReply | None) -> None:
        """Take the text and files of a known message that was edited while events may have been lost.

        `reply` is the one that stands in the channel: after a restored backup it may be another
        than the row has, and answer the new text.
        """
        message = clean_message(message)
        files = updated(known.message.files, message.files)
        if known.kind is not Kind.CHAT or (known.message.text, known.message.files) == (message.text, files):
            return
        is_answered = known.answer is not None and reply is not None and reply.answers_anew(known.answer)
        answer = reply.answer if reply is not None and is_answered else None
        if answer is None or not self.access.admits(message):
            await self.store_edit(message)
        elif (requeued := await self.exchanges.requeue(known, message.text, files)) is not None:
            try:
                with suppress(ClaimLost):  # deleted or asked again meanwhile
                    await self.exchanges.settle(requeued, answer)
            finally:
                self.exchanges.release(requeued)

    async def delete(self, channel: ChannelKey, *message_ids: str, is_expected: bool = False) -> None:
        """Delete the exchanges of deleted messages and quotations of them, and stop answering them.

        A message that arrives later is ignored where the bot has exchanges in its channel, or
        with `is_expected`: for a message that `accept` would have been called with.
        """
        await self.exchanges.delete_messages(channel, message_ids, is_expected=is_expected)

    async def on_button(
        self,
        channel: ChannelKey,
        message_id: str,
        action: Action,
        by: Author,
        *,
        press: str | None = None,
        locale: str | None = None,
        reply_address: str | None = None,
        later: bool = False,
    ) -> ButtonResult:
        """Carry out a button under one of the bot's messages, if its presser may, whose `locale` that is.

        `press` is the platform's id of the press: one that is delivered again changes no vote
        and asks for no other answer.  Another answer goes to the `reply_address`.

        With `later`, while others may be missing, `recover` returns what is to be answered again.
        """
        exchange = await self.exchanges.find_by_reply(channel, message_id)
        if exchange is None or not self.access.admits(replace(exchange.message, author=by)):
            return ButtonResult()
        if action is Action.UP or action is Action.DOWN:
            return ButtonResult(notice=await self._feedback.press(exchange, Vote(action.value), by, press, locale))
        if not self.access.may_control(by, exchange):
            translate = self.settings.translator_for(used_by(exchange.message, by, locale))
            return ButtonResult(notice=translate("Only the person who asked, and admins, may do that."))
        match action:
            case Action.STOP:
                self.exchanges.stop(exchange)
                return ButtonResult()
            case Action.RETRY:
                exchange = with_roles_of(exchange, by)
                if press is not None and (channel.platform, press) in self._presses:
                    return ButtonResult()
                if refusal := await self._retries.refusal(exchange, used_by(exchange.message, by, locale)):
                    return ButtonResult(notice=refusal)
                requeued = await self.exchanges.requeue(exchange, reply_address=reply_address, is_admitted=True)
                if requeued is not None and press is not None:
                    self._presses[channel.platform, press] = None
                if requeued is not None and later:
                    self.exchanges.postpone(requeued)
                    return ButtonResult()
                return ButtonResult(requeued)
            case _:
                assert_never(action)

    async def is_known(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the message has an exchange."""
        return await self._store.find(channel, message_id) is not None

    async def is_reply(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the message is known to carry a reply."""
        return await self._store.find_by_reply(channel, message_id) is not None

    async def listens(self, message: IncomingMessage, *, threads: bool) -> bool:
        """Return whether the bot answers a message without a mention: one that begins with a trigger.

        Where `answer` is "all", and with `threads` in a thread where the bot was spoken to, it answers all messages of
        people who may ask there.  The others get no refusal at each message.
        """
        await self.choices.load()
        channel, rules = message.channel, self.settings.rules
        if rules.is_triggered(channel, message.server, message.text):
            return True
        is_in_thread = threads and channel.thread is not None
        if not (rules.answers_all(channel, message.server) or (is_in_thread and await self.has_history(channel))):
            return False
        who, now = rules.who(message), self._clock.now()
        bystander = channel.platform, channel.channel, message.author.id, tuple(who)
        if self._bystanders.get(bystander, now) > now:
            return False
        try:
            async with asyncio.timeout(RIGHTS_SECONDS):
                may_ask = await self.access.may_ask(message, who)
        except (PlatformError, TimeoutError) as error:
            log.info("rights not known yet, they are asked for again", error=str(error) or "timeout")
            return True
        if MANAGERS in who and not may_ask:
            self._bystanders[bystander] = now + _BYSTANDER_SECONDS
        return may_ask

    async def is_triggered(self, channel: ChannelKey, server: str | None, text: str) -> bool:
        """Return whether a text begins with a trigger of its conversation."""
        await self.choices.load()
        return self.settings.rules.is_triggered(channel, server, text)

    async def has_history(self, channel: ChannelKey) -> bool:
        """Return whether the bot was spoken to here before: in a thread it then listens."""
        return await self._store.has_history(channel)

    async def quotes_root(self, thread: ChannelKey) -> bool:
        """Return whether a question in a thread quotes what the thread begins with: no answered one has, and none is cleared."""
        latest = await self._store.latest(thread)
        if latest is None:
            return not await self._store.has_history(thread)
        return latest.answer is not None and not latest.answer.text

    def offers(self, message: IncomingMessage) -> list[str]:
        """Return the possible last words of a command that is being typed."""
        return offers(message.text, self.settings, message) if self.access.admits(message) else []

    async def rename_channel(self, channel: ChannelKey, to: str) -> None:
        """Move a channel's history and settings to the id that its platform gave it."""
        count = await self.exchanges.rename_channel(channel, to)
        await self.choices.reload()
        self._quotas.reread_sums()
        if count:
            log.info("channel moved", channel=str(channel), to=to, exchanges=count)

    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        """Return the platform's exchanges said at this time or later, to compare them with the channels."""
        return await self._store.said_since(platform, time)

    async def on_reaction(
        self, channel: ChannelKey, message_id: str, vote: Vote, by: Author, *, is_added: bool
    ) -> None:
        """Take a reaction to a message as a vote, if it is one of the bot's that shows an answer."""
        if not self.settings.feedback.enabled:
            return
        exchange = await self._store.find_by_reply(channel, message_id)
        # Platforms do not tell the roles of a person who takes a reaction away, and do not need to.
        if exchange is not None and (not is_added or self.access.admits(replace(exchange.message, author=by))):
            await self._feedback.react(exchange, vote, by, is_added=is_added)

    async def own_votes(self, voter: Author, exchanges: Sequence[int]) -> dict[int, Vote]:
        """Return a person's votes on answers, by the ids of their exchanges."""
        return await self._store.own_votes(voter, exchanges)

    async def said_in(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        """Return a conversation's last exchanges, oldest first, for a platform that shows them itself."""
        return await self._store.said_in(channel, limit)

    async def openings(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        """Return the first exchanges of the newest threads of a channel, the newest thread first."""
        return await self._store.openings(channel, limit)

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """Return the newest message known per channel: where a backfill begins."""
        return await self._store.last_message_ids(platform)


def _kind(message: IncomingMessage) -> Kind:
    return Kind.COMMAND if called_by(message) else Kind.CHAT


def _has_words(message: IncomingMessage) -> bool:
    """Return whether something is left to answer in a message and its parts."""
    whole = message.whole
    return bool(whole.text.strip() or (whole.quoted or "").strip() or may_be_read(whole))

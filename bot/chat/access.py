"""Permissions and limits: allow and deny lists, admins, rates per minute and hour."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog

from bot.chat.files import may_be_read
from bot.chat.i18n import Translate
from bot.chat.rules import Rules
from bot.config.places import EVERYONE, MANAGERS
from bot.config.schema import AccessSection, LimitsSection
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage, QueueDepth, Usage
from bot.errors import PlatformError
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Asks a platform whether the author of a message manages its channel; may raise PlatformError.
IsManager = Callable[[IncomingMessage], Awaitable[bool]]
# Asks a platform what it withholds from the bot in a chat where the bot answers "all", each mention in a "thread",
# or "triggers": sentences of the catalogues.  May raise PlatformError.
Missing = Callable[[IncomingMessage, str], Awaitable[list[str]]]

# The person at the console; no id of a platform can equal this one.
OPERATOR = Author("console", "operator", "operator")
_FIRST = QueueDepth()
# For a platform to say who manages a channel, before what somebody did there is stored: Slack waits 3 s for that.
RIGHTS_SECONDS = 1.0
# Seconds until another try where the end of an answer is awaited.
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A sentence, and the seconds after which another try may be accepted."""

    text: str
    seconds: float


class Access:
    """The rules of [access] and [limits]; people are identified by id, never by name.

    A channel counts with its threads: a limit per thread would be none where each question
    opens one.  Edits, retries and buttons count as questions.  Commands have a limit of
    their own: a person whose questions are refused can still stop and clear.

    Usage is kept in memory, so a restart resets it: users cannot cause one, but could clear
    what the database knows.
    """

    def __init__(
        self,
        access: AccessSection,
        limits: LimitsSection,
        clock: Clock,
        own: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        rules: Rules | None = None,
    ) -> None:
        """Apply these sections; `own` has, by user, the limits that replace those of the same name.

        `rules` tells whether the bot is paused.
        """
        self._access = access
        self._limits = limits
        self._own_waiting, own_asked, own_tokens = (
            {user: limits[name] for user, limits in own.items() if name in limits}
            for name in ("waiting_per_user", "requests_per_minute", "tokens_per_hour")
        )
        self._asked_by_user = SlidingWindow(limits.requests_per_minute, 60.0, clock, own_asked)
        self._asked_in_channel = SlidingWindow(limits.requests_per_minute_channel, 60.0, clock)
        self._commanded_by_user = SlidingWindow(limits.requests_per_minute, 60.0, clock)
        self._tokens_of_user = SlidingWindow(limits.tokens_per_hour, 3600.0, clock, own_tokens)
        self._tokens_in_channel = SlidingWindow(limits.tokens_per_hour_channel, 3600.0, clock)
        self.rules = rules or Rules()
        self._managers: dict[str, IsManager] = {}
        self._missing: dict[str, Missing] = {}

    def reconfigure(self, access: AccessSection, limits: LimitsSection) -> None:
        """Apply these rules from now on; usage so far still counts."""
        self._access = access
        self._limits = limits
        self._asked_by_user.limit = limits.requests_per_minute
        self._asked_in_channel.limit = limits.requests_per_minute_channel
        self._commanded_by_user.limit = limits.requests_per_minute
        self._tokens_of_user.limit = limits.tokens_per_hour
        self._tokens_in_channel.limit = limits.tokens_per_hour_channel

    @property
    def limits(self) -> LimitsSection:
        return self._limits

    @property
    def is_paused(self) -> bool:
        """Whether new questions are refused; those accepted before are answered."""
        return self.rules.is_paused

    def admits(self, message: IncomingMessage) -> bool:
        """Return whether the message is for the bot; any other gets no reply."""
        if message.author.is_bot:
            return False
        places = (
            (message.author.key, self._access.allow_users, self._access.deny_users),
            (_channel_id(message.channel), self._access.allow_channels, self._access.deny_channels),
            (_server_id(message), self._access.allow_servers, self._access.deny_servers),
        )
        roles = {f"{message.author.platform}:{role}" for role in message.author.roles}
        if self._access.allow_roles and roles.isdisjoint(self._access.allow_roles):
            return False
        return all(key not in denied and (not allowed or key in allowed) for key, allowed, denied in places)

    def is_denied(self, author: Author) -> bool:
        """Return whether a person's messages are not even read."""
        return author.key in self._access.deny_users

    def is_admin(self, author: Author) -> bool:
        return author.key in self._access.admins or author.key == OPERATOR.key

    def may_control(self, author: Author, exchange: Exchange) -> bool:
        """Return whether `author` may stop or retry it: its own author and admins may."""
        return author.key == exchange.message.author.key or self.is_admin(author)

    def register_managers(self, platform: str, is_manager: IsManager) -> None:
        """Let a platform say who manages its channels."""
        self._managers[platform] = is_manager

    def register_missing(self, platform: str, missing: Missing) -> None:
        """Let a platform say what it withholds from the bot."""
        self._missing[platform] = missing

    async def missing(self, message: IncomingMessage, wanted: str) -> list[str]:
        """Return what a platform withholds that the bot needs for "all", "thread" or "triggers" in a chat, as sentences.

        Raises:
            PlatformError: The platform cannot be asked.
        """
        missing = self._missing.get(message.channel.platform)
        return [] if missing is None or message.is_direct else await missing(message, wanted)

    async def may_set(self, message: IncomingMessage) -> bool:
        """Return whether the author may change settings in the chat where the message was sent.

        Admins may, a person in a direct chat, and unless `access.settings_by` says otherwise a
        channel's managers.  The platform is asked each time: a right that was taken away is gone.

        Raises:
            PlatformError: The platform cannot be asked.
        """
        if self.is_admin(message.author) or message.is_direct:
            return True
        return self._access.settings_by == "managers" and await self._manages(message)

    async def may_ask(self, message: IncomingMessage, who: Sequence[str]) -> bool:
        """Return whether the author is one of those who may ask in a place; admins and the person of a direct chat may.

        Raises:
            PlatformError: The platform cannot be asked.
        """
        author = message.author
        if EVERYONE in who or self.is_admin(author):
            return True
        if MANAGERS not in who:
            own = {author.key, *(f"{author.platform}:{role}" for role in author.roles)}
            return not own.isdisjoint(who)
        return message.is_direct or await self._manages(message)

    async def asker_refusal(
        self, message: IncomingMessage, who: Sequence[str], translate: Translate, seconds: float | None = None
    ) -> str | None:
        """Return a sentence if the author may not ask in a place, or the platform does not say it within the `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                if await self.may_ask(message, who):
                    return None
        except (PlatformError, TimeoutError) as error:
            why = str(error) or "timeout"
            log.warning("rights not known, the question is refused", channel=str(message.channel), error=why)
            return translate("I could not check your permissions. Please ask again.")
        if MANAGERS in who:
            return translate("Only admins and those who manage this channel may ask me here.")
        return translate("You may not ask me here.")

    async def _manages(self, message: IncomingMessage) -> bool:
        is_manager = self._managers.get(message.channel.platform)
        return is_manager is not None and await is_manager(message)

    def may_clear(self, author: Author) -> bool:
        return self._access.clear_by == "everyone" or self.is_admin(author)

    def refusal(self, message: IncomingMessage, translate: Translate, standing: QueueDepth = _FIRST) -> str | None:
        """Return a sentence if the question is refused; None counts it."""
        if self.is_paused:
            return translate("An admin has paused me. Please ask again later.")
        return self.text_refusal(message, translate) or self._too_much(message, translate, standing)

    def text_refusal(self, message: IncomingMessage, translate: Translate) -> str | None:
        """Return a sentence if there is no question in the message and its parts, or a longer one than allowed."""
        message = message.whole
        if not (message.text.strip() or (message.quoted or "").strip() or may_be_read(message)):
            return translate("I can only read text, and there was none in your message: what would you like to ask?")
        # A quotation is cut where the prompt is made: its length is not the author's doing.
        if len(message.text) > self._limits.max_message_chars:
            return translate("Your message is too long: {count} characters, the limit is {limit}.").format(
                count=len(message.text), limit=self._limits.max_message_chars
            )
        return None

    def _too_much(self, message: IncomingMessage, translate: Translate, standing: QueueDepth) -> str | None:
        found = self.too_much(message.author.key, _channel_id(message.channel), translate, standing)
        return None if found is None else found.text

    def command_refusal(self, message: IncomingMessage, translate: Translate) -> str | None:
        """Return a sentence if the command is refused; None counts it.

        Admins have no limit: one who has paused the bot must be able to resume.
        """
        if self.is_admin(message.author):
            return None
        if wait := self._commanded_by_user.wait(message.author.key):
            return translate("You are sending commands too fast. Please try again in {seconds} s.").format(
                seconds=math.ceil(wait)
            )
        self._commanded_by_user.add(message.author.key)
        return None

    def spend(self, message: IncomingMessage, usage: Usage) -> None:
        """Count the tokens of an answer against the hourly limits of its author and channel."""
        self.spend_tokens(message.author.key, usage)
        self._tokens_in_channel.add(_channel_id(message.channel), usage.prompt_tokens + usage.completion_tokens)

    def spend_tokens(self, user: str, usage: Usage) -> None:
        """Count the tokens of an answer that belongs to no channel."""
        self._tokens_of_user.add(user, usage.prompt_tokens + usage.completion_tokens)

    def too_much(
        self, user: str, channel: str | None, translate: Translate, standing: QueueDepth = _FIRST
    ) -> Refusal | None:
        """Return why one more question is too much; None counts it.  `channel` None is limited by the user only."""
        if 0 < self._own_waiting.get(user, self._limits.waiting_per_user) <= standing.author:
            text = translate("You already have {count} questions waiting; please wait for one of them.")
            return Refusal(text.format(count=standing.author), _ANSWER_SECONDS)
        if channel is not None and 0 < self._limits.waiting_per_channel <= standing.channel:
            text = translate("This channel already has {count} questions waiting; please wait for some of them.")
            return Refusal(text.format(count=standing.channel), _ANSWER_SECONDS)
        if wait := self._asked_by_user.wait(user):
            text = translate("You are asking too fast. Please ask again in {seconds} s.")
            return Refusal(text.format(seconds=math.ceil(wait)), wait)
        if wait := self._tokens_of_user.wait(user):
            text = translate("You've reached your limit per hour. Please ask again in {minutes} min.")
            return Refusal(text.format(minutes=math.ceil(wait / 60)), wait)
        if channel is not None:
            if wait := self._asked_in_channel.wait(channel):
                text = translate("This channel is asking too fast. Please ask again in {seconds} s.")
                return Refusal(text.format(seconds=math.ceil(wait)), wait)
            if wait := self._tokens_in_channel.wait(channel):
                text = translate("This channel has reached its limit per hour. Please ask again in {minutes} min.")
                return Refusal(text.format(minutes=math.ceil(wait / 60)), wait)
            self._asked_in_channel.add(channel)
        self._asked_by_user.add(user)
        return None


class SlidingWindow:
    """At most `limit` per key in any `seconds`, or the key's `own`; a limit of 0 is none.

    Strict, unlike fixed windows, which let twice as many through at their border; and on
    the monotonic clock, unlike the `limits` library.  `limit` may be changed at any time;
    while it is 0, nothing is recorded.
    """

    def __init__(self, limit: int, seconds: float, clock: Clock, own: Mapping[Any, int] = MappingProxyType({})) -> None:
        self.limit = limit
        self._own = own
        self._seconds = seconds
        self._clock = clock
        self._spent: dict[Hashable, deque[tuple[float, int]]] = {}

    def __len__(self) -> int:
        """Return the number of keys with recent usage."""
        return len(self._spent)

    def wait(self, key: Hashable) -> float:
        """Return the seconds until one more is allowed; 0 if it is now."""
        spent = self._current(key)
        limit = self._own.get(key, self.limit)
        over = sum(weight for _, weight in spent) - limit
        if not limit or over < 0:
            return 0.0
        for at, weight in spent:
            over -= weight
            if over < 0:
                return at + self._seconds - self._clock.now()
        raise AssertionError("usage cannot exceed the limit once all of it is subtracted")

    def add(self, key: Hashable, weight: int = 1) -> None:
        if not self._own.get(key, self.limit) or not weight:
            return
        # Ordered by last use, so that the oldest can be dropped: keys come from outside
        # and would accumulate over a year.
        spent = self._spent.pop(key, deque())
        spent.append((self._clock.now(), weight))
        self._spent[key] = spent
        while not self._current(oldest := next(iter(self._spent))):
            del self._spent[oldest]

    def _current(self, key: Hashable) -> deque[tuple[float, int]]:
        spent = self._spent.get(key, deque())
        while spent and spent[0][0] <= self._clock.now() - self._seconds:
            spent.popleft()
        return spent


def _channel_id(channel: ChannelKey) -> str:
    return f"{channel.platform}:{channel.channel}"


def _server_id(message: IncomingMessage) -> str:
    return f"{message.channel.platform}:{message.server}" if message.server else ""

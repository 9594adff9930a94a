"""The bot on a loopback platform: the real adapter, library and store; what is measured asks it and watches."""

import asyncio
import math
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.messenger import EDITS_PER_MINUTE, SlackFormat
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.markup import Entity, TelegramFormat
from bot.adapters.telegram.rich import RichFormat, rich_message_of
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.access import Access
from bot.chat.exchanges import Exchanges
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.chat.sign_in import SignIn
from bot.config.schema import AccessSection, ConversationSection
from bot.delivery import pacer
from bot.delivery.markdown.format import Format, Rendered
from bot.domain import Exchange, SamplingParams
from bot.engine.base import Engine
from bot.storage.base import Store
from bot.storage.connections import BUSY_TIMEOUT
from bot.storage.sql import SqlStore
from bot.util.clock import Clock, MonotonicClock
from tests.harness.harness import NO_LIMITS
from tests.harness.loop_monitor import start_bot
from tests.harness.platform import TIMEOUT, LoopbackPlatform, Seen
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_forms import AskingByCommand
from tests.harness.servers.slack import AskingInChats, SlackServer
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.servers.telegram_rich import markdown_of
from tests.harness.servers.telegram_words import markdown

# Entered with the platform before the bot starts, and left after it.
Around = Callable[[Any], AbstractAsyncContextManager[object]]


def _unchanged(platform: object) -> AbstractAsyncContextManager[object]:
    return nullcontext()


def _direct(engine: Engine, clock: Clock) -> AbstractAsyncContextManager[Engine]:
    return engine


# Enters the engine of every bench; replaced for figures with `--engine remote`.
wrap_engine: Callable[[Engine, Clock], AbstractAsyncContextManager[Engine]] = _direct

# The platforms' clocks are fixed at a time in the past, so no question may expire.
_NO_EXPIRY = ConversationSection(catch_up_minutes=10_000_000)


@dataclass(frozen=True, slots=True)
class Profile:
    """The differences between platforms that measurements depend on.

    `edit_interval` is that of a group, in seconds; where all channels share a budget, growing replies have
    `edits_per_minute` together.  `written` converts a text to the
    `Seen.markdown` of its message: the same text where the platform `takes_markdown`, elsewhere
    the same up to whitespace.
    """

    open: Callable[[], LoopbackPlatform]
    is_connected: Callable[[Any], bool]
    format: Format
    edit_interval: float
    edits_per_minute: float = math.inf
    takes_markdown: bool = True
    written: Callable[[Rendered], str] = lambda rendered: rendered.text
    # What of a visible text is compared: the delimiters of a formula are markup in some forms.
    compared: Callable[[str], str] = lambda visible: visible
    # Of an answer that the platform has room for, with some room for placeholders that are left behind.
    most_messages: int | None = None


def _telegram_markdown(rendered: Rendered) -> str:
    if (rich := rich_message_of(rendered)) is not None:
        return markdown_of(rich.blocks)
    return markdown(rendered.text, tuple(each for each in rendered.entities if isinstance(each, Entity)))


PROFILES = {
    "discord": Profile(
        DiscordPlatform,
        lambda platform: platform.is_connected,
        DiscordMessenger(edit_seconds=1.0, call_seconds=1.0).format,
        DiscordSection().edit_seconds,
    ),
    "telegram": Profile(
        TelegramPlatform,
        lambda platform: platform.polls > 1,
        TelegramFormat(),
        TelegramSection().edit_interval_group,
        takes_markdown=False,
        written=_telegram_markdown,
    ),
    "slack": Profile(
        SlackServer,
        lambda platform: platform.sockets > 0,
        SlackFormat(),
        SlackSection().edit_interval,
        edits_per_minute=EDITS_PER_MINUTE * pacer._GROWING,
    ),
}


def _refusing_blocks() -> LoopbackPlatform:
    telegram = TelegramPlatform(knows="blocks")
    telegram.refuses_blocks = True
    return telegram


def _refusing_streams() -> LoopbackPlatform:
    slack = AskingInChats()
    slack.refused["chat.startStream"] = "channel_type_not_supported"
    return slack


# Other forms of the messages of a platform: Telegram's rich messages, and entities where it refuses each of them;
# Slack's streams, in chats with an agent, and edits where each channel refuses them; questions by Discord's /ask, with responses that come
# too late, and where the bot is no member.
FORMS = {
    "discord-ask": replace(PROFILES["discord"], open=AskingByCommand),
    "discord-late": replace(PROFILES["discord"], open=partial(AskingByCommand, is_late=True)),
    "discord-guest": replace(PROFILES["discord"], open=partial(AskingByCommand, "chat"), most_messages=3),
    "telegram-rich": replace(
        PROFILES["telegram"],
        open=partial(TelegramPlatform, knows="blocks"),
        format=RichFormat(),
        compared=lambda visible: re.sub(r"\$|\\[()\[\]]", "", visible),
    ),
    "telegram-refused": replace(PROFILES["telegram"], open=_refusing_blocks),
    "slack-streams": replace(PROFILES["slack"], open=AskingInChats),
    "slack-refused": replace(PROFILES["slack"], open=_refusing_streams),
}


class TrackedExchanges(Exchanges):
    """Exchanges that report when a question, identified by its text, has finished."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__(store, clock)
        self._rows = store
        self._finished: dict[str, asyncio.Future[Exchange]] = {}

    def finished(self, question: str) -> asyncio.Future[Exchange]:
        """Return a future of the stored exchange, set when it is delivered or has failed."""
        return self._finished.setdefault(question, asyncio.get_running_loop().create_future())

    async def complete(self, exchange: Exchange) -> None:
        await super().complete(exchange)
        await self._report(exchange)

    async def fail(self, exchange: Exchange, reason: str) -> None:
        await super().fail(exchange, reason)
        await self._report(exchange)

    async def _report(self, exchange: Exchange) -> None:
        question = exchange.message
        row = await self._rows.find(question.channel, question.id)
        assert row is not None, "a finished exchange is in the store"
        waiting = self.finished(question.text)
        if not waiting.done():
            waiting.set_result(row)


@dataclass(frozen=True, slots=True)
class Bench:
    """A connected bot and its platform."""

    platform: LoopbackPlatform
    profile: Profile
    clock: Clock
    intake: Intake
    exchanges: TrackedExchanges
    database: Path
    adapter: asyncio.Task[None]

    async def ask(self, question: str, channel: str, *, direct: bool = False, seconds: float = TIMEOUT) -> Exchange:
        """Mention the bot with a unique question; return the finished exchange.

        Raises:
            TimeoutError: It has not finished after `seconds`.
        """
        finished = self.exchanges.finished(question)
        if direct:
            await self.platform.say(question, author=channel, direct=True)
        else:
            await self.platform.say(question, channel=channel)
        async with asyncio.timeout(seconds):
            return await finished

    def replies(self, channel: str) -> list[Seen]:
        return [seen for seen in self.platform.seen(channel) if seen.author == "bot"]


@asynccontextmanager
async def open_bench(
    name: str,
    engine: Engine,
    clock: Clock,
    params: SamplingParams | None = None,
    *,
    around: Around = _unchanged,
    busy_timeout: float = BUSY_TIMEOUT,
    sign_in: SignIn | None = None,
) -> AsyncIterator[Bench]:
    """Run the bot on this platform; an adapter that ends early raises its error at the end."""
    profile = (PROFILES | FORMS)[name]
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        database = Path(folder) / "bot.db"
        store = SqlStore(f"sqlite+aiosqlite:///{database}", busy_timeout=busy_timeout)
        async with profile.open() as platform, around(platform), store, wrap_engine(engine, clock) as engine:
            access = Access(AccessSection(), NO_LIMITS, clock)
            settings = ChatSettings(_NO_EXPIRY, params, NO_LIMITS.answer_seconds)
            exchanges = TrackedExchanges(store, MonotonicClock())
            intake = Intake(access, engine, store, settings, exchanges=exchanges, sign_in=sign_in)
            adapter = start_bot(platform.adapter(clock).run(intake), lambda: profile.is_connected(platform))
            try:
                await platform.until(lambda: profile.is_connected(platform) or adapter.done())
                yield Bench(platform, profile, clock, intake, exchanges, database, adapter)
            finally:
                if adapter.done():
                    adapter.result()
                adapter.cancel()
                await asyncio.gather(adapter, return_exceptions=True)


def without_spaces(text: str) -> str:
    return re.sub(r"\s+", "", text)

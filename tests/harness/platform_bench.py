"""The bot on a loopback platform, with the real adapter, library and store."""

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.messenger import SlackFormat
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.markup import Entity, TelegramFormat
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.access import Access
from bot.chat.conversation import Conversations
from bot.chat.intake import Intake
from bot.config.schema import AccessSection, ConversationSection
from bot.delivery.markdown.format import Format, Rendered
from bot.domain import Exchange, IncomingMessage, ReplyEvent, SamplingParams
from bot.engine.base import Engine
from bot.storage.base import Store
from bot.storage.connections import BUSY_TIMEOUT
from bot.storage.sql import SqlStore
from bot.util.clock import Clock
from tests.harness.harness import NO_LIMITS
from tests.harness.platform import LoopbackPlatform, Seen
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.servers.telegram_words import markdown

# Entered with the platform before the bot starts, and left after it.
Around = Callable[[Any], AbstractAsyncContextManager[object]]


def _unchanged(platform: object) -> AbstractAsyncContextManager[object]:
    return nullcontext()


# The platforms' clocks are fixed at a time in the past, so no question may expire.
_NO_EXPIRY = ConversationSection(catch_up_minutes=10_000_000)


@dataclass(frozen=True, slots=True)
class Profile:
    """The differences between platforms that measurements depend on.

    `edit_interval` is that of a group, in seconds.  `written` converts a text to the
    `Seen.markdown` of its message: the same text where the platform `takes_markdown`, elsewhere
    the same up to whitespace.
    """

    open: Callable[[], LoopbackPlatform]
    is_connected: Callable[[Any], bool]
    format: Format
    edit_interval: float
    takes_markdown: bool = True
    written: Callable[[Rendered], str] = lambda rendered: rendered.text


def _telegram_markdown(rendered: Rendered) -> str:
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
    "slack": Profile(SlackServer, lambda platform: platform.sockets > 0, SlackFormat(), SlackSection().edit_interval),
}


class TrackedIntake(Intake):
    """An Intake that reports when a question, identified by its text, is settled."""

    def __init__(self, access: Access, conversations: Conversations, engine: Engine, store: Store) -> None:
        super().__init__(access, conversations, engine, store, _NO_EXPIRY)
        self._stored_in = store
        self._questions: dict[int, IncomingMessage] = {}
        self._settled: dict[str, asyncio.Future[Exchange]] = {}

    def settled(self, question: str) -> asyncio.Future[Exchange]:
        """Return a future of the stored exchange, set when it is delivered or has failed."""
        return self._settled.setdefault(question, asyncio.get_running_loop().create_future())

    def handle(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        self._questions[exchange.id] = exchange.message
        return super().handle(exchange)

    async def complete(self, exchange: int) -> None:
        await super().complete(exchange)
        await self._report(exchange)

    async def fail(self, exchange: int, why: str) -> None:
        await super().fail(exchange, why)
        await self._report(exchange)

    async def _report(self, id: int) -> None:
        question = self._questions[id]
        exchange = await self._stored_in.find(question.channel, question.id)
        assert exchange is not None, "a settled exchange is in the store"
        waiting = self.settled(question.text)
        if not waiting.done():
            waiting.set_result(exchange)


@dataclass(frozen=True, slots=True)
class Bench:
    """A connected bot and its platform."""

    platform: LoopbackPlatform
    profile: Profile
    clock: Clock
    intake: TrackedIntake
    database: Path

    async def ask(self, question: str, channel: str, *, direct: bool = False, seconds: float = 120.0) -> Exchange:
        """Mention the bot with a unique question; return the settled exchange.

        Raises:
            TimeoutError: It is not settled after `seconds`.
        """
        settled = self.intake.settled(question)
        if direct:
            await self.platform.say(question, author=channel, direct=True)
        else:
            await self.platform.say(question, channel=channel)
        async with asyncio.timeout(seconds):
            return await settled

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
) -> AsyncIterator[Bench]:
    """Run the bot on this platform; an adapter that ends early raises its error at the end."""
    profile = PROFILES[name]
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        database = Path(folder) / "bot.db"
        store = SqlStore(f"sqlite+aiosqlite:///{database}", busy_timeout=busy_timeout)
        async with profile.open() as platform, around(platform), store, engine:
            conversations = Conversations(
                engine,
                store,
                ConversationSection(),
                params or SamplingParams(),
                answer_seconds=NO_LIMITS.answer_seconds,
            )
            access = Access(AccessSection(), NO_LIMITS, clock)
            intake = TrackedIntake(access, conversations, engine, store)
            adapter = asyncio.create_task(platform.adapter(clock).run(intake))
            try:
                await platform.until(lambda: profile.is_connected(platform) or adapter.done(), 60.0)
                yield Bench(platform, profile, clock, intake, database)
            finally:
                if adapter.done():
                    adapter.result()
                adapter.cancel()
                await asyncio.gather(adapter, return_exceptions=True)


def without_spaces(text: str) -> str:
    return re.sub(r"\s+", "", text)

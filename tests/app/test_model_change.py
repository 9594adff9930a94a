"""config.toml changes during twelve conversations: another model takes over, and no message is lost."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.adapters import SETTINGS
from bot.chat.access import Access
from bot.chat.exchanges import Exchanges
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.reload import ConfigSource, ConfigWatcher
from bot.config.schema import AccessSection, ConversationSection, EngineSection, LimitsSection
from bot.config.sources import load_config
from bot.delivery.replies import Replies
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage, SamplingParams
from bot.engine import BACKENDS, open_engine, preflight
from bot.engine.base import Engine, Progress
from bot.engine.router import ModelRouter
from bot.storage.sql import SqlStore
from tests.harness.fakes import FakeMessenger, FastClock
from tests.harness.fakes.messenger import Verb
from tests.harness.messages import NOON, a_message

PEOPLE = 12  # more than the eight that are answered at once
LIMIT = 600.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


class TrackedExchanges(Exchanges):
    """Exchanges whose completion a test can await."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._delivered: dict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def complete(self, exchange: Exchange) -> None:
        await super().complete(exchange)
        self._delivered[exchange.id].set()

    async def has_delivered(self, exchange: int) -> None:
        await self._delivered[exchange].wait()


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - what is waited for happens in threads and files
        await asyncio.sleep(0.02)


class Bot:
    """The parts between platform and model, as the program has them, and users who talk to it."""

    def __init__(self, file: Path, store: SqlStore) -> None:
        self.file = file
        self.store = store
        clock = FastClock()
        source = ConfigSource(file, lambda: load_config(file, SETTINGS, BACKENDS, {}).config)
        config = source.load()
        self.live = ConfigWatcher(config, source, clock)
        self.switch = ModelRouter(config.sections, self.open_engine, clock, check=preflight)
        talk = ConversationSection()
        params = SamplingParams(max_tokens=16)
        access = Access(AccessSection(), LimitsSection(requests_per_minute=0, tokens_per_hour=0), clock)
        self.exchanges = TrackedExchanges(store, clock)
        self.intake = Intake(
            access,
            self.switch,
            store,
            ChatSettings(talk, params, 600),
            clock=clock,
            today=lambda: NOON,
            watcher=self.live,
            exchanges=self.exchanges,
        )
        self.messenger = FakeMessenger(clock, script=self.look)
        self.somebody_reads_of_it = threading.Event()
        self.replies = Replies(self.intake, self.messenger, clock)
        self.asked: list[IncomingMessage] = []
        self.is_over = False

    def open_engine(self, section: EngineSection, progress: Progress) -> Engine:
        # The demo model is loaded sooner than a platform lets a message be edited.
        assert section.quantization == "none" or self.somebody_reads_of_it.wait(LIMIT)
        return open_engine(section, progress)

    def look(self, number: int, verb: Verb) -> None:
        if "The model is being changed, about" in self.messenger.calls[number].text:
            self.somebody_reads_of_it.set()

    async def person(self, number: int) -> None:
        """Ask, wait for the whole answer, ask again: a conversation."""
        channel = ChannelKey("discord", f"c{number}")
        author = Author("discord", str(number), f"person {number}")
        while not self.is_over:
            message = a_message("Tell me what you can do.", channel=channel, author=author)
            self.asked.append(message)
            exchange = await self.intake.accept(message)
            assert exchange is not None
            self.replies.start(exchange)
            await self.exchanges.has_delivered(exchange.id)

    async def until_asked(self, more: int) -> None:
        """Wait until people have asked so much more."""
        wanted = len(self.asked) + more
        await until(lambda: len(self.asked) >= wanted)

    async def write(self, toml: str) -> None:
        """Replace the file like editors do, and wait until it is reloaded."""
        before = self.live.last_result
        other = self.file.with_suffix(".new")
        other.write_text(toml, encoding="utf-8")
        other.replace(self.file)
        await until(lambda: self.live.last_result is not before)

    async def runs(self, quantization: str) -> None:
        await until(lambda: not self.switch.load.is_changing and self.switch.info.quantization == quantization)


async def test_three_changes_under_load_lose_no_message_and_the_last_that_works_stays(
    file: Path, tmp_path: Path
) -> None:
    file.write_text('[engine]\nquantization = "none"\n', encoding="utf-8")
    async with asyncio.timeout(LIMIT), SqlStore(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}") as store:
        bot = Bot(file, store)
        async with bot.switch, bot.replies:
            following = asyncio.create_task(bot.live.watch(lambda config: None, bot.switch.change))
            people = [asyncio.create_task(bot.person(number)) for number in range(PEOPLE)]
            await bot.until_asked(PEOPLE)
            for quantization in ("int8", "int4"):
                await bot.write(f'[engine]\nquantization = "{quantization}"\n')
                await bot.runs(quantization)
                await bot.until_asked(PEOPLE)
            await bot.write('[engine]\nquantization = "int4"\nmodel = "/models/that/is/not/there"\n')
            await until(lambda: bot.live.last_result is not None and bot.live.last_result.failure is not None)
            await bot.until_asked(PEOPLE)
            bot.is_over = True
            await asyncio.gather(*people)
            following.cancel()
            await asyncio.wait([following])
            info = bot.switch.info
    assert (info.model, info.quantization) == ("demo", "int4")
    assert bot.live.current.engine.quantization == "int4"
    assert bot.live.last_result is not None
    assert "no such folder" in (bot.live.last_result.failure or "")
    assert not bot.messenger.violations
    # Each message has one reply, whole; each reply is to one message.
    replied = [message.reply_to for message in bot.messenger.messages.values()]
    assert sorted(filter(None, replied)) == sorted(message.id for message in bot.asked)
    assert len(replied) == len(bot.asked)
    for message in bot.messenger.messages.values():
        assert message.text.strip() not in ("", "…"), message
        assert "went wrong" not in message.text
        assert "changing" not in message.text
    assert bot.somebody_reads_of_it.is_set()

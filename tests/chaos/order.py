"""R2: many channels at once, their messages shuffled among each other, every tenth delivered twice.

The library, its store and its delivery are the real ones; the model writes down what it is
asked, the platform is in memory.
"""

import asyncio
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bot.chat.access import Access
from bot.chat.exchanges import Exchanges
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection
from bot.delivery.replies import Replies
from bot.domain import Author, ChannelKey, ChatRequest, Exchange, IncomingMessage
from bot.storage.sql import SqlStore
from bot.util.clock import MonotonicClock
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FakeMessenger, FastClock, ScriptedEngine
from tests.harness.harness import NO_LIMITS
from tests.harness.messages import a_message

NAME = "R2"

# Messages that are worked on at once; a channel's next one then often comes before its last is answered.
_AT_ONCE = 500
# In memory where there is such a folder: this is about order, and 100,000 commits wait for a disk for minutes.
_MEMORY = Path("/dev/shm")  # a folder of our own is made in it
# What each question holds and nothing else does: its channel and its number there.
_MARK = re.compile(r"channel (\d+) question (\d+)\.")


class _LimitedExchanges(Exchanges):
    """Frees room for another message when an exchange is completed."""

    room: asyncio.Semaphore

    async def complete(self, exchange: Exchange) -> None:
        await super().complete(exchange)
        self.room.release()


@dataclass
class Toll:
    """What did not come out as promised."""

    channels: int
    questions: int
    twice: int
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"channels {self.channels:,}, questions {self.questions:,}, delivered twice {self.twice:,}: "
            f"lost {len(self.lost)}, answered twice {len(self.repeated)}, out of order {len(self.disordered)}, "
            f"text of another channel {len(self.crossed)}"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.repeated or self.disordered or self.crossed)


def _place(channel: int) -> ChannelKey:
    """A channel; every third is a thread, and the same number is a channel of two platforms."""
    platform = ("discord", "slack")[channel % 2]
    return ChannelKey(platform, f"{channel // 2}", "1" if channel % 3 == 0 else None)


def _message(channel: int, number: int) -> IncomingMessage:
    place = _place(channel)
    # As on a platform: ids are a channel's own, and one person speaks in many channels.
    return a_message(
        f"channel {channel} question {number}. 你好",
        id=f"{place.thread or 0}-{number}",
        channel=place,
        author=Author(place.platform, f"{channel % 7}", "Mei"),
        is_direct=channel % 5 == 0,
    )


def _shuffled(channels: int, messages: int, chance: random.Random) -> tuple[list[IncomingMessage], int]:
    """The messages in the order in which they arrive: a channel's in its own; some come again later."""
    order = [channel for channel in range(channels) for _ in range(messages)]
    chance.shuffle(order)
    numbers: defaultdict[int, int] = defaultdict(int)
    arriving: list[IncomingMessage] = []
    for channel in order:
        arriving.append(_message(channel, numbers[channel]))
        numbers[channel] += 1
    again = chance.sample(range(len(arriving)), len(arriving) // 10)
    for at in sorted(again, reverse=True):
        arriving.insert(min(len(arriving), at + chance.choice((1, 2, 30, 3000))), arriving[at])
    return arriving, len(again)


def _answer(request: ChatRequest) -> list[str]:
    marks = _MARK.findall(request.messages[-1].content)
    return ["answer to ", *(f"channel {channel} question {number}." for channel, number in marks)]


@dataclass(frozen=True, slots=True)
class _Bot:
    intake: Intake
    room: asyncio.Semaphore
    replies: Replies
    messenger: FakeMessenger
    engine: ScriptedEngine


@asynccontextmanager
async def _a_bot(folder: Path) -> AsyncIterator[_Bot]:
    clock, settings = FastClock(), ConversationSection()
    engine = ScriptedEngine(default=_answer, context_length=1_000_000, max_batch_size=_AT_ONCE)
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}") as store:
        access = Access(AccessSection(), NO_LIMITS, clock)
        exchanges = _LimitedExchanges(store, MonotonicClock())
        exchanges.room = asyncio.Semaphore(_AT_ONCE)
        intake = Intake(access, engine, store, ChatSettings(settings), exchanges=exchanges)
        messenger = FakeMessenger(clock)
        async with Replies(intake, messenger, clock) as replies:
            yield _Bot(intake, exchanges.room, replies, messenger, engine)


async def toll_of(channels: int, messages: int, seed: int) -> Toll:
    """Have all of it answered, and count."""
    arriving, twice = _shuffled(channels, messages, random.Random(seed))
    toll = Toll(channels, channels * messages, twice)
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        async with _a_bot(Path(folder)) as bot:
            for message in arriving:
                await bot.room.acquire()
                exchange = await bot.intake.accept(message)
                if exchange is None:
                    bot.room.release()
                else:
                    bot.replies.start(exchange)
            await bot.replies.wait_idle()
            _count_replies(toll, bot.messenger, messages)
            _count_prompts(toll, bot.engine, messages)
    return toll


def _count_replies(toll: Toll, messenger: FakeMessenger, messages: int) -> None:
    shown: defaultdict[ChannelKey, list[tuple[str | None, str]]] = defaultdict(list)
    for message in messenger.messages.values():
        shown[message.channel].append((message.reply_to, message.text))
    for channel in range(toll.channels):
        wanted = [
            (_message(channel, number).id, f"answer to channel {channel} question {number}.")
            for number in range(messages)
        ]
        found = shown[_place(channel)]
        toll.lost += [text for to, text in wanted if (to, text) not in found]
        toll.repeated += [text for to, text in wanted if sum(to == other for other, _ in found) > 1]
        toll.crossed += [text for _, text in found if any(int(mark[0]) != channel for mark in _MARK.findall(text))]
        if found != wanted and sorted(map(str, found)) == sorted(map(str, wanted)):
            toll.disordered.append(f"channel {channel}")


def _count_prompts(toll: Toll, engine: ScriptedEngine, messages: int) -> None:
    """Each prompt must hold its channel's questions up to its own, with their answers, and nothing else."""
    asked: defaultdict[int, int] = defaultdict(int)
    for request in engine.requests:
        marks = [(int(a), int(b)) for message in request.messages for a, b in _MARK.findall(message.content)]
        channel, number = marks[-1]
        if number != asked[channel]:
            toll.disordered.append(f"channel {channel}: {number} where {asked[channel]} was next")
        asked[channel] += 1
        earlier = [(channel, before) for before in range(number) for _ in ("question", "answer")]
        if any(other != channel for other, _ in marks):
            toll.crossed.append(f"in the prompt of {channel}: {marks}")
        elif marks != [*earlier, (channel, number)]:
            toll.disordered.append(f"the prompt of channel {channel}, question {number}: {marks}")
    if len(engine.requests) != toll.questions:
        toll.repeated.append(f"the model was asked {len(engine.requests)} times")
    toll.lost += [f"channel {channel}: never asked" for channel in range(toll.channels) if asked[channel] < messages]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    toll = await (toll_of(1000, 20, seed) if scale == "full" else toll_of(40, 8, seed))
    yield Row("all parts", str(toll), toll.is_kept)

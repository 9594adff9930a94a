"""R2: many concurrent channels, their messages interleaved, every tenth delivered twice.

Intake, store and delivery are the real ones; the model records its prompts, the platform is in
memory.
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

# Messages in flight; a channel's next one often comes before its last is answered.
_CONCURRENCY = 500
# In memory if possible: 100,000 commits to a disk take minutes.
_MEMORY = Path("/dev/shm")  # the parent of a temporary folder
# Identifies a question: its channel and its number there.
_MARK = re.compile(r"channel (\d+) question (\d+)\.")


class _LimitedExchanges(Exchanges):
    """Frees room for another message when an exchange is completed."""

    room: asyncio.Semaphore

    async def complete(self, exchange: Exchange) -> None:
        await super().complete(exchange)
        self.room.release()


@dataclass
class OrderResult:
    """Violations of order and isolation."""

    channels: int
    questions: int
    duplicates: int
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    misordered: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"channels {self.channels:,}, questions {self.questions:,}, delivered twice {self.duplicates:,}: "
            f"lost {len(self.lost)}, answered twice {len(self.duplicated)}, out of order {len(self.misordered)}, "
            f"text of another channel {len(self.leaked)}"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.duplicated or self.misordered or self.leaked)


def _channel_key(channel: int) -> ChannelKey:
    """Return a channel; every third is a thread, and each id is used on two platforms."""
    platform = ("discord", "slack")[channel % 2]
    return ChannelKey(platform, f"{channel // 2}", "1" if channel % 3 == 0 else None)


def _message(channel: int, number: int) -> IncomingMessage:
    key = _channel_key(channel)
    # As on a platform: ids are unique in a channel only, and an author writes in many channels.
    return a_message(
        f"channel {channel} question {number}. 你好",
        id=f"{key.thread or 0}-{number}",
        channel=key,
        author=Author(key.platform, f"{channel % 7}", "Mei"),
        is_direct=channel % 5 == 0,
    )


def _interleave(channels: int, messages: int, rng: random.Random) -> tuple[list[IncomingMessage], int]:
    """Return all messages in random order across channels, and the number of duplicates among them."""
    order = [channel for channel in range(channels) for _ in range(messages)]
    rng.shuffle(order)
    numbers: defaultdict[int, int] = defaultdict(int)
    messages_in_order: list[IncomingMessage] = []
    for channel in order:
        messages_in_order.append(_message(channel, numbers[channel]))
        numbers[channel] += 1
    again = rng.sample(range(len(messages_in_order)), len(messages_in_order) // 10)
    for at in sorted(again, reverse=True):
        messages_in_order.insert(min(len(messages_in_order), at + rng.choice((1, 2, 30, 3000))), messages_in_order[at])
    return messages_in_order, len(again)


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
async def _open_bot(folder: Path) -> AsyncIterator[_Bot]:
    clock, settings = FastClock(), ConversationSection()
    engine = ScriptedEngine(default=_answer, context_length=1_000_000, max_batch_size=_CONCURRENCY)
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}") as store:
        access = Access(AccessSection(), NO_LIMITS, clock)
        exchanges = _LimitedExchanges(store, MonotonicClock())
        exchanges.room = asyncio.Semaphore(_CONCURRENCY)
        intake = Intake(access, engine, store, ChatSettings(settings), exchanges=exchanges)
        messenger = FakeMessenger(clock)
        async with Replies(intake, messenger, clock) as replies:
            yield _Bot(intake, exchanges.room, replies, messenger, engine)


async def run_channels(channels: int, messages: int, seed: int) -> OrderResult:
    """Answer all messages, and count violations."""
    messages_in_order, duplicates = _interleave(channels, messages, random.Random(seed))
    result = OrderResult(channels, channels * messages, duplicates)
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        async with _open_bot(Path(folder)) as bot:
            for message in messages_in_order:
                await bot.room.acquire()
                exchange = await bot.intake.accept(message)
                if exchange is None:
                    bot.room.release()
                else:
                    bot.replies.start(exchange)
            await bot.replies.wait_idle()
            _count_replies(result, bot.messenger, messages)
            _count_prompts(result, bot.engine, messages)
    return result


def _count_replies(result: OrderResult, messenger: FakeMessenger, messages: int) -> None:
    shown: defaultdict[ChannelKey, list[tuple[str | None, str]]] = defaultdict(list)
    for message in messenger.messages.values():
        shown[message.channel].append((message.reply_to, message.text))
    for channel in range(result.channels):
        wanted = [
            (_message(channel, number).id, f"answer to channel {channel} question {number}.")
            for number in range(messages)
        ]
        found = shown[_channel_key(channel)]
        result.lost += [text for to, text in wanted if (to, text) not in found]
        result.duplicated += [text for to, text in wanted if sum(to == other for other, _ in found) > 1]
        result.leaked += [text for _, text in found if any(int(mark[0]) != channel for mark in _MARK.findall(text))]
        if found != wanted and sorted(map(str, found)) == sorted(map(str, wanted)):
            result.misordered.append(f"channel {channel}")


def _count_prompts(result: OrderResult, engine: ScriptedEngine, messages: int) -> None:
    """Check that each prompt has exactly the earlier questions and answers of its channel."""
    asked: defaultdict[int, int] = defaultdict(int)
    for request in engine.requests:
        marks = [(int(a), int(b)) for message in request.messages for a, b in _MARK.findall(message.content)]
        channel, number = marks[-1]
        if number != asked[channel]:
            result.misordered.append(f"channel {channel}: {number} where {asked[channel]} was next")
        asked[channel] += 1
        earlier = [(channel, before) for before in range(number) for _ in ("question", "answer")]
        if any(other != channel for other, _ in marks):
            result.leaked.append(f"in the prompt of {channel}: {marks}")
        elif marks != [*earlier, (channel, number)]:
            result.misordered.append(f"the prompt of channel {channel}, question {number}: {marks}")
    if len(engine.requests) != result.questions:
        result.duplicated.append(f"the model was asked {len(engine.requests)} times")
    result.lost += [
        f"channel {channel}: never asked" for channel in range(result.channels) if asked[channel] < messages
    ]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    result = await (run_channels(1000, 20, seed) if scale == "full" else run_channels(40, 8, seed))
    yield Row("all parts", str(result), result.is_kept)

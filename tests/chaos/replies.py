"""Hostile model output through each platform's real library: mentions, broken markup, half characters.

The server decides as the platform does whether a text mentions anyone, and parses markup
strictly.  All words must be in the messages.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from bot.adapters.discord.http import configure_library, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.slack.client import web_api
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.telegram.client import open_bot
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.chat.stream import ReplyStream
from bot.delivery.markdown.blocks import visible_text
from bot.delivery.messenger import Messenger
from bot.delivery.pacer import Pacer
from bot.delivery.sender import Sender
from bot.delivery.view import ReplyView
from bot.domain import ChannelKey, Delta, Exchange, Finished, FinishReason, Kind, Notice, Status, Usage
from bot.observability.metrics import Metrics
from bot.util.text import clean, replace_surrogates
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FakeKnownMessages
from tests.harness.fakes.clock import FastClock
from tests.harness.messages import a_message
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import UNCHANGED, TelegramPlatform

COUNTS: dict[Scale, int] = {"full": 10_000, "short": 60}
_CONCURRENT = 16
_WORD = re.compile(r"w\d+z")
# The server also counts what Slack ignores, such as <!doctype html>.
_MENTIONS = re.compile(r"<(?:!(?:channel|here|everyone|group|subteam|date)\b|[@#])", re.IGNORECASE)

_PIECES = (
    "@everyone", "@here", "<@123456789012345678>", "<@!1>", "<@&100000000000000000>", "<#100000000000000100>",
    "<!channel>", "<!here|here>", "<!EVERYONE>", "<!subteam^S1>", "<@U001>", "<@U001|Mei>", "<#C001|general>",
    "[Mei](tg://user?id=7000)", '<a href="tg://user?id=7000">Mei</a>', "[x](<@U001>)", "`<!channel>`", "[@here](@here)",
    "```", "~~~", "````py", "`", "``", "**", "*", "__", "_", "~~", "||", "> ", ">>> ", "# ", "- ", "1. ", "| a | b |",
    "|---|---|", "<b>", "</b>", "<script>", "&lt;!channel&gt;", "&amp;", "\\", "\\<!here>", "](", "![", "---",
    "\u202e", "\u2066", "\u200b", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e" + "\u0301" * 30, "\ud800", "\x00", "\x1b[2J",
    "\n", "\n\n", "\r\n", "    ", "\t", "好", "，", "<", "<!", "<@", "@",
)  # fmt: skip


@dataclass(slots=True)
class MessengerTarget:
    """A platform and its messenger; `text` returns a message's text and forgets it."""

    platform: Any
    messenger: Messenger
    channel: ChannelKey
    text: Callable[[str], str]
    violations: Callable[[], list[str]]
    faults: list[str] = field(default_factory=list)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    """One row per platform."""
    for name, opened in OPENERS.items():
        async with AsyncExitStack() as stack:
            yield await _row(name, await opened(stack), COUNTS[scale], seed)


def reply(chance: random.Random, number: int) -> str:
    """Return countable words with hostile pieces between them."""
    if chance.random() < 0.0005:
        return f"w{number}z {'x' * 100_000} w{number + 1}z"
    parts = []
    for word in range(chance.randrange(2, 40)):
        parts.append(f"w{number + word}z")
        parts += chance.choices(_PIECES, k=chance.randrange(1, 5))
        parts.append(chance.choice(["", " ", "\n"]))
    return "".join(parts) * (chance.randrange(5, 40) if chance.random() < 0.002 else 1)


def deltas(chance: random.Random, text: str) -> list[str]:
    """Cut the text at random places, also within a mention."""
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(4)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


async def _row(name: str, target: MessengerTarget, count: int, seed: int) -> Row:
    chance = random.Random(f"{seed} {name} replies")
    pacer = Pacer(target.messenger.edit_interval, FastClock(1e6))
    metrics, lost, crashes, messages = Metrics(), 0, 0, 0
    why: list[str] = []

    async def one(number: int) -> None:
        nonlocal lost, crashes, messages
        said = reply(chance, number)
        # The bot's notices may quote users, whose texts are cleaned on arrival.
        is_notice = chance.random() < 0.1
        said = clean(said) if is_notice else said
        parts = deltas(chance, said)
        ids: list[str] = []

        async def record_part(part: int, message_id: str) -> None:
            ids[part:] = [message_id]

        stream = ReplyStream()
        for event in [Notice(said)] if is_notice else [Delta(replace_surrogates(part)) for part in parts]:
            stream.put(event)
        stream.put(Finished(FinishReason.STOP, Usage(0, 0)))
        # A question for each reply: the nonces of its messages are derived from its id.
        question = await target.platform.say("what?")
        message = a_message(said, id=question, channel=target.channel)
        exchange = Exchange(number + 1, message, Kind.CHAT, Status.OPEN, 0)
        try:
            async with asyncio.timeout(TIMEOUT):
                view = ReplyView(exchange, target.messenger.format, str)
                await Sender(target.messenger, exchange, view, pacer, [], record_part, metrics).run(stream)
        except Exception as error:  # noqa: BLE001 - every error is counted
            crashes += 1
            why.append(f"{error!r} at {said[:80]!r}")
            return
        messages += len(ids)
        shown = set(_WORD.findall("".join(map(target.text, ids))))
        # Telegram parses the markup, so a word may become a code block's language or a URL.
        missing = set(_WORD.findall(visible_text(said) if name == "telegram" else said)) - shown
        if missing:
            lost += 1
            why.append(f"{len(missing)} words are missing of {said[:120]!r}")

    for begin in range(0, count, _CONCURRENT):
        await asyncio.gather(*(one(100 * number) for number in range(begin, min(begin + _CONCURRENT, count))))
    violations = target.violations()
    told = (
        f"{count:,} replies in {messages:,} messages: pings and markup errors {len(violations)}, "
        f"words lost {lost}, crashes {crashes}"
    )
    for each in [*violations[:3], *why[:3]]:
        told += f"\n     {each[:300]}"
    return Row(name, told, not (violations or lost or crashes))


async def _discord(stack: AsyncExitStack) -> MessengerTarget:
    platform = await stack.enter_async_context(DiscordPlatform())
    clock = FastClock(500.0)
    settings = platform.settings()
    configure_library(settings)
    messenger = DiscordMessenger(settings.edit_seconds, 10.0)
    messenger.client = client = await stack.enter_async_context(rest_client(settings, clock))
    await client.login(TOKEN)
    channel = ChannelKey("discord", str(platform.channel("general")))
    return MessengerTarget(
        platform,
        messenger,
        channel,
        lambda id: str(platform.messages.pop(int(id))["content"]),
        lambda: platform.violations,
    )


async def _telegram(stack: AsyncExitStack) -> MessengerTarget:
    platform = await stack.enter_async_context(TelegramPlatform())
    settings = platform.settings()
    bot = await open_bot(settings)
    await bot.initialize()
    stack.push_async_callback(bot.shutdown)

    async def moved(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no group migrates here")

    chat = platform.group("general")

    def violations() -> list[str]:
        entities = [each for _, form in platform.calls for each in form.get("entities", [])]
        called = [
            each for each in entities if "mention" in each["type"] or not each.get("url", "http").startswith("http")
        ]
        return [*(each for each in platform.violations if each != UNCHANGED), *map(str, called)]

    return MessengerTarget(
        platform,
        TelegramMessenger(bot, settings, moved, FakeKnownMessages()),
        ChannelKey("telegram", str(chat.id)),
        lambda id: platform.messages.pop((chat.id, int(id))).text,
        violations,
    )


async def _slack(stack: AsyncExitStack) -> MessengerTarget:
    platform = await stack.enter_async_context(SlackServer())
    api = await stack.enter_async_context(web_api(platform.settings()))
    channel = ChannelKey("slack", platform.workspace.channel("general"))
    return MessengerTarget(
        platform,
        SlackMessenger(api, 1.0),
        channel,
        lambda id: platform.workspace.messages.pop(id).markdown,
        lambda: [*platform.violations, *filter(_MENTIONS.match, platform.workspace.pings)],
    )


OPENERS: dict[str, Callable[[AsyncExitStack], Awaitable[MessengerTarget]]] = {
    "discord": _discord,
    "telegram": _telegram,
    "slack": _slack,
}

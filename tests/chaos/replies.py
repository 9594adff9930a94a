"""What a model may say, through each platform's real library: pings, torn markup, half characters.

The server decides as the platform would whether anybody is called, and reads the markup
strictly.  All words must stand in the messages.
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from bot.adapters.discord.http import configure_endpoints, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.slack.client import web_api
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.telegram.client import open_bot
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.delivery.markdown.blocks import visible_text
from bot.delivery.messenger import Messenger
from bot.delivery.pacer import Pacer
from bot.delivery.sender import Delivery, parts_of
from bot.domain import ChannelKey, Delta, Exchange, Finished, FinishReason, Kind, Notice, ReplyEvent, Status, Usage
from bot.util.text import clean, replace_surrogates
from tests.chaos.figure import Row, Scale
from tests.harness.fakes.clock import FastClock
from tests.harness.messages import a_message
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import UNCHANGED, TelegramPlatform

COUNTS: dict[Scale, int] = {"full": 10_000, "short": 60}
_AT_ONCE = 16
_WORD = re.compile(r"w\d+z")
# The server counts more than what Slack knows: <!doctype html> calls nobody.
_CALLS = re.compile(r"<(?:!(?:channel|here|everyone|group|subteam|date)\b|[@#])", re.IGNORECASE)

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
class Stage:
    """A platform with the messenger that writes there; `text` is what a message shows."""

    platform: Any
    messenger: Messenger
    channel: ChannelKey
    question: str
    text: Callable[[str], str]
    violations: Callable[[], list[str]]
    faults: list[str] = field(default_factory=list)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    """One row per platform."""
    for name, opened in OPENED.items():
        async with AsyncExitStack() as stack:
            yield await _row(name, await opened(stack), COUNTS[scale], seed)


def reply(chance: random.Random, number: int) -> str:
    """Words that can be counted, and between them what should do nothing."""
    if chance.random() < 0.0005:
        return f"w{number}z {'x' * 100_000} w{number + 1}z"
    parts = []
    for word in range(chance.randrange(2, 40)):
        parts.append(f"w{number + word}z")
        parts += chance.choices(_PIECES, k=chance.randrange(1, 5))
        parts.append(chance.choice(["", " ", "\n"]))
    return "".join(parts) * (chance.randrange(5, 40) if chance.random() < 0.002 else 1)


def deltas(chance: random.Random, text: str) -> list[str]:
    """The text as a model says it, cut anywhere: also within a mention."""
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(4)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


async def _row(name: str, stage: Stage, count: int, seed: int) -> Row:
    chance = random.Random(f"{seed} {name} replies")
    pacer = Pacer(stage.messenger.edit_interval, FastClock(1e6))
    lost = crashes = messages = 0
    why: list[str] = []

    async def one(number: int) -> None:
        nonlocal lost, crashes, messages
        said = reply(chance, number)
        # The bot's own sentences hold people's words as well, which are cleaned when they come in.
        is_notice = chance.random() < 0.1
        said = clean(said) if is_notice else said
        parts = deltas(chance, said)
        ids: list[str] = []

        async def placed(exchange: int, part: int, message_id: str) -> None:
            ids[part:] = [message_id]

        async def events() -> AsyncGenerator[ReplyEvent, None]:
            if is_notice:
                yield Notice(said)
            else:
                for each in parts:
                    yield Delta(replace_surrogates(each))
            yield Finished(FinishReason.STOP, Usage(0, 0))

        message = a_message(said, id=stage.question, channel=stage.channel)
        exchange = Exchange(number + 1, message, Kind.CHAT, Status.OPEN, 0)
        try:
            async with asyncio.timeout(60):
                await Delivery(stage.messenger, exchange, placed, pacer, parts_of(exchange)).run(events())
        except Exception as error:  # noqa: BLE001 - to count them all is what this is for
            crashes += 1
            why.append(f"{error!r} at {said[:80]!r}")
            return
        messages += len(ids)
        shown = set(_WORD.findall("".join(map(stage.text, ids))))
        # Where the markup is read here, a word may be the name of a code block's language, or a link's address.
        missing = set(_WORD.findall(visible_text(said) if name == "telegram" else said)) - shown
        if missing:
            lost += 1
            why.append(f"{len(missing)} words are missing of {said[:120]!r}")

    for begin in range(0, count, _AT_ONCE):
        await asyncio.gather(*(one(100 * number) for number in range(begin, min(begin + _AT_ONCE, count))))
    violations = stage.violations()
    told = (
        f"{count:,} replies in {messages:,} messages: pings and markup errors {len(violations)}, "
        f"words lost {lost}, crashes {crashes}"
    )
    for each in [*violations[:3], *why[:3]]:
        told += f"\n     {each[:300]}"
    return Row(name, told, not (violations or lost or crashes))


async def _discord(stack: AsyncExitStack) -> Stage:
    platform = await stack.enter_async_context(DiscordPlatform())
    clock = FastClock(500.0)
    settings = platform.settings()
    configure_endpoints(settings)
    messenger = DiscordMessenger(settings.edit_seconds, 10.0)
    messenger.client = client = await stack.enter_async_context(rest_client(settings, clock))
    await client.login(TOKEN)
    question = await platform.say("what?")
    channel = ChannelKey("discord", str(platform.channel("general")))
    return Stage(
        platform,
        messenger,
        channel,
        question,
        lambda id: str(platform.messages.pop(int(id))["content"]),
        lambda: platform.violations,
    )


async def _telegram(stack: AsyncExitStack) -> Stage:
    platform = await stack.enter_async_context(TelegramPlatform())
    settings = platform.settings()
    bot = open_bot(settings)
    await bot.initialize()
    stack.push_async_callback(bot.shutdown)

    async def moved(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no group moves here")

    question = await platform.say("what?")
    chat = platform.group("general")

    def violations() -> list[str]:
        entities = [each for _, form in platform.calls for each in form.get("entities", [])]
        called = [
            each for each in entities if "mention" in each["type"] or not each.get("url", "http").startswith("http")
        ]
        return [*(each for each in platform.violations if each != UNCHANGED), *map(str, called)]

    return Stage(
        platform,
        TelegramMessenger(bot, settings, moved),
        ChannelKey("telegram", str(chat.id)),
        question,
        lambda id: platform.messages.pop((chat.id, int(id))).text,
        violations,
    )


async def _slack(stack: AsyncExitStack) -> Stage:
    platform = await stack.enter_async_context(SlackServer())
    api = await stack.enter_async_context(web_api(platform.settings()))
    question = await platform.say("what?")
    channel = ChannelKey("slack", platform.workspace.channel("general"))
    return Stage(
        platform,
        SlackMessenger(api, 1.0),
        channel,
        question,
        lambda id: platform.workspace.messages.pop(id).markdown,
        lambda: [*platform.violations, *filter(_CALLS.match, platform.workspace.pings)],
    )


OPENED: dict[str, Callable[[AsyncExitStack], Awaitable[Stage]]] = {
    "discord": _discord,
    "telegram": _telegram,
    "slack": _slack,
}

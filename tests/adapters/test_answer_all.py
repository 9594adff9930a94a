"""`answer = "all"`: in such a channel messages that address nobody are answered, those to other people are not."""

from pathlib import Path

import pytest

from bot.config.places import PlaceSection
from bot.config.schema import Config
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import Harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform


def configure(harness: Harness, channel: str) -> None:
    harness.settings.reconfigure(Config(channels={channel: PlaceSection(answer="all")}))


def asked(harness: Harness) -> list[str]:
    return [request.messages[-1].content.rpartition(": ")[2] for request in harness.engine.requests]


async def test_on_discord(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say("nobody in another channel", channel="random", mention=False)
        await platform.say("what is a shell", mention=False)
        await bot.shows("ok")
        await platform.say("everyone, come here", mention=False, mention_everyone=True)
        await platform.say("and a kernel", mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == ["what is a shell", "and a kernel"]


async def test_on_discord_what_was_missed_is_answered_too(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say("what is a shell", mention=False)
        await bot.shows("ok")
        await platform.disconnect(resumable=False)
        await platform.say("and a kernel", mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == ["what is a shell", "and a kernel"]


async def test_on_telegram(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        configure(harness, f"telegram:{telegram.group('general').id}")
        await telegram.say("nobody in another channel", channel="random", mention=False)
        await telegram.say("what is a shell", mention=False)
        await telegram_harness.done(telegram, "ok")
        first = await telegram.say("@Ben_the_builder, you?", mention=False)
        await telegram.say("no, you", author="Ben", mention=False, reply_to=first)
        await telegram.say("and a kernel", mention=False)
        await telegram_harness.done(telegram, "ok", "ok")
    assert asked(harness) == ["what is a shell", "and a kernel"]


async def test_on_slack(harness: Harness) -> None:
    async with SlackServer() as server, slack_harness.running(harness, server):
        configure(harness, f"slack:{server.workspace.channel('general')}")
        await server.say("nobody in another channel", channel="random", mention=False)
        await server.say("what is a shell", mention=False)
        await slack_harness.answered(server, "ok")
        await server.say("<@U0000BEN>, you?", mention=False)
        await server.say("and a kernel", mention=False)
        await slack_harness.answered(server, "ok", "ok")
    assert asked(harness) == ["what is a shell", "and a kernel"]


@pytest.mark.parametrize("text", ["/settings answer all", "/settings answer ALL"])
async def test_it_is_switched_on_in_the_chat_which_tells_so(
    platform: DiscordPlatform, tmp_path: Path, text: str
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        platform.managers.add("Mei")
        told = "From the next message on:\n\n- `answer` = all (for this channel, set in the chat)"
        await platform.say(text)
        await bot.shows(told)
        await platform.say("what is a shell", author="Ben", mention=False)
        await bot.shows(told, "ok")
        assert asked(bot.harness) == ["what is a shell"]

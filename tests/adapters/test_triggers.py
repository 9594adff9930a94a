"""`triggers`: messages that begin with such a word are answered, those that also call another person are not."""

from pathlib import Path

from bot.config.places import PlaceSection
from bot.config.schema import Config
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import Harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform


def configure(harness: Harness, channel: str) -> None:
    harness.settings.reconfigure(Config(channels={channel: PlaceSection(triggers=("glm", "小智"))}))


def asked(harness: Harness) -> list[str]:
    return [request.messages[-1].content.rpartition(": ")[2] for request in harness.engine.requests]


async def test_on_discord(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say("GLM in another channel", channel="random", mention=False)
        first = await platform.say("my glm is slow", mention=False)
        await platform.say("GLM, what is a shell", mention=False)
        await bot.shows("ok")
        await platform.say("glm, everyone is here", mention=False, mention_everyone=True)
        await platform.say("glm, no, you", mention=False, reply_to=first)
        await platform.say("小智你好", mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == ["GLM, what is a shell", "小智你好"]


async def test_on_discord_what_was_missed_is_answered_too(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, f"discord:{platform.channel('general')}")
        await platform.say("glm what is a shell", mention=False)
        await bot.shows("ok")
        await platform.disconnect(resumable=False)
        await platform.say("never mind", mention=False)
        await platform.say("glm and a kernel", mention=False)
        await bot.shows("ok", "ok")
        assert asked(bot.harness) == ["glm what is a shell", "glm and a kernel"]


async def test_on_discord_a_trigger_that_an_edit_adds_counts(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, f"discord:{platform.channel('general')}")
        said = await platform.say("gml what is a shell", mention=False)
        await platform.edit(said, "my glm is slow")
        await platform.edit(said, "glm what is a shell")
        await bot.shows("ok")
        assert asked(bot.harness) == ["glm what is a shell"]


async def test_on_telegram(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        configure(harness, f"telegram:{telegram.group('general').id}")
        await telegram.say("glm in another channel", channel="random", mention=False)
        await telegram.say("my glm is slow", mention=False)
        await telegram.say("glm what is a shell", mention=False)
        await telegram_harness.done(telegram, "ok")
        first = await telegram.say("glm, @Ben_the_builder knows", mention=False)
        await telegram.say("glm, no, you", author="Ben", mention=False, reply_to=first)
        edited = await telegram.say("小志你好", mention=False)
        await telegram.edit(edited, "小智你好")
        await telegram_harness.done(telegram, "ok", "ok")
    assert asked(harness) == ["glm what is a shell", "小智你好"]


async def test_on_slack(harness: Harness) -> None:
    async with SlackServer() as server, slack_harness.running(harness, server):
        configure(harness, f"slack:{server.workspace.channel('general')}")
        await server.say("glm in another channel", channel="random", mention=False)
        await server.say("my glm is slow", mention=False)
        await server.say("glm what is a shell", mention=False)
        await slack_harness.answered(server, "ok")
        await server.say("glm, <@U0000BEN> knows", mention=False)
        edited = await server.say("小志你好", mention=False)
        await server.edit(edited, "小智你好")
        await slack_harness.answered(server, "ok", "ok")
    assert asked(harness) == ["glm what is a shell", "小智你好"]


async def test_they_are_written_in_the_chat(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        platform.managers.add("Mei")
        told = "From the next message on:\n\n- `triggers` = `glm`, `hey bot` (for this channel, set in the chat)"
        await platform.say("/settings triggers glm, hey bot")
        await bot.shows(told)
        await platform.say("Hey bot what is a shell", author="Ben", mention=False)
        await bot.shows(told, "ok")
        assert asked(bot.harness) == ["Hey bot what is a shell"]

"""Commands for settings on each platform: in its native form, for those who manage the channel."""

from pathlib import Path
from typing import Any

import pytest

from bot.adapters.discord.commands import command_payload
from bot.chat.commands import Command, menu
from bot.config.places import PlaceSection
from bot.config.schema import Config
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.harness import Harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform

TABLES: dict[str, Any] = {
    "personas": {"pirate": {"system_prompt": "You are a pirate."}, "poet": {"system_prompt": "You are a poet."}},
    "platforms": {name: {"models": ["engine"]} for name in ("discord", "slack", "telegram")},
}
REFUSED = "Only admins and those who manage this channel may do that."
MANAGERS_ONLY = "Only admins and those who manage this channel may ask me here."
CHANGED = "From the next message on:\n\n- Persona: pirate (for this channel, set in the chat)"


def configure(harness: Harness) -> None:
    harness.settings.reconfigure(Config(**TABLES))


def instructions(harness: Harness) -> list[str]:
    return [each.content for each in harness.engine.requests[-1].messages if each.role == "system"]


async def test_on_discord_who_manages_channels_sets_a_persona(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness)
        await platform.command("persona use pirate")
        await bot.shows(REFUSED)
        platform.managers.add("Mei")
        await platform.command("persona use pirate")
        await bot.shows(REFUSED, CHANGED)
        platform.managers.clear()
        await platform.say("/persona use poet")
        await bot.shows(REFUSED, CHANGED, REFUSED)
        await platform.say("hello")
        await bot.shows(REFUSED, CHANGED, REFUSED, "ok")
        assert instructions(bot.harness) == ["You are a pirate."]


async def test_on_telegram_an_administrator_sets_a_persona(harness: Harness) -> None:
    configure(harness)
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        await telegram.command("persona use pirate")
        await telegram_harness.done(telegram, REFUSED)
        telegram.administrators.add("Mei")
        await telegram.command("persona use pirate")
        await telegram.until(lambda: "Persona: pirate" in telegram_harness.texts(telegram)[-1])
        assert [change.value for change in await harness.store.settings()] == ["pirate"]
        await telegram.say("hello")
        await telegram.until(lambda: len(harness.engine.requests) == 1)
    assert instructions(harness) == ["You are a pirate."]


@pytest.mark.parametrize("role", ["creator", "admin"])
async def test_on_slack_the_creator_and_the_workspaces_admins_set_a_persona(harness: Harness, role: str) -> None:
    configure(harness)
    async with SlackServer() as server, slack_harness.running(harness, server):
        await server.say("/persona use pirate", author="Ben")
        await slack_harness.answered(server, REFUSED)
        if role == "creator":
            server.workspace.creators["general"] = "Ben"
        else:
            server.workspace.admins.add("Ben")
        await server.command("persona use pirate", author="Ben")
        await slack_harness.answered(server, REFUSED, CHANGED)
        await server.command("persona use poet", author="Jo")
        await slack_harness.answered(server, REFUSED, CHANGED, REFUSED)
        await server.say("hello")
        await server.until(lambda: len(harness.engine.requests) == 1)
    assert instructions(harness) == ["You are a pirate."]


async def test_discord_registers_options_and_completes_them(bot: DiscordBot) -> None:
    configure(bot.harness)
    await bot.platform.until(lambda: bool(bot.platform.commands))
    persona = next(each for each in bot.platform.commands if each["name"] == "persona")
    assert [each["name"] for each in persona["options"]] == ["show", "set", "use", "clear"]
    assert await bot.platform.type_option("persona use p") == ["pirate", "poet"]
    assert await bot.platform.type_option("model e") == ["engine"]
    assert await bot.platform.type_option("persona set You") == []
    await bot.platform.command("forget me")
    await bot.shows("I have no messages of yours.")


@pytest.mark.parametrize("command", menu(), ids=lambda command: command.name)
def test_discord_takes_required_options_first_and_describes_each(command: Command) -> None:
    groups = [command_payload(command)["options"]]
    groups += [each["options"] for each in groups[0] if "options" in each]
    for options in groups:
        required = [option.get("required", False) for option in options]
        assert required == sorted(required, reverse=True)
        assert all(0 < len(each["description_localizations"]["zh-CN"]) <= 100 for each in options)


QUOTA: dict[str, Any] = {"quotas": {"user": {"answers_per_month": 1}}}


async def test_on_discord_a_person_sees_the_quota_and_is_refused(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.harness.settings.reconfigure(Config(**QUOTA))
        await platform.say("hello")
        await bot.shows("ok")
        await platform.say("hello again")
        await platform.until(lambda: any("used up your quota" in text for text in bot.shown("general")))
        await platform.command("usage show")
        await platform.until(lambda: any("answers per month: 1, left: 0" in text for text in bot.shown("general")))


async def test_on_telegram_a_person_sees_the_quota_and_is_refused(harness: Harness) -> None:
    harness.settings.reconfigure(Config(**QUOTA))
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        await telegram.say("hello")
        await telegram_harness.done(telegram, "ok")
        await telegram.say("hello again")
        await telegram.until(lambda: "used up your quota" in telegram_harness.texts(telegram)[-1])
        await telegram.command("usage")
        await telegram.until(lambda: "answers per month: 1, left: 0" in telegram_harness.texts(telegram)[-1])


async def test_on_slack_a_person_sees_the_quota_and_is_refused(harness: Harness) -> None:
    harness.settings.reconfigure(Config(**QUOTA))
    async with SlackServer() as server, slack_harness.running(harness, server):
        await server.say("hello", author="Ben")
        await slack_harness.answered(server, "ok")
        await server.command("usage", author="Ben")
        await server.until(
            lambda: any("answers per month: 1, left: 0" in text for text in slack_harness.bots(server.seen("general")))
        )


def for_managers(harness: Harness, platform: str) -> None:
    harness.settings.reconfigure(Config(platforms={platform: PlaceSection(who=("managers",))}))


async def test_on_discord_who_manages_channels_may_ask(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        for_managers(bot.harness, "discord")
        await platform.say("hello")
        await bot.shows(MANAGERS_ONLY)
        platform.managers.add("Mei")
        await platform.say("hello")
        await bot.shows(MANAGERS_ONLY, "ok")


async def test_on_telegram_administrators_may_ask(harness: Harness) -> None:
    for_managers(harness, "telegram")
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        await telegram.say("hello")
        await telegram_harness.done(telegram, MANAGERS_ONLY)
        telegram.administrators.add("Mei")
        await telegram.say("hello")
        await telegram_harness.done(telegram, MANAGERS_ONLY, "ok")


async def test_on_slack_the_workspaces_admins_may_ask(harness: Harness) -> None:
    for_managers(harness, "slack")
    async with SlackServer() as server, slack_harness.running(harness, server):
        await server.say("hello", author="Ben")
        await slack_harness.answered(server, MANAGERS_ONLY)
        server.workspace.admins.add("Ben")
        await server.say("hello", author="Ben")
        await slack_harness.answered(server, MANAGERS_ONLY, "ok")

"""Admin commands are refused to all other users, on every platform and in every spelling."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from bot.chat.access import OPERATOR, Access
from bot.chat.commands import COMMANDS, menu
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.domain import Author, ChannelKey, EngineInfo, FinishReason, ModelStatus, Notice, RunningBot, Upkeep
from bot.observability import process
from bot.observability.health import Components
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness, notice_of, set_paused, text_of
from tests.harness.messages import NOON, a_message

PLATFORMS = ("discord", "telegram", "slack", "console")
ADMIN_ID = "9"
FOR_ADMINS = [command.name for command in COMMANDS.values() if command.is_for_admins]
ADMINS = AccessSection(admins=tuple(f"{platform}:{ADMIN_ID}" for platform in PLATFORMS[:3]))


def role(name: str, platform: str) -> Author:
    """Return a user of this platform; all but the last two only resemble an admin."""
    others = {"discord": "telegram", "telegram": "slack", "slack": "discord", "console": "discord"}
    return {
        "member": Author(platform, "1", "Mei"),
        "namesake": Author(platform, "1", ADMIN_ID),
        "role": Author(platform, "1", "Mei", roles=frozenset({ADMIN_ID, "admin", f"{platform}:{ADMIN_ID}"})),
        "spaces": Author(platform, f" {ADMIN_ID}", "Ada"),
        "longer": Author(platform, f"{ADMIN_ID}9", "Ada"),
        "prefixed": Author(platform, f"{others[platform]}:{ADMIN_ID}", "Ada"),
        "named operator": Author(platform, OPERATOR.name if platform != "console" else "1", OPERATOR.name),
        "admin": Author(platform, ADMIN_ID, "Ada"),
        "operator": OPERATOR,
    }[name]


def may(name: str, platform: str) -> bool:
    return name == "operator" or (name == "admin" and platform != "console")


ROLES = ("member", "namesake", "role", "spaces", "longer", "prefixed", "named operator", "admin", "operator")


async def effect_of(harness: Harness, text: str, author: Author, platform: str) -> str:
    """Return the reply of the bot."""
    return notice_of(await harness.ask(a_message(text, author=author, channel=ChannelKey(platform, "general"))))


async def statuses_with(harness: Harness, components: Components) -> tuple[str, str]:
    """Return what /status tells a member and an admin of a bot with these components."""
    intake = Intake(
        harness.access, harness.engine, harness.store, harness.settings, today=lambda: NOON, components=components
    )
    said = []
    for name in ("member", "admin"):
        exchange = await intake.accept(a_message("/status", author=role(name, "discord")))
        assert exchange is not None
        async with intake.answers.stream(exchange) as events:
            said.append("".join([event.text async for event in events if isinstance(event, Notice)]))
    member, admin = said
    return member, admin


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ROLES)
async def test_an_admin_command_does_nothing_for_other_users(tmp_path: Path, name: str, platform: str) -> None:
    author = role(name, platform)
    async with make_harness(tmp_path, access=ADMINS) as harness:
        for command in FOR_ADMINS:
            for text in (f"/{command}", f"/{command.upper()}", f"/{command}@our_bot", command, f"  /{command} now "):
                set_paused(harness.access) if command == "resume" else set_paused(harness.access, is_paused=False)
                paused = harness.access.is_paused

                said = await effect_of(harness, text, author, platform)

                assert ("Only admins" in said) is not may(name, platform), text
                if not may(name, platform):
                    assert harness.access.is_paused is paused, text


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ROLES)
async def test_all_users_may_use_the_other_commands(tmp_path: Path, name: str, platform: str) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        for command in menu():
            assert "Only admins" not in await effect_of(harness, f"/{command.name}", role(name, platform), platform)


@pytest.mark.parametrize("name", ROLES)
async def test_help_and_status_tell_admins_more(tmp_path: Path, name: str) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        listed = await effect_of(harness, "/help", role(name, "discord"), "discord")
        status = await effect_of(harness, "/status", role(name, "discord"), "discord")

    assert all((f"`/{command}`" in listed) is may(name, "discord") for command in FOR_ADMINS)
    assert all((word in status) is may(name, "discord") for word in ("Memory: ", "Uptime: ", "Python 3.", "torch "))


@pytest.mark.parametrize("name", ROLES)
async def test_only_admins_see_where_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    info = EngineInfo("/srv/models/qwen3", "remote", "none", "none", "gpu1.intranet:8000", 2048)
    monkeypatch.setattr(ScriptedEngine, "info", property(lambda self: info))
    async with make_harness(tmp_path, access=ADMINS) as harness:
        status = await effect_of(harness, "/status", role(name, "discord"), "discord")
    assert "qwen3 (" in status
    assert ("/srv" in status, "intranet" in status) == (may(name, "discord"), may(name, "discord"))


async def test_no_edit_makes_a_question_a_command(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        question = a_message("hi", author=role("member", "discord"))
        await harness.ask(question)
        edited = await harness.intake.edit(a_message("/pause", id=question.id, author=role("admin", "discord")))
        assert edited is not None
        await harness.replied(edited)
        assert not harness.access.is_paused


async def test_pausing_rejects_new_questions_and_finishes_running_answers(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        admin = role("admin", "discord")
        harness.engine.go_on.clear()
        running = asyncio.create_task(harness.ask(a_message("before")))
        await harness.engine.asked(1)
        assert "until /resume" in await effect_of(harness, "/pause", admin, "discord")
        harness.engine.go_on.set()
        assert text_of(await running) == "ok"

        events = await harness.ask(a_message("while"))

        assert ("paused" in notice_of(events), text_of(events)) == (True, "")
        assert events[-1].reason is FinishReason.ERROR  # type: ignore[union-attr]  # the last is Finished
        assert "Paused" in await effect_of(harness, "/status", admin, "discord")
        assert "again" in await effect_of(harness, "/resume", admin, "discord")
        assert "not paused" in await effect_of(harness, "/resume", admin, "discord")
        assert text_of(await harness.ask(a_message("after"))) == "ok"


async def test_a_pause_outlasts_a_restart(tmp_path: Path) -> None:
    admin = role("admin", "telegram")
    async with make_harness(tmp_path, access=ADMINS) as harness:
        await effect_of(harness, "/pause", admin, "telegram")
    async with make_harness(tmp_path, access=ADMINS) as harness:
        assert "paused" in notice_of(await harness.ask(a_message("while")))
        await effect_of(harness, "/resume", admin, "telegram")
    async with make_harness(tmp_path, access=ADMINS) as harness:
        assert text_of(await harness.ask(a_message("after"))) == "ok"


async def test_bots_that_share_the_database_are_paused_together(tmp_path: Path) -> None:
    admin = role("admin", "slack")
    async with make_harness(tmp_path, access=ADMINS) as harness:
        settings = ChatSettings()
        access = Access(ADMINS, LimitsSection(), harness.clock, rules=settings.rules)
        other = Intake(access, harness.engine, harness.store, settings, today=lambda: NOON)
        await effect_of(harness, "/pause", admin, "slack")
        await other.choices.follow()
        assert access.is_paused
        await other.choices.resume(admin)
        await harness.intake.choices.follow()
        assert not harness.access.is_paused


async def test_a_pause_is_no_setting_of_a_channel(tmp_path: Path) -> None:
    admin = role("admin", "discord")
    async with make_harness(tmp_path, access=ADMINS) as harness:
        await effect_of(harness, "/settings temperature 0.5", admin, "discord")
        await effect_of(harness, "/pause", admin, "discord")
        assert "temperature" in await effect_of(harness, "/settings undo", admin, "discord")
        await effect_of(harness, "/forget me", admin, "discord")
        assert harness.access.is_paused
        assert "paused" not in await effect_of(harness, "/settings", admin, "discord")


async def test_limits_shows_the_current_limits(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        said = await effect_of(harness, "/limits", role("admin", "discord"), "discord")

    assert all(f"- `{name} = " in said for name, _ in harness.access.limits)


@pytest.mark.parametrize(("seconds", "shown"), [(600.0, "600"), (0.5, "0.5"), (1_000_000.0, "1000000")])
async def test_limits_writes_numbers_as_people_do(tmp_path: Path, seconds: float, shown: str) -> None:
    limits = LimitsSection(answer_seconds=seconds, tokens_per_hour_channel=2_000_000)
    async with make_harness(tmp_path, access=ADMINS, limits=limits) as harness:
        said = await effect_of(harness, "/limits", role("admin", "discord"), "discord")

    assert f"`answer_seconds = {shown}`" in said
    assert "`tokens_per_hour_channel = 2000000`" in said


@pytest.mark.parametrize(("language", "shown"), [("en", "Uptime: 3 d 1:00:00"), ("zh", "已运行：3 天 1:00:00")])
async def test_durations_are_in_the_language_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: Literal["en", "zh"], shown: str
) -> None:
    monkeypatch.setattr(process, "uptime", lambda: timedelta(days=3, hours=1))
    async with make_harness(tmp_path, access=ADMINS, conversation=ConversationSection(language=language)) as harness:
        assert shown in await effect_of(harness, "/status", role("admin", "discord"), "discord")


async def test_status_shows_each_of_several_models_and_admins_why_one_is_not_loaded(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=ADMINS) as harness:
        statuses = [
            ModelStatus("engine", fault="no such folder /models/big"),
            ModelStatus("small", harness.engine.info, harness.engine.load),
            ModelStatus("other", harness.engine.info, replace(harness.engine.load, is_changing=True)),
            ModelStatus("club", harness.engine.info, harness.engine.load, base="small"),
        ]
        components = Components(models=lambda: statuses)
        member, admin = await statuses_with(harness, components)
    assert "- Model engine: not available\n" in member
    assert "- Model small: scripted, answering: 0, waiting: 0\n" in member
    assert "- Model other: is being changed\n" in member
    assert "- Model club: shares small, with a prefix of its own\n" in member
    assert "- Model engine: not available (no such folder /models/big)\n" in admin


async def test_status_tells_admins_which_bot_serves_what(tmp_path: Path) -> None:
    bots = [RunningBot("attic:7", "0.9.0", ("discord", "slack")), RunningBot("cellar:12", "1.0.0", ())]
    async with make_harness(tmp_path, access=ADMINS) as harness:
        member, said = await statuses_with(harness, Components(bots=bots))
    assert "attic" not in member
    assert "- Bot attic:7, version 0.9.0: discord, slack\n" in said
    assert "- Bot cellar:12, version 1.0.0: standing by" in said


async def test_status_tells_admins_what_the_database_is_busy_with(tmp_path: Path) -> None:
    class Busy:
        upkeep = Upkeep(unencrypted=412, is_rewriting=True, lost=3)

        async def check(self) -> None: ...

    async with make_harness(tmp_path, access=ADMINS) as harness:
        _, said = await statuses_with(harness, Components(store=Busy()))
    assert "- Encrypting texts of an older version: 412 exchanges left.\n" in said
    assert "- The database file must be rewritten once" in said
    assert "- Cleared since the start, because their keys are deleted: 3 exchanges." in said


async def test_the_limit_of_commands_does_not_keep_an_admin_from_resuming(tmp_path: Path) -> None:
    limits = LimitsSection(requests_per_minute=2)
    async with make_harness(tmp_path, access=ADMINS, limits=limits) as harness:
        for name, text in (("admin", "/pause"), ("member", "/help"), ("admin", "/limits"), ("member", "/help")):
            await effect_of(harness, text, role(name, "discord"), "discord")
        assert "too fast" in await effect_of(harness, "/help", role("member", "discord"), "discord")
        assert "too fast" not in await effect_of(harness, "/resume", role("admin", "discord"), "discord")
        assert not harness.access.is_paused

"""The form of /settings: what it has where, who may use it, and what a use sets."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.chat.i18n import translator
from bot.config.places import PlaceSection
from bot.config.schema import AccessSection, Config, LimitsSection
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.errors import PlatformUnavailable, StoreError
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import MEI, a_message

GROUP = ChannelKey("discord", "c1")
CONFIG: dict[str, Any] = {
    "personas": {"pirate": {"system_prompt": "You are a pirate."}},
    "models": {"big": {"model": "demo"}},
    "servers": {"discord:s1": {"models": ["engine", "big"]}},
}
NUMBERS = ["temperature", "top_p", "max_answer_tokens"]
OTHERS = ["language", "show_thoughts", "name_speakers"]
REFUSED = "Only admins and those who manage this channel may do that."


def used(author: Author = MEI, **more: Any) -> IncomingMessage:
    return a_message("", author=author, channel=GROUP, server="s1", is_direct=False, **more)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path, access=AccessSection(admins=(MEI.key,))) as harness:
        harness.settings.reconfigure(Config(**CONFIG))
        yield harness


async def names(harness: Harness, message: IncomingMessage) -> list[str]:
    form = (await harness.intake.forms.use(message, {})).form
    assert form is not None
    return [field.name for field in form.fields]


async def test_the_form_has_what_may_be_set_in_its_place(harness: Harness) -> None:
    named = ["persona", "model", *NUMBERS, "persona_text"]
    assert await names(harness, used()) == [*named, "answer", "triggers", "history", *OTHERS]
    assert await names(harness, replace(used(), is_direct=True)) == [*named, *OTHERS]
    harness.settings.reconfigure(Config(servers={"discord:s1": PlaceSection(settings=("temperature",))}))
    assert await names(harness, used()) == ["temperature"]


@pytest.mark.parametrize("text", ["/settings", "/settings show", "/SETTINGS", "settings"])
async def test_a_bare_command_opens_the_form(harness: Harness, text: str) -> None:
    form = await harness.intake.forms.open(replace(used(), text=text))
    assert form is not None
    assert "- `temperature` = 0.95 (default)" in form.text
    assert await harness.intake.said_in(GROUP, 9) == []


@pytest.mark.parametrize("text", ["/settings top_p", "/settings undo", "/status", "hello"])
async def test_anything_else_opens_none(harness: Harness, text: str) -> None:
    assert await harness.intake.forms.open(replace(used(), text=text)) is None


async def test_a_form_opens_for_those_only_who_may_change_settings(harness: Harness) -> None:
    async def is_manager(message: IncomingMessage) -> bool:
        raise PlatformUnavailable("gone")

    ben = replace(used(Author("discord", "3", "Ben")), text="/settings")
    assert await harness.intake.forms.open(ben) is None
    harness.access.register_managers("discord", is_manager)
    assert await harness.intake.forms.open(ben) is None
    harness.access.reconfigure(AccessSection(deny_users=(MEI.key,)), harness.access.limits)
    assert await harness.intake.forms.open(replace(used(), text="/settings")) is None


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"persona": "pirate"}, {"persona": "pirate"}),
        ({"persona_text": "Be\nkind."}, {"persona": "Be\nkind."}),
        ({"triggers": "glm, 小智", "history": "member"}, {"triggers": "glm, 小智", "history": "member"}),
        ({"model": "big", "temperature": "0.25"}, {"model": "big", "temperature": "0.25"}),
        ({"max_answer_tokens": "0", "top_p": ""}, {}),
        ({"language": "zh", "undo": ""}, {}),
    ],
)
async def test_changes_are_set_as_by_the_commands(
    harness: Harness, changes: dict[str, str], stored: dict[str, str]
) -> None:
    result = await harness.intake.forms.use(used(locale="en-US"), changes)
    assert result.notice.startswith("From the next message on:")
    changed = [each for each in await harness.store.settings() if not each.is_cleared]
    assert {each.setting: each.value or each.text for each in changed} == stored


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": "hot"}, "`temperature` cannot be hot."),
        ({"temperature": "0.5\n/pause"}, "`temperature` cannot be 0.5\n/pause."),
        ({"persona": "parrot"}, "Unknown persona parrot; choose one of `pirate`."),
        ({"model": "small"}, "Model small is not available here"),
        ({"persona_text": "x" * 2001}, "2001 characters, the limit is 2000"),
        ({"pause": ""}, "This form is out of date. Please send /settings again."),
        ({"": "stop"}, "This form is out of date. Please send /settings again."),
    ],
)
async def test_what_cannot_be_set_is_refused_with_the_reason(
    harness: Harness, changes: dict[str, str], sentence: str
) -> None:
    assert sentence in (await harness.intake.forms.use(used(), changes)).notice
    assert (await harness.store.settings(), harness.access.is_paused) == ([], False)


async def test_a_setting_that_was_locked_meanwhile_is_refused(harness: Harness) -> None:
    harness.settings.reconfigure(Config(servers={"discord:s1": PlaceSection(settings=("persona",))}))
    result = await harness.intake.forms.use(used(), {"temperature": "1"})
    assert result.notice == "config.toml does not allow changing `temperature` here."


@pytest.mark.parametrize("changes", [{}, {"temperature": "0.5"}, {"undo": ""}])
async def test_others_neither_see_nor_use_the_form(harness: Harness, changes: dict[str, str]) -> None:
    await harness.intake.forms.use(used(), {"top_p": "0.5"})
    result = await harness.intake.forms.use(used(Author("discord", "3", "Ben")), changes)
    assert (result.notice, result.form) == (REFUSED, None)
    assert [change.setting for change in await harness.store.settings()] == ["top_p"]


async def test_a_denied_person_is_told_no_more_than_by_a_command(harness: Harness) -> None:
    harness.access.reconfigure(AccessSection(admins=(MEI.key,), deny_users=(MEI.key,)), harness.access.limits)
    result = await harness.intake.forms.use(used(), {"temperature": "0.5"})
    assert (result.notice, result.form) == ("I do not answer here.", None)


async def test_the_limit_of_commands_counts_a_use_once(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(requests_per_minute=1)) as harness:
        direct = replace(used(), is_direct=True)
        first = await harness.intake.forms.use(direct, {"temperature": "0.5", "top_p": "0.5"})
        second = await harness.intake.forms.use(direct, {"temperature": "1"})
        shown = await harness.intake.forms.use(direct, {})
    assert (first.form is None, second.form is None, shown.form is None) == (False, True, False)
    assert second.notice.startswith("You are sending commands too fast.")


async def test_a_database_that_fails_is_named(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: object) -> None:
        raise StoreError("full")

    monkeypatch.setattr(harness.intake.choices, "load", fail)
    result = await harness.intake.forms.use(used(), {"temperature": "0.5"})
    assert (result.notice[:25], result.form) == ("My database has a problem", None)


async def test_a_form_is_in_the_language_of_its_user_and_then_of_its_place(harness: Harness) -> None:
    zh = translator("zh")
    form = (await harness.intake.forms.use(used(locale="zh-CN"), {})).form
    assert form is not None
    (field,) = (each for each in form.fields if each.name == "temperature")
    assert (form.title(field), form.label(field, "clear")) == (zh("Temperature"), zh("Default"))
    form = (await harness.intake.forms.use(used(locale="zh-CN"), {"language": "en"})).form
    assert form is not None
    assert form.title(field) == "Temperature"

"""/persona and /model: what they change, who may use them, and what a prompt has then."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.chat.settings_commands import MOST_CHARACTERS
from bot.config.schema import AccessSection, Config, ConversationSection, LimitsSection
from bot.domain import Author, ChannelKey, IncomingMessage, Scope
from bot.errors import PlatformUnavailable, StoreError
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness, notice_of
from tests.harness.messages import MEI, NOON, a_message

ADA = Author("discord", "9", "Ada")
GROUP, TOPIC = ChannelKey("discord", "c1"), ChannelKey("discord", "c1", "t1")
CONFIG: dict[str, Any] = {
    "personas": {"pirate": {"system_prompt": "You are a pirate."}, "none": {"system_prompt": ""}},
    "models": {"big": {"model": "demo"}, "small": {"model": "demo"}},
    "servers": {"discord:s1": {"models": ["engine", "big"]}},
}


def said(text: str, author: Author = ADA, channel: ChannelKey = GROUP, **more: Any) -> IncomingMessage:
    return a_message(text, author=author, channel=channel, is_direct=False, server="s1", **more)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path, access=AccessSection(admins=(ADA.key,))) as harness:
        harness.settings.reconfigure(Config(**CONFIG))
        yield harness


async def persona_of(harness: Harness, channel: ChannelKey = GROUP) -> str | None:
    """Ask a question; return the instructions that its prompt begins with."""
    await harness.ask(said("hello", MEI, channel))
    first = harness.engine.requests[-1].messages[0]
    return first.content if first.role == "system" else None


async def test_a_persona_that_was_set_is_in_the_next_prompt_and_after_a_restart(
    harness: Harness, tmp_path: Path
) -> None:
    assert await persona_of(harness) is None
    assert "a text of 16 characters" in notice_of(await harness.ask(said("/persona set\nYou are a parrot")))
    assert await persona_of(harness) == "You are a parrot"
    shown = notice_of(await harness.ask(said("/persona", MEI)))
    assert "> You are a parrot" in shown
    assert "for this channel, set in the chat" in shown
    async with make_harness(tmp_path) as again:
        assert await persona_of(again) == "You are a parrot"


async def test_a_persona_of_config_toml_is_used_by_name_and_taken_back(harness: Harness) -> None:
    await harness.ask(said("/persona use Pirate"))
    assert await persona_of(harness) == "You are a pirate."
    assert await persona_of(harness, ChannelKey("discord", "c2")) is None
    await harness.ask(said("/persona clear"))
    assert await persona_of(harness) is None


async def test_a_persona_without_instructions_overrides_the_system_prompt(harness: Harness) -> None:
    harness.settings.reconfigure(Config(**CONFIG, conversation=ConversationSection(system_prompt="Be kind.")))
    assert await persona_of(harness) == "Be kind."
    await harness.ask(said("/persona use none"))
    assert await persona_of(harness) is None


async def test_a_thread_has_a_persona_of_its_own(harness: Harness) -> None:
    await harness.ask(said("/persona use pirate"))
    await harness.ask(said("/persona set You are a parrot.", channel=TOPIC))
    assert await persona_of(harness, TOPIC) == "You are a parrot."
    assert await persona_of(harness) == "You are a pirate."
    assert "for this thread" in notice_of(await harness.ask(said("/persona", channel=TOPIC)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("/persona use parrot", "Unknown persona parrot; choose one of `none`, `pirate`."),
        ("/persona dance", "Write `/persona show`"),
        ("/persona clear all", "Write `/persona show`"),
        ("/persona set", "Write `/persona show`"),
        (f"/persona set {'x' * (MOST_CHARACTERS + 1)}", "2001 characters, the limit is 2000"),
        ("/model small", "Model small is not available here; choose one of `engine`, `big`."),
        ("/model", "Model here: engine (default)"),
    ],
)
async def test_what_cannot_be_set_is_refused_with_the_reason(harness: Harness, text: str, answer: str) -> None:
    assert answer in notice_of(await harness.ask(said(text)))
    assert await harness.store.settings() == []


async def test_a_model_that_was_chosen_answers_the_next_question(harness: Harness) -> None:
    assert "Model here: big (for this channel, set in the chat)" in notice_of(await harness.ask(said("/model BIG")))
    for channel in (GROUP, ChannelKey("discord", "c2")):
        await persona_of(harness, channel)
    await harness.ask(said("/model clear"))
    await persona_of(harness)
    assert [request.model for request in harness.engine.requests] == ["big", None, None]


async def test_the_status_names_the_rule_of_each_value(harness: Harness) -> None:
    await harness.ask(said("/persona use pirate"))
    status = notice_of(await harness.ask(said("/status", MEI)))
    assert "Persona: pirate (for this channel, set in the chat)" in status
    assert "Model here: engine (default)" in status
    harness.settings.reconfigure(Config(**{**CONFIG, "servers": {"discord:s1": {"model": "big"}}}))
    status = notice_of(await harness.ask(said("/status", MEI)))
    assert "Model here: big (for this server, set in config.toml)" in status


@pytest.mark.parametrize(
    "text", ["/persona use pirate", "/persona set You are a parrot.", "/persona clear", "/model big"]
)
@pytest.mark.parametrize("managers", [True, False])
async def test_only_admins_and_managers_change_a_setting(harness: Harness, text: str, managers: bool) -> None:
    async def is_manager(message: IncomingMessage) -> bool:
        return message.author == MEI

    ben = Author("discord", "3", "Ben")
    access = AccessSection(settings_by="managers" if managers else "admins")
    harness.access.reconfigure(access, harness.access.limits)
    harness.intake.access.register_managers("discord", is_manager)
    assert "Only admins" in notice_of(await harness.ask(said(text, ben)))
    assert ("Only admins" in notice_of(await harness.ask(said(text, MEI)))) is not managers
    assert [change.author.id for change in await harness.store.settings()] == [MEI.id] * (
        managers and "clear" not in text
    )


async def test_in_a_direct_chat_everybody_has_a_persona_of_their_own(harness: Harness) -> None:
    direct = replace(said("/persona use pirate", MEI), is_direct=True, server=None)
    assert "Persona: pirate" in notice_of(await harness.ask(direct))


async def test_nothing_changes_while_the_platform_cannot_be_asked(harness: Harness) -> None:
    async def is_manager(message: IncomingMessage) -> bool:
        raise PlatformUnavailable("gone")

    harness.intake.access.register_managers("discord", is_manager)
    assert "could not check your permissions" in notice_of(await harness.ask(said("/persona use pirate", MEI)))
    assert await harness.store.settings() == []


async def test_a_setting_whose_storing_fails_is_not_in_force(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("full")

    with monkeypatch.context() as patch:
        patch.setattr(harness.store, "record_setting", fail)
        assert "database" in notice_of(await harness.ask(said("/persona use pirate")))
    assert await persona_of(harness) is None


async def test_the_same_value_is_stored_once(harness: Harness) -> None:
    for _ in range(2):
        assert "Persona: pirate" in notice_of(await harness.ask(said("/persona use pirate")))
    assert len(await harness.store.setting_changes("discord:c1", 9)) == 1


async def test_forget_me_takes_a_written_persona_out_of_a_prompt_that_waits_for_the_engine(tmp_path: Path) -> None:
    engine, elsewhere = ScriptedEngine(max_batch_size=1), ChannelKey("discord", "c9")
    async with make_harness(tmp_path, engine, access=AccessSection(admins=(ADA.key,))) as harness:
        await harness.ask(said("/persona set You are a parrot"))
        engine.go_on.clear()
        before = asyncio.create_task(harness.ask(said("first", MEI, elsewhere)))
        await engine.asked(1)
        waiting = asyncio.create_task(harness.ask(said("hello", MEI)))
        await engine.asked(2)
        assert engine.requests[-1].messages[0].content == "You are a parrot"
        forgetting = asyncio.create_task(harness.ask(said("/forget me", channel=elsewhere)))
        await engine.asked(3)
        engine.go_on.set()
        await asyncio.gather(before, waiting, forgetting)
        assert [message.content for message in engine.requests[-1].messages] == ["Mei: hello"]


async def test_forget_me_takes_a_written_persona_out_of_the_next_prompt(harness: Harness, tmp_path: Path) -> None:
    await harness.ask(said("/persona set You are the parrot of a pirate."))
    await harness.ask(said("/forget me"))
    assert await persona_of(harness) is None
    assert b"parrot of a pirate" not in (tmp_path / "bot.db").read_bytes()


async def test_settings_move_with_their_channel(harness: Harness) -> None:
    await harness.ask(said("/persona use pirate"))
    await harness.intake.rename_channel(GROUP, "c9")
    assert await persona_of(harness) is None
    assert await persona_of(harness, ChannelKey("discord", "c9")) == "You are a pirate."


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("/persona use", ["none", "pirate"]),
        ("/persona use P", ["pirate"]),
        ("/persona set", []),
        ("/persona", []),
        ("/model", ["engine", "big", "clear"]),
        ("/model b", ["big"]),
        ("/status", []),
        ("hello", []),
    ],
)
async def test_names_are_offered_while_a_command_is_typed(harness: Harness, text: str, offered: list[str]) -> None:
    assert harness.intake.offers(said(text)) == offered


async def test_triggers_that_people_wrote_are_stored_as_their_text(harness: Harness) -> None:
    await harness.ask(said("/settings triggers glm，小智、 hey bot"))
    stored = [(change.value, change.text) for change in await harness.store.settings()]
    assert stored == [(None, "glm，小智、 hey bot")]
    triggered = harness.intake.is_triggered
    assert [await triggered(GROUP, "s1", text) for text in ("Hey bot, hi", "小智你好", "hey, bot")] == [
        True,
        True,
        False,
    ]
    await harness.ask(said("/forget me"))
    assert not await triggered(GROUP, "s1", "glm hi")


async def test_settings_of_the_place_reach_the_next_request(harness: Harness) -> None:
    for text in ("/settings temperature 0.25", "/settings MAX_ANSWER_TOKENS 40", "/settings name_speakers no"):
        assert "From the next message on" in notice_of(await harness.ask(said(text)))
    await harness.ask(said("hello", MEI))
    await harness.ask(said("hello", MEI, ChannelKey("discord", "c2")))
    here, elsewhere = harness.engine.requests[-2:]
    assert (here.params.temperature, here.params.max_tokens, here.messages[-1].content) == (0.25, 40, "hello")
    assert (elsewhere.params.temperature, elsewhere.messages[-1].content) == (0.95, "Mei: hello")


async def test_the_language_of_the_place_is_that_of_the_next_notice(harness: Harness, tmp_path: Path) -> None:
    await harness.ask(said("/settings language zh"))
    assert notice_of(await harness.ask(said("/clear"))) == "这里没有需要删除的内容。"
    assert notice_of(await harness.ask(said("/settings language"))) == "`language` = zh（对这个频道，在聊天里设置）"
    async with make_harness(tmp_path, limits=LimitsSection(max_message_chars=3)) as restarted:
        assert notice_of(await restarted.ask(said("hello", MEI))) == "你的消息太长：5 个字符，上限是 3。"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("/settings temperature hot", "`temperature` cannot be hot. Sampling temperature"),
        ("/settings temperature 2.5", "`temperature` cannot be 2.5"),
        ("/settings max_answer_tokens 0", "`max_answer_tokens` cannot be 0"),
        ("/settings undo undo", "Nothing was done: /settings undo takes no text after it."),
        ("/settings mood good", "Unknown setting mood; choose one of `show`, `answer`"),
        ("/settings language", "`language` = auto (default)"),
        ("/settings answer", "`answer` = mention (default)"),
        ("/settings answer never", "`answer` cannot be never. Messages I answer"),
        ("/settings triggers", "`triggers` = none (default)"),
        ("/settings triggers /glm", "`triggers` cannot be /glm. Words: I also answer"),
        ("/settings triggers glm, @all", "`triggers` cannot be glm, @all"),
        ("/settings show", "- `temperature` = 0.95 (default)"),
        ("/settings changes", "No setting was changed in the chat here."),
        ("/settings undo", "No setting was changed in the chat here."),
    ],
)
async def test_a_setting_that_is_only_shown_or_refused_stays(harness: Harness, text: str, answer: str) -> None:
    assert answer in notice_of(await harness.ask(said(text)))
    assert await harness.store.settings() == []


async def test_where_no_model_can_be_chosen_it_is_said(harness: Harness) -> None:
    harness.settings.reconfigure(Config())
    shown = notice_of(await harness.ask(said("/model")))
    assert shown == "Model here: engine (default)\n\nNo model can be chosen here: `models` in config.toml lists none."


async def test_a_setting_that_config_toml_locks_is_refused(harness: Harness) -> None:
    harness.settings.reconfigure(Config(**{**CONFIG, "servers": {"discord:s1": {"settings": ["persona"]}}}))
    refused = notice_of(await harness.ask(said("/settings temperature 1")))
    assert refused == "config.toml does not allow changing `temperature` here."
    assert "Persona: pirate" in notice_of(await harness.ask(said("/persona use pirate")))


async def test_changes_are_listed_and_taken_back_one_after_the_other(harness: Harness) -> None:
    for text in ("/settings temperature 0.2", "/persona set You are a parrot.", "/settings temperature 0.4"):
        await harness.ask(said(text))
    listed = notice_of(await harness.ask(said("/settings changes"))).splitlines()
    assert [line.partition(": ")[2] for line in listed] == [
        "`temperature` = 0.4",
        "`persona` = a text of 17 characters",
        "`temperature` = 0.2",
    ]
    assert all("Ada" in line for line in listed)
    assert "`temperature` = 0.2 (for this channel" in notice_of(await harness.ask(said("/settings undo")))
    assert "`temperature` = 0.4 (for this channel" in notice_of(await harness.ask(said("/settings undo")))


async def test_an_undo_whose_answer_was_not_stored_is_not_done_again(harness: Harness, tmp_path: Path) -> None:
    for text in ("/settings language zh", "/settings temperature 0.2", "/settings temperature 0.4"):
        await harness.ask(said(text))
    killed = await harness.accept(said("/settings undo"))
    await harness.intake.answers.carry_out(killed)
    await harness.ask(said("/settings language en"))
    async with make_harness(tmp_path, access=AccessSection(admins=(ADA.key,))) as again:
        await again.intake.answers.carry_out(killed)
        values = {each.setting: each.value for each in await again.store.settings()}
        assert values == {"language": "en", "temperature": "0.2"}
        assert again.settings.value("temperature", said("")) == 0.2


async def test_undo_restores_a_value_from_before_many_changes_of_others(harness: Harness) -> None:
    await harness.ask(said("/settings language zh"))
    here = Scope("channel", str(GROUP))
    for number in range(150):
        await harness.intake.choices.set(here, "top_p", ADA, f"0.{number + 100}")
    await harness.ask(said("/settings language en"))
    assert "`language` = zh" in notice_of(await harness.ask(said("/settings undo")))


async def test_undo_restores_a_value_that_was_in_force_longer_than_texts_are_kept(tmp_path: Path) -> None:
    admins = AccessSection(admins=(ADA.key,))
    async with make_harness(tmp_path, access=admins) as harness:
        await harness.ask(said("/settings temperature 0.3"))
    async with make_harness(tmp_path, access=admins, today=NOON + timedelta(days=90)) as harness:
        await harness.ask(said("/settings temperature 1.1"))
        await harness.store.expire(NOON + timedelta(days=60))
        assert "`temperature` = 0.3" in notice_of(await harness.ask(said("/settings undo")))


async def test_taking_back_the_first_change_restores_the_default(harness: Harness) -> None:
    await harness.ask(said("/persona set You are a parrot."))
    assert "Persona: none (default)" in notice_of(await harness.ask(said("/settings undo")))
    assert await persona_of(harness) is None


@pytest.mark.parametrize("undone", [1, 3])
async def test_forget_me_takes_a_text_out_that_somebody_else_has_restored(harness: Harness, undone: int) -> None:
    tom = Author("discord", "5", "Tom")
    harness.intake.access.reconfigure(AccessSection(admins=(ADA.key, tom.key)), LimitsSection())
    await harness.ask(said("/persona set You are Ada's parrot."))
    await harness.ask(said("/persona clear", tom))
    for _ in range(undone):
        await harness.ask(said("/settings undo", tom))
    assert await persona_of(harness) == "You are Ada's parrot."
    last = notice_of(await harness.ask(said("/settings changes"))).splitlines()[0]
    assert "Tom: `persona` = a text of 21 characters" in last
    await harness.ask(said("/forget me"))
    assert await persona_of(harness) is None
    assert "Tom: `persona` = (reset)" in notice_of(await harness.ask(said("/settings changes", tom)))


async def test_a_restored_text_outlives_the_person_who_restored_it(harness: Harness) -> None:
    tom = Author("discord", "5", "Tom")
    harness.intake.access.reconfigure(AccessSection(admins=(ADA.key, tom.key)), LimitsSection())
    for text, author in [("/persona set You are Ada's parrot.", ADA), ("/persona clear", ADA), ("/settings undo", tom)]:
        await harness.ask(said(text, author))
    await harness.ask(said("/forget me", tom))
    assert await persona_of(harness) == "You are Ada's parrot."
    assert "Tom" not in notice_of(await harness.ask(said("/settings changes")))


@pytest.mark.parametrize("text", ["/settings temperature 1", "/settings undo", "/settings changes"])
async def test_others_neither_change_settings_nor_list_the_changes(harness: Harness, text: str) -> None:
    await harness.ask(said("/settings temperature 0.5"))
    assert "Only admins" in notice_of(await harness.ask(said(text, Author("discord", "3", "Ben"))))
    assert [change.value for change in await harness.store.settings()] == ["0.5"]

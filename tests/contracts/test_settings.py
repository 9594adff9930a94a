"""Contract of a Store's settings: what is set in the chat, its earlier values, and their authors."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from bot.domain import Author, ChannelKey, Kind, Scope, SettingChange
from bot.storage.base import Store
from tests.contracts.test_store import Reopened, reopened
from tests.storage import BEN, MEI, NOON, ROOM, THREAD, message

__all__ = ["reopened"]

HERE, TOPIC = Scope("channel", str(ROOM)), Scope("thread", str(THREAD))


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


def change(scope: Scope, value: str | None, text: str | None = None, author: Author = MEI) -> SettingChange:
    return SettingChange(scope, "persona", value, text, Author(author.platform, author.id, author.name), NOON)


async def test_the_newest_value_of_a_place_and_setting_is_in_force(reopened: Reopened) -> None:
    kept = change(TOPIC, None, "You are a parrot. 鹦鹉")
    async with reopened() as store:
        await store.record_setting(change(HERE, "pirate"))
        await store.record_setting(kept)
        await store.record_setting(change(HERE, None, author=BEN))
    async with reopened() as store:
        assert await store.settings() == [kept, change(HERE, None, author=BEN)]
        assert await store.setting_changes(str(ROOM), 5) == [change(HERE, None, author=BEN), change(HERE, "pirate")]
        assert await store.setting_changes(str(ROOM), 1) == [change(HERE, None, author=BEN)]
        assert await store.setting_changes(None, 2) == [change(HERE, None, author=BEN), kept]


async def test_forgetting_a_person_clears_their_texts_and_their_name(store: Store) -> None:
    nobody = Author(MEI.platform, "", "")
    await store.record_setting(change(HERE, "pirate"))
    await store.record_setting(change(TOPIC, None, "a text of hers"))
    await store.record_setting(change(Scope("server", "slack:T1"), None, "a text of his", BEN))
    await store.forget(MEI)
    assert await store.settings() == [
        change(HERE, "pirate", author=nobody),
        change(TOPIC, None, author=nobody),
        change(Scope("server", "slack:T1"), None, "a text of his", BEN),
    ]


async def test_of_a_restored_text_each_person_is_forgotten_alone(reopened: Reopened) -> None:
    nobody = Author(MEI.platform, "", "")
    elsewhere = Author("web", MEI.id, "somebody else")
    async with reopened() as store:
        await store.record_setting(replace(change(HERE, None, "a text of his", MEI), text_author=BEN.key))
        await store.record_setting(replace(change(TOPIC, None, "a text of hers", BEN), text_author=MEI.key))
        await store.forget(elsewhere)
        await store.forget(MEI)
    async with reopened() as store:
        kept = replace(change(HERE, None, "a text of his", nobody), text_author=BEN.key)
        assert await store.settings() == [kept, change(TOPIC, None, author=BEN)]
        await store.forget(BEN)
        assert await store.settings() == [change(HERE, None, author=nobody), change(TOPIC, None, author=nobody)]


async def test_values_in_force_outlive_the_retention_and_earlier_ones_do_not(store: Store) -> None:
    old, newer, newest = (change(HERE, None, text) for text in ("an old text", "a newer text", "the newest text"))
    month_later = replace(newest, at=NOON + timedelta(days=30))
    for each in (old, newer, month_later):
        await store.record_setting(each)
    await store.expire(NOON + timedelta(days=1))
    assert await store.setting_changes(str(ROOM), 5) == [month_later, newer], "undo restores what it replaced"
    await store.expire(NOON + timedelta(days=31))
    assert await store.setting_changes(str(ROOM), 5) == [month_later]


async def test_a_cause_that_comes_again_changes_nothing(reopened: Reopened) -> None:
    by = message(7)
    async with reopened() as store:
        assert await store.record_setting(change(HERE, "pirate"), by)
    async with reopened() as store:
        assert not await store.record_setting(change(HERE, "poet"), by)
        assert await store.settings() == [change(HERE, "pirate")]
        for other in (message(8), message(7, channel=ChannelKey("slack", "C9")), replace(by, id="")):
            assert await store.record_setting(change(HERE, "poet"), other)
        assert await store.enqueue(by, Kind.CHAT) is not None
        assert await store.last_message_ids("slack") == {ROOM: "7"}


async def test_changes_of_one_setting_are_found_behind_many_of_others(store: Store) -> None:
    first = replace(change(HERE, "all"), setting="answer")
    await store.record_setting(first)
    for number in range(5):
        await store.record_setting(change(HERE, f"persona {number}"))
    last = replace(first, value="thread")
    await store.record_setting(last)
    assert await store.setting_changes(str(ROOM), 2, "answer") == [last, first]
    assert await store.setting_changes(str(THREAD), 2, "answer") == []


async def test_settings_move_with_their_channel_and_its_threads(store: Store) -> None:
    near = Scope("channel", f"{ROOM}0")
    for scope in (HERE, TOPIC, near):
        await store.record_setting(change(scope, "pirate"))
    await store.rename_channel(ROOM, "C_2")
    to = ChannelKey(ROOM.platform, "C_2", THREAD.thread)
    moved = [Scope("channel", f"{ROOM.platform}:C_2"), Scope("thread", str(to)), near]
    assert [each.scope for each in await store.settings()] == moved


async def test_settings_of_a_group_that_is_its_own_server_move_with_it(store: Store) -> None:
    for scope in (Scope("server", str(ROOM)), Scope("server", "slack:T1"), Scope("user", str(ROOM))):
        await store.record_setting(change(scope, "pirate"))
    await store.rename_channel(ROOM, "C_2")
    moved = [Scope("server", f"{ROOM.platform}:C_2"), Scope("server", "slack:T1"), Scope("user", str(ROOM))]
    assert [each.scope for each in await store.settings()] == moved


async def test_clearing_a_channel_changes_no_setting(store: Store) -> None:
    await store.enqueue(message(1), Kind.CHAT)
    await store.record_setting(change(HERE, None, "You are a parrot."))
    await store.clear(ROOM)
    assert await store.settings() == [change(HERE, None, "You are a parrot.")]

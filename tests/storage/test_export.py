"""Export of a channel as JSON, and the list of channels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.domain import Answer, ChannelKey, FinishReason, Kind, Usage
from bot.errors import StoreError
from bot.storage import export as module
from bot.storage.export import count_exchanges, export_all, export_channel
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, ROOM, THREAD, message, temporary_store, url_of

OTHER = ChannelKey("discord", "1234")


async def create_database(folder: Path) -> str:
    async with temporary_store(folder) as store:
        first = await store.enqueue(message(1, "is it “so”?\n你好"), Kind.CHAT)
        assert first is not None
        await store.record_part(first, 0, "p1")
        await store.record_answer(first, Answer("It is.", "cut off", FinishReason.LENGTH, Usage(7, 3)))
        await store.enqueue(message(2, channel=OTHER), Kind.CHAT)
        await store.enqueue(message(3, "in the thread", THREAD, BEN), Kind.COMMAND)
        await store.enqueue(message(4), Kind.CHAT)
    return url_of(folder / "bot.db")


def read(url: str, name: str) -> Any:
    return json.loads("".join(export_channel(url, name)))


async def test_the_export_contains_every_field_of_an_exchange(tmp_path: Path) -> None:
    exported = read(await create_database(tmp_path), "slack:C1")
    assert exported["channel"] == "slack:C1"
    assert exported["exchanges"][0] == {
        "id": 1,
        "thread": None,
        "message": "1",
        "kind": "chat",
        "status": "answered",
        "sent_at": "2026-01-02T12:00:00+00:00",
        "server": None,
        "is_direct": False,
        "locale": None,
        "author": {"id": "slack:U1", "name": "Mei", "roles": ["staff", "运维"], "is_bot": False},
        "quoted": None,
        "quoted_id": None,
        "quotes_bot": False,
        "files": [],
        "further": [],
        "text": "is it “so”?\n你好",
        "answer": {
            "text": "It is.",
            "notice": "cut off",
            "reason": "length",
            "prompt_tokens": 7,
            "completion_tokens": 3,
        },
        "parts": ["p1"],
    }


async def test_a_channel_includes_its_threads_and_a_thread_is_exported_alone(tmp_path: Path) -> None:
    url = await create_database(tmp_path)
    assert [each["message"] for each in read(url, "slack:C1")["exchanges"]] == ["1", "3", "4"]
    assert [each["message"] for each in read(url, "slack:C1:17.1")["exchanges"]] == ["3"]
    assert [each["message"] for each in read(url, "discord:1234")["exchanges"]] == ["2"]


async def test_a_long_history_is_exported_in_batches_without_gaps_or_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    async with temporary_store(tmp_path) as store:
        for number in range(10):
            await store.enqueue(message(number), Kind.CHAT)
    found = read(url_of(tmp_path / "bot.db"), "slack:C1")["exchanges"]
    assert [each["message"] for each in found] == [str(number) for number in range(10)]


async def test_ids_may_contain_colons(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1, channel=ChannelKey("x", "a:b")), Kind.CHAT)
        await store.enqueue(message(2, channel=ChannelKey("x", "a", "b")), Kind.CHAT)
    assert len(read(url_of(tmp_path / "bot.db"), "x:a:b")["exchanges"]) == 2


async def test_a_cleared_channel_is_not_exported(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1, "swordfish"), Kind.CHAT)
        await store.clear(ROOM)
        await store.enqueue(message(2, "later", THREAD), Kind.CHAT)
    exported = read(url_of(tmp_path / "bot.db"), "slack:C1")["exchanges"]
    assert [each["text"] for each in exported] == ["later"]
    assert count_exchanges(url_of(tmp_path / "bot.db")) == {THREAD: 1}


async def test_channels_are_listed_with_the_number_of_their_exchanges(tmp_path: Path) -> None:
    assert count_exchanges(await create_database(tmp_path)) == {ROOM: 2, OTHER: 1, THREAD: 1}


async def test_an_unknown_channel_is_reported_with_the_closest_match(tmp_path: Path) -> None:
    url = await create_database(tmp_path)
    with pytest.raises(
        StoreError, match=r"no conversation 'discord:1243' in .*bot.db \(did you mean discord:1234\?\): list them"
    ):
        read(url, "discord:1243")
    with pytest.raises(StoreError, match=r"no conversation '@@' in .*bot.db: list them with bot export$"):
        read(url, "@@")


async def test_a_database_of_another_revision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await create_database(tmp_path)
    monkeypatch.setattr(module.migrate, "head_revision", lambda: "9999")  # type: ignore[attr-defined]  # the module's own import
    with pytest.raises(StoreError, match=r"has revision \d+, this version requires 9999: upgrade it with bot migrate"):
        count_exchanges(url)


def test_an_export_does_not_create_a_missing_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no database .*bot\.db: nothing is stored yet"):
        count_exchanges(url_of(tmp_path / "bot.db"))
    assert list(tmp_path.iterdir()) == []


async def test_a_server_is_exported_like_a_file(postgres: PostgresServer) -> None:
    database = postgres.database()
    async with postgres.store(database) as store:
        await store.enqueue(message(1, "hello"), Kind.CHAT)
        url = postgres.url(database)
        assert count_exchanges(url) == {ROOM: 1}
        (only,) = read(url, "slack:C1")["exchanges"]
    assert (only["text"], only["sent_at"]) == ("hello", "2026-01-02T12:00:00+00:00")


async def test_everything_is_exported_as_lines_of_json_without_what_was_cleared(tmp_path: Path) -> None:
    url = await create_database(tmp_path)
    lines = [json.loads(line) for line in export_all(url)]
    assert {line["channel"] for line in lines} == {str(replace(each, thread=None)) for each in count_exchanges(url)}
    assert len(lines) == sum(count_exchanges(url).values())
    async with temporary_store(tmp_path) as store:
        await store.clear(OTHER)
    left = [json.loads(line) for line in export_all(url)]
    assert left == [line for line in lines if line["channel"] != str(OTHER)]

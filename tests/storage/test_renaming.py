"""A channel with a long history gets a new id in steps."""

from dataclasses import replace
from pathlib import Path

import pytest

from bot.domain import ChannelKey, FurtherKind, FurtherMessage, Kind
from bot.errors import StoreError
from bot.storage import sql
from bot.storage.renaming import rename_exchanges
from bot.storage.sql import SqlStore
from tests.storage import BEN, NOON, ROOM, message, temporary_store

NEW = ChannelKey("slack", "C9")


async def ask(store: SqlStore, *numbers: int) -> None:
    for number in numbers:
        exchange = await store.enqueue(replace(message(number), server=ROOM.channel), Kind.CHAT)
        assert exchange is not None
        await store.record_part(exchange, 0, f"reply {number}")
        said = FurtherMessage(f"before {number}", ROOM.channel, BEN, "said before", NOON, FurtherKind.BEFORE)
        await store.record_context(exchange, [said])


async def messages(store: SqlStore, channel: ChannelKey) -> list[tuple[str, str | None, tuple[str, ...], list[str]]]:
    return [
        (
            each.message.id,
            each.message.server,
            each.parts,
            [f"{said.channel} {said.id}" for said in each.message.further],
        )
        for each in await store.said_in(channel, 100)
    ]


async def test_others_write_between_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "RENAMED_AT_ONCE", 2)
    async with temporary_store(tmp_path) as store:
        await ask(store, *range(1, 6))
        writes = store._transactions.turn
        assert await store.rename_channel(ROOM, NEW.channel) == 5
        assert store._transactions.turn - writes == 3 + 3 + 1
        assert await messages(store, NEW) == [
            (f"C1 {number}", "C9", (f"C1 reply {number}",), [f"C9 C1 before {number}"]) for number in range(1, 6)
        ]
        assert await store.last_message_ids("slack") == {NEW: "C1 5"}


async def test_after_an_error_another_call_moves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "RENAMED_AT_ONCE", 2)
    calls: list[object] = []

    async def fail_once(*args: object) -> int:
        calls.append(args)
        if len(calls) == 2:
            raise StoreError("the disk is full")
        return await rename_exchanges(*args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(sql, "rename_exchanges", fail_once)
    async with temporary_store(tmp_path) as store:
        await ask(store, *range(1, 6))
        with pytest.raises(StoreError, match="the disk is full"):
            await store.rename_channel(ROOM, NEW.channel)
        assert len(await messages(store, NEW)) == 2
        assert await store.rename_channel(ROOM, NEW.channel) == 3
        assert [id for id, *_ in await messages(store, NEW)] == [f"C1 {number}" for number in range(1, 6)]
        assert not await store.has_history(ROOM)


async def test_a_message_with_the_id_of_one_that_moved_before_gets_another(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await ask(store, 1, 2)
        await store.rename_channel(ROOM, NEW.channel)
        await ask(store, 2, 3)
        assert await store.rename_channel(ROOM, NEW.channel) == 2
        assert [id for id, *_ in await messages(store, NEW)] == ["C1 1", "C1 2", "C1 C1 2", "C1 3"]

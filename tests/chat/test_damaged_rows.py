"""Damaged rows: the bot starts, skips them with one log line each, and answers the others."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.domain import Action, ChannelKey, Status
from bot.storage.export import count_exchanges, export_channel
from tests.harness.harness import NO_LIMITS, Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, MEI, a_message
from tests.storage import bytes_in, url_of
from tests.storage.damage import damage_rows

THREADS = [CHANNEL, ChannelKey("discord", "c1", "t1"), ChannelKey("discord", "c2")]


async def fill(harness: Harness) -> None:
    for channel in THREADS:
        for number in range(3):
            quoting = a_message(f"question {number}", channel=channel, quoted="an old one", quoted_id="q1")
            exchange = await harness.accept(quoting)
            await harness.record_part(exchange, 0, f"m{exchange.id}")
            await harness.replied(exchange)
        await harness.events(await harness.accept(a_message("left undelivered", channel=channel)))
        await harness.accept(a_message("left open", channel=channel))


@pytest.mark.parametrize("seed", [1, 4, 7, 11])
async def test_damaged_rows_are_skipped_and_all_others_are_answered(tmp_path: Path, seed: int) -> None:
    async with make_harness(tmp_path, limits=NO_LIMITS) as before:
        await fill(before)
    damaged = damage_rows(tmp_path / "bot.db", seed)
    with capture_logs() as logs:
        async with make_harness(tmp_path, limits=NO_LIMITS) as harness:
            owed = await harness.intake.recover("discord")
            sound = [id for id in range(1, 16) if id not in damaged and (id - 1) % 5 >= 3]
            assert [exchange.id for exchange in owed if exchange.id not in damaged] == sound
            for exchange in owed:
                events = await harness.replied(exchange)
                assert exchange.id in damaged or text_of(events) == "ok"
            assert await harness.intake.recover("discord") == []
            for channel in THREADS:
                assert text_of(await harness.ask(a_message("a new one", channel=channel))) == "ok"
                await harness.intake.on_button(channel, "m1", Action.RETRY, MEI)
                assert all(
                    isinstance(each, str) for each in (await harness.intake.last_message_ids("discord")).values()
                )
            for name in map(str, count_exchanges(url_of(tmp_path / "bot.db"))):
                assert "".join(export_channel(url_of(tmp_path / "bot.db"), name)).endswith("]}\n")
            await harness.store.rename_channel(THREADS[2], "c3")
            await harness.intake.delete(CHANNEL, "q1")
            assert "Deleted: " in notice_of(await harness.ask(a_message("/clear")))
            assert "Deleted: " in notice_of(await harness.ask(a_message("/forget me")))
    reported = [each["exchange"] for each in logs if each["event"] == "exchange skipped, its row is damaged"]
    assert set(reported) <= damaged


async def test_an_owed_message_that_cannot_be_decrypted_is_answered_with_a_sentence(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=NO_LIMITS) as before:
        await before.accept(a_message("torn"))
        await before.accept(a_message("sound"))
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection, connection:
        connection.execute("UPDATE exchanges SET text = x'00' || text WHERE id = 1")
    async with make_harness(tmp_path, limits=NO_LIMITS) as harness:
        torn, sound = await harness.intake.recover("discord")
        assert "This message can no longer be read from my database" in notice_of(await harness.replied(torn))
        assert text_of(await harness.replied(sound)) == "ok"
        assert await harness.intake.recover("discord") == []
        kept = await harness.store.find(torn.message.channel, torn.message.id)
        assert kept is not None
        assert (kept.status, kept.message.text, kept.is_unreadable) == (Status.FAILED, "", True)


async def test_a_message_that_cannot_be_decrypted_is_its_authors_again_once_it_is_edited(tmp_path: Path) -> None:
    torn = a_message("torn")
    async with make_harness(tmp_path, limits=NO_LIMITS) as before:
        await before.accept(torn)
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection, connection:
        connection.execute("UPDATE exchanges SET text = x'00' || text WHERE id = 1")
    async with make_harness(tmp_path, limits=NO_LIMITS) as harness:
        [owed] = await harness.intake.recover("discord")
        await harness.replied(owed)
        again = await harness.intake.edit(replace(torn, text="my door code is 7734"))
        assert again is not None
        assert again.message.author == MEI
        assert text_of(await harness.replied(again)) == "ok"
        assert (await harness.stored(again)).message.author == MEI
        assert "Deleted: all your messages to me (1)" in notice_of(await harness.ask(a_message("/forget me")))
    assert b"7734" not in bytes_in(tmp_path)


async def test_a_damaged_row_is_reported_once_and_its_exchange_fails(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=NO_LIMITS) as before:
        await before.accept(a_message("left open"))
    with sqlite3.connect(tmp_path / "bot.db") as connection:
        connection.execute("UPDATE exchanges SET sent_at = 'yesterday'")
    connection.close()
    with capture_logs() as logs:
        async with make_harness(tmp_path, limits=NO_LIMITS) as harness:
            for _ in range(2):
                assert await harness.intake.recover("discord") == []
                assert text_of(await harness.ask(a_message("hello"))) == "ok"
    assert [each["exchange"] for each in logs if each["event"] == "exchange skipped, its row is damaged"] == [1]
    with sqlite3.connect(tmp_path / "bot.db") as connection:
        assert connection.execute("SELECT status FROM exchanges WHERE id = 1").fetchone() == (Status.FAILED,)
    connection.close()

"""Discord backfill after a restart or a lost session."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import discord
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.testing import capture_logs

from bot.adapters.discord.backfill import worth_reading
from bot.domain import Action, ChannelKey, Exchange, Kind, Scope, Status
from bot.errors import StoreError
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.messages import MEI, a_message
from tests.harness.platform import TIMEOUT, Fault
from tests.harness.servers.discord import DiscordPlatform


@pytest.fixture
async def visited(platform: DiscordPlatform, tmp_path: Path) -> DiscordPlatform:
    """The platform after a run of the bot that answered a question in `general`."""
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
        await bot.all_is_delivered()
    return platform


async def test_missed_messages_are_answered_where_the_chat_has_set_a_trigger(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(visited, tmp_path) as bot:
        place = Scope("channel", f"discord:{visited.channel('general')}")
        await bot.harness.intake.choices.set(place, "triggers", MEI, None, "hey, glm")
    await visited.say("hey, two", author="Ben", mention=False)
    await visited.say("hello, three", author="Ben", mention=False)
    async with run_discord_bot(visited, tmp_path) as bot:
        await bot.shows("ok", "ok")
        assert bot.harness.engine.requests[-1].messages[-1].content.endswith("hey, two")


async def test_a_new_session_backfills_channels_threads_and_direct_messages(bot: DiscordBot) -> None:
    await bot.platform.say("before")
    await bot.platform.say("hello", direct=True)
    await bot.platform.say("among people", thread="tea", mention=False)
    await bot.platform.say("one", thread="tea")
    await bot.shows("ok")
    await bot.shows("ok", channel="Mei")
    await bot.shows("ok", thread="tea")
    await bot.platform.disconnect(resumable=False)
    await bot.platform.say("among people", thread="new", mention=False)
    await bot.platform.say("missed in a new thread", thread="new")
    await bot.platform.say("and what follows", thread="new", mention=False)
    await bot.platform.say("missed")
    await bot.platform.say("missed in a thread", thread="tea", mention=False)
    await bot.platform.say("missed in private", direct=True)
    await bot.platform.say("missed where it never was", channel="random")
    await bot.platform.say("not for the bot", mention=False)
    await bot.shows("ok", "ok")
    await bot.shows("ok", "ok", channel="Mei")
    await bot.shows("ok", "ok", thread="tea")
    await bot.shows("ok", channel="random")
    await bot.shows("ok", "ok", thread="new")
    assert len(bot.engine.requests) == 9


async def test_messages_sent_while_the_bot_was_stopped_are_answered_at_the_next_start(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    missed = [await visited.say("two"), await visited.say("three", author="Jo")]
    async with run_discord_bot(visited, tmp_path) as bot:
        await bot.shows("ok", "ok", "ok")
        contents = [request.messages[-1].content for request in bot.engine.requests]
        assert contents == ["Mei: two", "Jo: three"]
        assert sorted(seen.reply_to or "" for seen in visited.seen()[-2:]) == missed


async def test_an_interrupted_reply_is_edited_after_a_restart(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(["half an", asyncio.Event()])
        await platform.say("one")
        await bot.shows("half an")
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add("whole")
        await bot.shows("whole")


async def send_unrecorded_placeholder(platform: DiscordPlatform, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send a placeholder whose id is not stored, as if the bot was killed; return its question."""

    async def failing(*arguments: Any) -> None:
        raise StoreError("the power is gone")

    async with run_discord_bot(platform, folder) as bot:
        monkeypatch.setattr(bot.harness.store, "record_part", failing)
        question = await platform.say("one")
        await bot.shows("…")
    return question


def count_sends(platform: DiscordPlatform) -> int:
    return len([name for name, _ in platform.attempts if name == "send"])


async def test_an_unrecorded_placeholder_is_found_after_its_nonce_expired(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send_unrecorded_placeholder(platform, tmp_path, monkeypatch)
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert count_sends(platform) == 1


async def test_a_further_message_that_was_not_recorded_is_found_after_its_nonce_expired(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verse = "白日依山尽，黄河入海流。\n" * 200
    async with run_discord_bot(platform, tmp_path) as bot:
        record = bot.harness.store.record_part

        async def failing(exchange: Exchange, part: int, message_id: str) -> bool:
            if part == 1:
                raise StoreError("the power is gone")
            return await record(exchange, part, message_id)

        monkeypatch.setattr(bot.harness.store, "record_part", failing)
        bot.engine.add(verse)
        await platform.say("a long poem")
        await platform.until(lambda: bot.shown()[1:] == ["…"])
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(verse)
        await platform.until(lambda: "".join("".join(bot.shown()).split()) == "".join(verse.split()))
        await bot.all_is_delivered()
    assert count_sends(platform) == 2


async def test_a_send_with_a_lost_response_is_found_after_its_nonce_expired(bot: DiscordBot) -> None:
    def lose_first_response(number: int, name: str) -> Fault | None:
        if number == 1:
            bot.platform.forget_nonces()
        return Fault("lost") if number == 0 else None

    bot.platform.script = lose_first_response
    await bot.platform.say("one")
    await bot.shows("ok")
    assert count_sends(bot.platform) == 1


async def test_the_search_for_a_placeholder_is_retried(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = await send_unrecorded_placeholder(platform, tmp_path, monkeypatch)
    platform.forget_nonces()
    refusals = [web.Response(status=500), web.Response(status=429, headers={"Retry-After": "1"})]

    async def guard(request: web.Request) -> web.Response | None:
        return refusals.pop() if request.query.get("after") == str(int(question) - 1) and refusals else None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert refusals == []
    assert count_sends(platform) == 1


async def test_a_history_that_stays_limited_is_read_less_and_less_often(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    refusals = [web.json_response({"retry_after": 0}, status=429, headers={"Retry-After": "0"}) for _ in range(6)]

    async def guard(request: web.Request) -> web.Response | None:
        is_read = request.method == "GET" and request.path.endswith("/messages")
        return refusals.pop() if is_read and refusals else None

    await visited.say("two")
    visited.gate.guard = guard
    with capture_logs() as logs:
        async with run_discord_bot(visited, tmp_path) as bot:
            await bot.shows("ok", "ok")
    waits = [line["seconds"] for line in logs if line["event"] == "discord backfill rate limited"]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


async def test_replies_cut_off_do_not_wait_for_a_history_that_cannot_be_read(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(visited, tmp_path) as bot:
        bot.engine.add(["half", asyncio.Event()])
        await visited.say("two")
        await bot.shows("ok", "half")

    async def guard(request: web.Request) -> web.Response | None:
        is_read = request.method == "GET" and request.path.endswith("/messages")
        return web.json_response([{"id": "no number"}, None]) if is_read else None

    visited.gate.guard = guard
    async with run_discord_bot(visited, tmp_path) as bot:
        bot.engine.add("half and half")
        await bot.shows("ok", "half and half")


async def test_without_read_access_the_nonce_deduplicates_the_placeholder(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send_unrecorded_placeholder(platform, tmp_path, monkeypatch)

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith("/messages"):
            return web.Response(status=403, body=b'{"code": 50001}', content_type="application/json")
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert count_sends(platform) == 2


async def test_a_delay_notice_is_not_mistaken_for_the_reply(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*arguments: Any, **options: Any) -> None:
        raise StoreError("the disk is full")

    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
        await bot.all_is_delivered()
        monkeypatch.setattr(bot.harness.store, "enqueue", failing)
        await platform.say("two")
        await platform.until(lambda: len(bot.shown()) == 2)
        before = bot.shown()
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows(*before, "ok")


async def test_a_backfill_skips_forbidden_channels(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await platform.say("hi", direct=True)
        await bot.shows("ok", channel="Mei")
        await bot.shows("ok")
    await platform.say("two", channel="hidden")
    await platform.say("three")
    platform.forbidden |= {platform.channel("hidden"), platform.direct("Mei")}
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")


def count_reads(platform: DiscordPlatform, *channels: int) -> int:
    """Count the bot's reads of these channels' histories."""
    return sum(platform.calls.count(f"GET /channels/{channel}/messages") for channel in channels)


async def test_four_direct_channels_are_probed_at_a_time(platform: DiscordPlatform, tmp_path: Path) -> None:
    names = [f"person {number}" for number in range(7)]
    async with run_discord_bot(platform, tmp_path) as bot:
        for name in names:
            await platform.say("one", author=name, direct=True)
            await bot.shows("ok", channel=name)
    directs = [platform.direct(name) for name in names]
    for name in names:
        await platform.say("two", author=name, direct=True)
    platform.directs_are_open.clear()
    probes = [f"GET /channels/{direct}" for direct in directs]
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.until(lambda: sum(map(platform.calls.count, probes)) >= 4)
        for _ in range(200):  # more turns of the event loop than another call would take
            await asyncio.sleep(0)
        assert sum(map(platform.calls.count, probes)) == 4
        platform.directs_are_open.set()
        for name in names:
            await bot.shows("ok", "ok", channel=name)


async def test_an_archived_thread_is_backfilled(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one", thread="tea")
        await bot.shows("ok", thread="tea")
    await platform.say("two", thread="tea", mention=False)
    platform.archived.add(platform.thread("general", "tea"))
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok", thread="tea")


async def test_of_old_unlisted_channels_only_direct_ones_are_probed(platform: DiscordPlatform, tmp_path: Path) -> None:
    thread, direct = platform.thread("general", "tea"), platform.direct("Jo")
    old = str(discord.utils.time_snowflake(datetime.now(UTC) - timedelta(days=8)))
    async with run_discord_bot(platform, tmp_path) as bot:
        for place in (
            ChannelKey("discord", str(platform.channel("general")), str(thread)),
            ChannelKey("discord", str(direct)),
        ):
            kept = await bot.harness.store.enqueue(a_message("long ago", id=old, channel=place), Kind.CHAT)
            assert kept is not None
            await bot.harness.store.fail(kept, "long ago")
        await platform.say("one")
        await bot.shows("ok")
    platform.archived.add(thread)
    await platform.say("here I am again", author="Jo", direct=True)
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", channel="Jo")
    assert count_reads(platform, thread) == 0


async def test_an_inaccessible_channel_is_probed_again_only_after_a_new_message(bot: DiscordBot) -> None:
    direct = bot.platform.direct("Mei")
    await bot.platform.say("one", direct=True)
    await bot.shows("ok", channel="Mei")
    bot.platform.forbidden.add(direct)
    for number in range(1, 4):
        await bot.platform.disconnect(resumable=False)
        await bot.platform.say(str(number))
        await bot.shows(*["ok"] * number)
    assert sum(call.startswith(f"GET /channels/{direct}") for call in bot.platform.calls) == 1
    bot.platform.forbidden.clear()
    await bot.platform.say("two", direct=True)
    await bot.shows("ok", "ok", channel="Mei")
    await bot.platform.disconnect(resumable=False)
    await bot.platform.say("three", direct=True)
    await bot.shows("ok", "ok", "ok", channel="Mei")


async def test_a_message_id_from_the_future_does_not_hide_missed_messages(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hello")
        await bot.shows("ok")
        forged = replace(
            a_message("q", channel=ChannelKey("discord", str(platform.channel("random")))), id=str(1 << 62)
        )
        await bot.harness.ask(forged)
    await platform.say("are you there?")
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")


async def test_a_rate_limited_backfill_waits(visited: DiscordPlatform, tmp_path: Path) -> None:
    await visited.say("two")
    visited.rate_limits = {f"/channels/{visited.channel('general')}/messages": 2}
    async with run_discord_bot(visited, tmp_path) as bot:
        await bot.shows("ok", "ok")


# Replies that stand although the database does not know them


async def roll_back(folder: Path, saved: Path) -> None:
    """Replace the database by an earlier copy, or by none."""
    for name in ("bot.db", "bot.db-wal", "bot.db-shm"):
        (folder / name).unlink(missing_ok=True)
    if saved.exists():
        shutil.copy(saved, folder / "bot.db")


@pytest.mark.parametrize("is_old", [False, True], ids=["", "an older version's"])
async def test_answers_that_a_rolled_back_database_forgot_are_adopted(
    visited: DiscordPlatform, tmp_path: Path, is_old: bool
) -> None:
    shutil.copy(tmp_path / "bot.db", tmp_path / "saved")
    answer = "\n\n".join(f"{number}. " + "many words " * 60 for number in range(6))
    async with run_discord_bot(visited, tmp_path) as bot:
        bot.engine.add(answer)
        question = await visited.say("a long story?")
        await visited.say("the third")
        await visited.until(
            lambda: sum(Action.RETRY in seen.actions and seen.markdown != "…" for seen in visited.seen()) == 3
        )
        before = bot.shown()
    for seen in visited.seen():
        if is_old and seen.author == "bot" and not seen.markdown.startswith(("0.", "ok")):
            del visited.messages[int(seen.id)]["message_reference"]
    await roll_back(tmp_path, tmp_path / "saved")
    visited.forget_nonces()
    async with run_discord_bot(visited, tmp_path) as bot:
        await visited.say("the last")
        await visited.until(lambda: len(bot.shown()) > len(before) and visited.seen()[-1].markdown.startswith("ok"))
        assert bot.shown()[:-1] == before
        adopted = await bot.harness.store.find(ChannelKey("discord", str(visited.channel("general"))), question)
        assert adopted is not None
        assert adopted.status is Status.DELIVERED
        assert adopted.answer is not None
        assert "".join(adopted.answer.text.split()) == "".join(answer.split())
        assert len(adopted.parts) == len(before) - 2
        assert len(bot.engine.requests) == 1


async def test_a_reply_cut_off_for_good_takes_no_message_of_a_later_one(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    story = "\n\n".join(f"{number}. " + "many words " * 60 for number in range(6))
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add([story, asyncio.Event()])
        deleted = await platform.say("one")
        await platform.until(lambda: len(bot.shown()) > 1 and not platform.seen()[1].actions)
        half = [seen.id for seen in platform.seen() if seen.author == "bot"]
    for message in [deleted, *half[1:]]:
        await platform.delete(message)
    await roll_back(tmp_path, tmp_path / "none")
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(story)
        await platform.say("a long story?")
        await platform.until(
            lambda: Action.RETRY in platform.seen()[-1].actions and platform.seen()[-1].markdown != "…"
        )
        await bot.all_is_delivered()
        before = bot.shown()
        assert len(before) == 3
    await roll_back(tmp_path, tmp_path / "none")
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("the last")
        await platform.until(lambda: platform.seen()[-1].markdown.startswith("ok"))
        assert bot.shown()[:-1] == before
        assert len(bot.engine.requests) == 1


async def test_with_a_new_database_only_the_unanswered_question_is_answered(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await platform.say("two", author="Jo")
        await bot.shows("ok", "ok")
        await bot.all_is_delivered()
    await roll_back(tmp_path, tmp_path / "none")
    missed = await platform.say("three")
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok", "ok")
        assert platform.seen()[-1].reply_to == missed
        assert [request.messages[-1].content for request in bot.engine.requests] == ["Mei: three"]


async def test_a_reply_cut_off_after_the_backup_goes_on_in_its_message(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    shutil.copy(tmp_path / "bot.db", tmp_path / "saved")
    async with run_discord_bot(visited, tmp_path) as bot:
        bot.engine.add(["half an", asyncio.Event()])
        await visited.say("two")
        await bot.shows("ok", "half an")
    await roll_back(tmp_path, tmp_path / "saved")
    visited.forget_nonces()
    async with run_discord_bot(visited, tmp_path) as bot:
        bot.engine.add("whole")
        await bot.shows("ok", "whole")


async def test_a_question_that_was_owed_at_the_backup_and_answered_since_is_adopted(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
        await bot.all_is_delivered()
        channel = ChannelKey("discord", str(platform.channel("general")))
        owed = await platform.say("two", mention=False)
        await bot.harness.store.enqueue(
            replace(a_message("two", id=owed, channel=channel), sent_at=datetime.now(UTC)), Kind.CHAT, claim=False
        )
    shutil.copy(tmp_path / "bot.db", tmp_path / "saved")
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add("answered later")
        await bot.shows("ok", "answered later")
        await bot.all_is_delivered()
    await roll_back(tmp_path, tmp_path / "saved")
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("three")
        await bot.shows("ok", "answered later", "ok")
        assert len(bot.engine.requests) == 1


async def test_a_row_with_damaged_ids_does_not_stop_the_backfill(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        for channel in ("general", "random"):
            await platform.say("one", channel=channel)
            await bot.shows("ok", channel=channel)
        await bot.all_is_delivered()
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database, database:
        database.execute("UPDATE exchanges SET channel = 'x', status = 'open' WHERE id = 1")
        database.execute("UPDATE exchanges SET message = 'x' WHERE id = 2")
    await platform.say("two", channel="random")
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok", channel="random")


# Edits and deletions


async def test_an_edit_while_disconnected_is_answered_in_place(bot: DiscordBot) -> None:
    bot.engine.add("four", "six")
    question = await bot.platform.say("2+2?")
    await bot.shows("four")
    await bot.all_is_delivered()
    await bot.platform.disconnect(resumable=False)
    await bot.platform.edit(question, "2+4?")
    await bot.shows("six")
    assert bot.engine.requests[-1].messages[-1].content == "Mei: 2+4?"


async def test_a_file_removed_while_disconnected_leaves_the_question(bot: DiscordBot) -> None:
    attached = bot.platform.file("a.txt", b"the code is 7734")
    question = await bot.platform.say("which number is it?", attachments=[attached])
    await bot.shows("ok")
    await bot.all_is_delivered()
    assert "7734" in bot.engine.requests[-1].messages[-1].content
    await bot.platform.disconnect(resumable=False)
    bot.engine.add("five")
    bot.platform.messages[int(question)]["attachments"] = []
    await bot.platform.edit(question, "which number is it?")
    await bot.shows("five")
    assert bot.engine.requests[-1].messages[-1].content == "Mei: which number is it?"


async def test_a_deletion_while_disconnected_deletes_the_text(bot: DiscordBot) -> None:
    secret = await bot.platform.say("my password is hunter2")
    await bot.platform.say("keep this")
    await bot.shows("ok", "ok")
    await bot.all_is_delivered()
    await bot.platform.disconnect(resumable=False)
    await bot.platform.delete(secret)
    await bot.platform.say("what do you know?")
    await bot.shows("ok", "ok", "ok")
    said = " ".join(message.content for message in bot.engine.requests[-1].messages)
    assert "hunter2" not in said
    assert "keep this" in said


async def test_an_unreadable_or_empty_history_proves_no_deletion(bot: DiscordBot) -> None:
    await bot.platform.say("keep this")
    await bot.shows("ok")
    await bot.all_is_delivered()

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith("/messages"):
            return web.Response(body=b"[]", content_type="application/json")
        return None

    bot.platform.gate.guard = guard
    await bot.platform.disconnect(resumable=False)
    await bot.platform.until(lambda: len(bot.platform.identified) == 2 and bot.platform.is_connected)
    await bot.platform.say("what do you know?")
    await bot.shows("ok", "ok")
    assert "keep this" in " ".join(message.content for message in bot.engine.requests[-1].messages)


async def test_a_channel_whose_only_messages_were_deleted_keeps_no_text(bot: DiscordBot) -> None:
    secret = await bot.platform.say("my password is hunter2")
    await bot.shows("ok")
    await bot.all_is_delivered()
    await bot.platform.disconnect(resumable=False)
    for message in list(bot.platform.messages):
        await bot.platform.delete(str(message))
    key = ChannelKey("discord", str(bot.platform.channel("general")))
    async with asyncio.timeout(TIMEOUT):
        while (row := await bot.harness.store.find(key, secret)) is None or row.message.text:
            pass


async def test_quotations_of_messages_changed_while_disconnected_follow_them(bot: DiscordBot) -> None:
    key = ChannelKey("discord", str(bot.platform.channel("general")))
    edited = await bot.platform.say("the capital of Frnace", author="Ben", mention=False)
    deleted = await bot.platform.say("my password is hunter2", author="Ben", mention=False)
    asked = [await bot.platform.say("explain", reply_to=each) for each in (edited, deleted)]
    await bot.shows("ok", "ok")
    await bot.all_is_delivered()

    async def quoted() -> list[str | None]:
        rows = [await bot.harness.store.find(key, question) for question in asked]
        return [None if row is None else row.message.quoted for row in rows]

    assert await quoted() == ["the capital of Frnace", "my password is hunter2"]
    await bot.platform.disconnect(resumable=False)
    await bot.platform.edit(edited, "the capital of France")
    await bot.platform.delete(deleted)
    async with asyncio.timeout(TIMEOUT):
        while await quoted() != ["the capital of France", None]:
            pass


async def test_a_threads_first_message_deleted_while_disconnected_is_quoted_no_more(bot: DiscordBot) -> None:
    starter = await bot.platform.say("my password is hunter2", author="Ben", mention=False)
    bot.platform.make_thread("general", "passwords", starter)
    asked = await bot.platform.say("is it good?", thread="passwords")
    await bot.shows("ok", thread="passwords")
    await bot.platform.say("hello")
    await bot.shows("ok")
    await bot.all_is_delivered()
    key = ChannelKey("discord", str(bot.platform.channel("general")), starter)
    row = await bot.harness.store.find(key, asked)
    assert row is not None
    assert row.message.quoted == "my password is hunter2"
    await bot.platform.disconnect(resumable=False)
    await bot.platform.delete(starter)
    async with asyncio.timeout(TIMEOUT):
        while (row := await bot.harness.store.find(key, asked)) is None or row.message.quoted is not None:
            pass


# Histories that cannot be parsed


async def test_a_message_that_the_library_cannot_parse_costs_only_itself(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    await visited.say("two")
    bad = await visited.say("among others", mention=False)
    visited.messages[int(bad)]["mentions"] = [{"id": None}]
    await visited.say("three", author="Jo")
    async with run_discord_bot(visited, tmp_path) as bot:
        await bot.shows("ok", "ok", "ok")


async def test_a_channel_whose_history_is_broken_delays_no_other_one(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await platform.say("one", channel="broken")
        await bot.shows("ok")
        await bot.shows("ok", channel="broken")
        await bot.all_is_delivered()
    await platform.say("two")
    await platform.say("two", channel="broken")
    bodies = [b"null", b"<html>", b'{"messages": []}']
    path = f"/channels/{platform.channel('broken')}/messages"

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith(path) and bodies:
            return web.Response(body=bodies[0], content_type="application/json")
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")
        await platform.say("three")
        await bot.shows("ok", "ok", "ok")
        bodies.clear()
        await bot.shows("ok", "ok", channel="broken")


async def test_a_missed_question_with_an_unreadable_part_is_answered(visited: DiscordPlatform, tmp_path: Path) -> None:
    await visited.say("what is broken here?", embeds=[None])
    async with run_discord_bot(visited, tmp_path) as bot:
        await bot.shows("ok", "ok")
        assert bot.engine.requests[0].messages[-1].content == "Mei: what is broken here?"


async def test_with_a_host_clock_that_is_ahead_a_missed_question_is_answered(
    visited: DiscordPlatform, tmp_path: Path
) -> None:
    await visited.say("two")
    async with run_discord_bot(visited, tmp_path, today=datetime.now(UTC) + timedelta(hours=3)) as bot:
        await bot.shows("ok", "ok")


async def test_a_forged_id_in_a_long_history_hides_no_later_page(platform: DiscordPlatform, tmp_path: Path) -> None:
    async def forge(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        if request.method == "GET" and request.path.endswith("/messages") and isinstance(answer, web.Response):
            assert isinstance(answer.body, bytes)
            page = json.loads(answer.body)
            if page and "after" in request.query:
                page.append({**page[0], "id": "9" * 19, "content": "junk", "mentions": []})
            return web.Response(body=json.dumps(page).encode(), content_type="application/json")
        return answer

    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
        platform.gate.wrapper = forge
        await platform.disconnect(resumable=False)
        for number in range(120):
            await platform.say(f"nobody {number}", mention=False)
        await platform.say("two")
        await bot.shows("ok", "ok")


def test_threads_that_no_backfill_reads_are_left_out() -> None:
    now = datetime.now(UTC)
    new, old = (str(discord.utils.time_snowflake(now - timedelta(days=days))) for days in (1, 30))
    known = {
        ChannelKey("discord", "1"): old,
        ChannelKey("discord", "1", "2"): old,
        ChannelKey("discord", "1", "3"): new,
    }
    assert worth_reading({**known, ChannelKey("discord", "1", "damaged"): "x"}) == {
        ChannelKey("discord", "1"): old,
        ChannelKey("discord", "1", "3"): new,
    }
    assert worth_reading({}) == {}

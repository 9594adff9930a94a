"""Slack backfill: replies that stand, edits and deletions, histories that cannot be parsed."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot.adapters.slack.backfill import by_channel
from bot.domain import Action, ChannelKey, Status
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_world import BOT
from tests.harness.slack_harness import answered, becomes, bots, running
from tests.storage import bytes_in


def back_up(folder: Path) -> None:
    shutil.copy(folder / "bot.db", folder / "saved")
    shutil.copy(folder / "bot.db.keys", folder / "saved.keys")


def roll_back(folder: Path) -> None:
    for name in ("bot.db", "bot.db-wal", "bot.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(folder / "saved", folder / "bot.db")
    shutil.copy(folder / "saved.keys", folder / "bot.db.keys")


async def is_delivered(harness: Harness, server: SlackServer, question: str, channel: str = "general") -> None:
    await becomes(harness, Status.DELIVERED, server.workspace.find(channel) or "", question)


@pytest.mark.parametrize("is_direct", [False, True], ids=["in a thread", "in a direct message"])
async def test_answers_that_a_rolled_back_database_forgot_are_adopted(
    tmp_path: Path, server: SlackServer, is_direct: bool
) -> None:
    place = "Mei" if is_direct else "general"
    answer = "\n\n".join(f"{number}. " + "many words " * 60 for number in range(40))
    async with make_harness(tmp_path) as harness, running(harness, server):
        first = await server.say("the first", direct=is_direct)
        await is_delivered(harness, server, first, place)
    back_up(tmp_path)
    async with make_harness(tmp_path, ScriptedEngine(default=answer)) as harness, running(harness, server):
        question = await server.say("a long story?", direct=is_direct)
        await is_delivered(harness, server, question, place)
        await server.until(lambda: server.is_quiet)
    before = bots(server.seen(place))
    assert len(before) == 4
    await server.disconnect(resumable=False)
    roll_back(tmp_path)
    async with make_harness(tmp_path) as harness, running(harness, server):
        adopted = await becomes(harness, Status.DELIVERED, server.workspace.find(place) or "", question)
        assert adopted.answer is not None
        assert "".join(adopted.answer.text.split()) == "".join(answer.split())
        assert len(adopted.parts) == 3
        assert harness.engine.requests == []
        assert bots(server.seen(place)) == before


@pytest.mark.parametrize("is_old", [False, True], ids=["", "an older version's"])
async def test_a_reply_whose_messages_were_deleted_and_sent_again_is_adopted(
    tmp_path: Path, server: SlackServer, is_old: bool
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("the first"))
    back_up(tmp_path)
    go_on = asyncio.Event()
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add(["half", go_on, " and half"])
        question = await server.say("two")
        await answered(server, "ok", "half")
        if not is_old:
            await server.delete(server.seen()[-1].id)
        go_on.set()
        await is_delivered(harness, server, question)
        await server.until(lambda: server.is_quiet)
    for message in server.workspace.messages.values():
        if is_old and message.metadata:
            message.metadata["event_payload"] = {"nonce": message.metadata["event_payload"]["nonce"]}
    await server.disconnect(resumable=False)
    roll_back(tmp_path)
    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, question)
        assert harness.engine.requests == []
        assert bots(server.seen()) == ["ok", "half and half"]


async def test_a_reply_cut_off_after_the_backup_goes_on_in_its_message(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        first = await server.say("one")
        await is_delivered(harness, server, first)
    back_up(tmp_path)
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add(["half an", asyncio.Event()])
        await server.say("two")
        await answered(server, "ok", "half an")
    await server.disconnect(resumable=False)
    roll_back(tmp_path)
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add("whole")
        await answered(server, "ok", "whole")


async def test_a_regenerated_answer_is_made_again_after_a_kill(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        question = await server.say("one")
        await is_delivered(harness, server, question)
        harness.engine.add([asyncio.Event()])
        await server.press(server.seen()[-1].id, Action.RETRY)
        await harness.engine.asked(2)
    async with make_harness(tmp_path, ScriptedEngine(default="another")) as harness, running(harness, server):
        await answered(server, "another")


async def test_edits_and_deletions_while_disconnected_are_found(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        edited = await server.say("2+2?")
        deleted = await server.say("my password is hunter2")
        follow_up = await server.say("and a secret", thread=edited)
        answer_to_all = [edited, deleted, follow_up]
        for question in answer_to_all:
            await is_delivered(harness, server, question)
        await server.disconnect(resumable=False)
        harness.engine.add("six")
        await server.edit(edited, "2+4?")
        await server.delete(deleted)
        await server.delete(follow_up)
        channel = server.workspace.find("general") or ""
        await becomes(harness, Status.CLEARED, channel, deleted)
        await becomes(harness, Status.CLEARED, channel, follow_up)
        await server.until(lambda: "six" in bots(server.seen()))
        row = await harness.store.find(ChannelKey("slack", channel), edited)
        assert row is not None
        assert row.message.text == "2+4?"


async def quoted_in(harness: Harness, server: SlackServer, question: str) -> str | None:
    """Return the quotation that the row of a question has now."""
    row = await harness.store.find(ChannelKey("slack", server.workspace.find("general") or ""), question)
    return row.message.quoted if row is not None else None


async def quotes(harness: Harness, server: SlackServer, question: str, text: str | None) -> None:
    """Wait until the row of a question quotes this text."""
    async with asyncio.timeout(TIMEOUT):
        while await quoted_in(harness, server, question) != text:
            pass


async def test_quotations_of_messages_changed_while_disconnected_follow_them(
    tmp_path: Path, server: SlackServer
) -> None:
    place, ben = server.workspace.channel("general"), server.workspace.user("Ben")
    edited = server.workspace.post(place, ben, text="the capital of Frnace")
    deleted = server.workspace.post(place, ben, text="my password is hunter2")
    alert = server.workspace.post(place, "", text="", bot="B99", attachments=[{"text": "disk full"}])
    async with make_harness(tmp_path) as harness, running(harness, server):
        asked = [await server.say("explain", thread=each.ts) for each in (edited, deleted, alert)]
        for question in asked:
            await is_delivered(harness, server, question)
        assert [await quoted_in(harness, server, each) for each in asked] == [
            "the capital of Frnace",
            "my password is hunter2",
            "disk full",
        ]
        await server.disconnect(resumable=False)
        await server.edit(edited.ts, "the capital of France")
        await server.delete(deleted.ts)
        alert.attachments = [{"text": "disk empty"}]
        await quotes(harness, server, asked[0], "the capital of France")
        await quotes(harness, server, asked[1], None)
        await quotes(harness, server, asked[2], "disk empty")


async def test_an_alert_that_its_app_has_changed_is_quoted_as_it_is_now(tmp_path: Path, server: SlackServer) -> None:
    place = server.workspace.channel("general")
    alert = server.workspace.post(place, "", text="", bot="B99", attachments=[{"text": "disk full"}])
    async with make_harness(tmp_path) as harness, running(harness, server):
        question = await server.say("explain", thread=alert.ts)
        await is_delivered(harness, server, question)
        before = alert.event()
        alert.attachments = [{"text": "disk empty"}]
        change = {"type": "message", "subtype": "message_changed", "channel": place, "ts": server.workspace.now()}
        server.emit({**change, "message": alert.event(), "previous_message": before})
        await quotes(harness, server, question, "disk empty")


@pytest.mark.parametrize("place", ["channel", "thread", "direct"])
async def test_a_question_redelivered_after_a_deletion_that_was_lost_is_not_answered(
    tmp_path: Path, server: SlackServer, place: str
) -> None:
    emitted: list[dict[str, Any]] = []
    emit = server.emit
    is_direct = place == "direct"
    async with make_harness(tmp_path) as harness, running(harness, server):
        first = await server.say("one", direct=is_direct)
        await is_delivered(harness, server, first, "Mei" if is_direct else "general")
        server.emit = emitted.append  # type: ignore[method-assign, assignment]
        thread = first if place == "thread" else None
        secret = await server.say("my password is hunter2", direct=is_direct, thread=thread)
        await server.delete(secret)
        server.emit = emit  # type: ignore[method-assign]
        links = server.links
        await server.disconnect(resumable=False)
        await server.until(lambda: server.links > links)
        for event in emitted[:-1]:  # the last is the deletion
            emit(event)
        await server.until(lambda: server.is_quiet)
        await becomes(harness, Status.CLEARED, server.workspace.find("Mei" if is_direct else "general") or "", secret)
        assert len(harness.engine.requests) == 1


async def test_a_question_still_being_stored_when_the_connection_is_lost_is_compared_too(
    tmp_path: Path, server: SlackServer
) -> None:
    is_asked, never = asyncio.Event(), asyncio.Event()

    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("users.info") and "U002" in str(request.query) + str(await request.post()):
            is_asked.set()
            await never.wait()  # the bot goes on without the name after a second
        return None

    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("one"))
        server.gate.guard = guard
        secret = await server.say("my password is hunter2", author="Ann")
        await is_asked.wait()
        await server.disconnect(resumable=False)
        await server.delete(secret)
        await becomes(harness, Status.CLEARED, server.workspace.find("general") or "", secret)
        never.set()


async def test_events_redelivered_in_another_order_leave_the_newest_text(tmp_path: Path, server: SlackServer) -> None:
    emitted: list[dict[str, Any]] = []
    emit = server.emit

    def record(event: dict[str, Any]) -> None:
        emitted.append(event)
        emit(event)

    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("one"))
        server.emit = record  # type: ignore[method-assign]
        question = await server.say("2+2?")
        await is_delivered(harness, server, question)
        await server.edit(question, "2+3?")
        await server.edit(question, "2+4?")
        await server.until(lambda: server.is_quiet)
        emit(emitted[-2])
        server.emit = emitted.append  # type: ignore[method-assign, assignment]
        late = await server.say("3+2?")
        await server.edit(late, "3+4?")
        for event in reversed(emitted[-3:]):
            emit(event)
        await server.until(lambda: server.is_quiet)
        channel = server.workspace.find("general") or ""
        rows = [await becomes(harness, Status.DELIVERED, channel, message) for message in (question, late)]
    assert [row.message.text for row in rows] == ["2+4?", "3+4?"]


@pytest.mark.parametrize("column", ["message", "thread"])
async def test_a_row_with_damaged_ids_does_not_stop_the_backfill(
    tmp_path: Path, server: SlackServer, column: str
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        for question in ("one", "two"):
            await is_delivered(harness, server, await server.say(question))
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database, database:
        database.execute(f"UPDATE exchanges SET {column} = 'x', status = 'open' WHERE id = 2")
    missed = await server.say("three")
    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, missed)


async def test_messages_of_any_shape_cost_only_themselves(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        first = await server.say("one", direct=True)
        await is_delivered(harness, server, first, "Mei")
    await server.disconnect(resumable=False)
    history = server.workspace.history

    def poisoned(arguments: dict[str, object]) -> dict[str, object]:
        page = history(arguments)
        return {**page, "messages": [None, {"ts": 5}, {"ts": "x"}, *page["messages"], {"ts": "9.9", "metadata": []}]}

    server.workspace.history = poisoned  # type: ignore[method-assign]
    await server.say("two", direct=True)
    async with make_harness(tmp_path) as harness, running(harness, server):
        await answered(server, "ok", "ok", channel="Mei")


async def test_a_channel_whose_history_fails_delays_no_other_one(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        for channel in ("general", "broken"):
            await is_delivered(harness, server, await server.say("one", channel=channel), channel)
    await server.disconnect(resumable=False)
    broken, is_broken = server.workspace.find("broken"), True

    async def guard(request: web.Request) -> web.Response | None:
        if not (request.path.endswith("conversations.history") and is_broken):
            return None
        is_here = {**request.query, **await request.post()}.get("channel") == broken
        return web.json_response({"ok": True, "messages": "none"}) if is_here else None

    for channel in ("general", "broken"):
        await server.say("two", channel=channel)
    server.gate.guard = guard
    async with make_harness(tmp_path) as harness, running(harness, server):
        await answered(server, "ok", "ok")
        await server.say("three", channel="broken")
        await answered(server, "ok", "ok", channel="broken")
        is_broken = False
        await answered(server, "ok", "ok", "ok", channel="broken")


async def test_a_history_that_stays_limited_is_read_less_and_less_often(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("one"))
    await server.disconnect(resumable=False)
    refusals = [web.Response(status=429, headers={"Retry-After": "0"}) for _ in range(6)]

    async def guard(request: web.Request) -> web.Response | None:
        return refusals.pop() if request.path.endswith("conversations.history") and refusals else None

    await server.say("two")
    server.gate.guard = guard
    with capture_logs() as logs:
        async with make_harness(tmp_path) as harness, running(harness, server):
            await answered(server, "ok", "ok")
    waits = [line["seconds"] for line in logs if line["event"] == "slack: backfill rate limited"]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


async def test_a_reply_cut_off_does_not_wait_for_a_history_that_cannot_be_read(
    tmp_path: Path, server: SlackServer
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add(["half", asyncio.Event()])
        await server.say("one")
        await answered(server, "half")
    await server.disconnect(resumable=False)

    async def guard(request: web.Request) -> web.Response | None:
        is_read = request.path.endswith(("conversations.history", "conversations.replies"))
        return web.json_response({"ok": True, "messages": "none"}) if is_read else None

    server.gate.guard = guard
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add("half and half")
        await answered(server, "half and half")


async def test_an_edit_that_calls_the_bot_while_it_is_disconnected_is_a_question(
    tmp_path: Path, server: SlackServer
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        remark = await server.say("月亮有多远？", mention=False)
        await is_delivered(harness, server, await server.say("one"))
    await server.disconnect(resumable=False)
    await server.edit(remark, f"<@{BOT}> 月亮有多远？")
    async with make_harness(tmp_path) as harness, running(harness, server):
        await answered(server, "ok", "ok")
        assert harness.engine.requests[-1].messages[-1].content.endswith("月亮有多远？")


async def test_an_edit_that_was_answered_after_the_backup_is_not_answered_again(
    tmp_path: Path, server: SlackServer
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        question = await server.say("2+2?")
        await is_delivered(harness, server, question)
    back_up(tmp_path)
    async with make_harness(tmp_path, ScriptedEngine(default="six")) as harness, running(harness, server):
        await server.edit(question, "2+4?")
        await answered(server, "six")
        await is_delivered(harness, server, question)
        await server.until(lambda: server.is_quiet)
    await server.disconnect(resumable=False)
    roll_back(tmp_path)
    async with make_harness(tmp_path, ScriptedEngine(default="another")) as harness, running(harness, server):
        missed = await server.say("and now?")
        await is_delivered(harness, server, missed)
        assert bots(server.seen()) == ["six", "another"]
        row = await harness.store.find(ChannelKey("slack", server.workspace.find("general") or ""), question)
        assert row is not None
        assert row.answer is not None
        assert (row.message.text, row.answer.text) == ("2+4?", "six")


async def test_with_a_host_clock_that_is_ahead_a_missed_question_is_answered(
    tmp_path: Path, server: SlackServer
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("one", direct=True), "Mei")
    await server.disconnect(resumable=False)
    await server.say("two", direct=True)
    later = datetime.now(UTC) + timedelta(hours=3)
    async with make_harness(tmp_path, today=later) as harness, running(harness, server):
        await answered(server, "ok", "ok", channel="Mei")


async def test_a_backlog_is_answered_question_by_question_while_others_are_looked_for(
    tmp_path: Path, server: SlackServer
) -> None:
    channel, calls, is_read, is_down = "", list[object](), asyncio.Event(), True
    questions: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("chat.postMessage"):
            calls.append("send")
            return web.json_response({}, status=503) if is_down else None
        if request.path.endswith("conversations.replies"):
            calls.append({**request.query, **await request.post()}["ts"])
            if not is_down and calls[-1] == questions[-1]:
                await is_read.wait()
        return None

    async with make_harness(tmp_path, limits=NO_LIMITS) as harness, running(harness, server):
        await is_delivered(harness, server, await server.say("one"))
        channel = server.workspace.find("general") or ""
        server.gate.guard = guard
        questions += [await server.say(f"question {number}") for number in range(12)]
        for question in questions:
            await becomes(harness, Status.OPEN, channel, question)
        await server.until(lambda: server.is_quiet)
    await server.say("<!here> not for the bot", thread=questions[-1], mention=False)
    is_down = False
    calls.clear()
    async with make_harness(tmp_path) as harness, running(harness, server):
        for question in questions[:-1]:
            await becomes(harness, Status.DELIVERED, channel, question)
        # The channel tells which questions have no replies; the one that has some is still being read.
        assert set(calls[: calls.index("send")]) <= {questions[-1]}
        assert calls.count(questions[-1]) <= 2  # by the backfill, too
        is_read.set()
        await becomes(harness, Status.DELIVERED, channel, questions[-1])
    assert bots(server.seen()) == ["ok"] * 13


@pytest.mark.parametrize("is_missed", [False, True], ids=["while connected", "while disconnected"])
async def test_the_text_of_a_file_that_its_author_deletes_is_deleted(
    tmp_path: Path, server: SlackServer, is_missed: bool
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        harness.engine.add("four", "five")
        question = await server.say("which number is it?", files=[server.file("a.txt", b"the code is 7734")])
        await is_delivered(harness, server, question)
        assert "7734" in harness.engine.requests[-1].messages[-1].content
        if is_missed:
            await server.disconnect(resumable=False)
        await server.delete_file(question)
        await server.until(lambda: "five" in bots(server.seen()))
        await is_delivered(harness, server, question)
        assert harness.engine.requests[-1].messages[-1].content == "Mei: which number is it?"
        server.unfurl(question)
        await server.until(lambda: server.is_quiet)
        assert len(harness.engine.requests) == 2
    assert b"7734" not in bytes_in(tmp_path)


def test_threads_that_no_backfill_reads_are_left_out() -> None:
    now = datetime.now(UTC).timestamp()
    new, old = (f"{now - 86_400 * days:.6f}" for days in (1, 30))
    older = f"{now - 86_400 * 100:.6f}"
    known = {
        ChannelKey("slack", "C1", older): older,
        ChannelKey("slack", "C1", old): old,
        ChannelKey("slack", "C2", old): old,
        ChannelKey("slack", "C2"): new,
        ChannelKey("slack", "C3"): "/U1/123.456",
    }
    assert list(by_channel(known).items()) == [("C2", {None: new}), ("C1", {old: old}), ("C3", {})]

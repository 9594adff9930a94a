"""Telegram: faults, backlog, migrations, malformed updates, inspection."""

import asyncio
import json
import random
import traceback
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.adapters import inspect
from bot.adapters.base import Finding
from bot.delivery.markdown.blocks import is_balanced, visible_text
from bot.domain import Action, ChannelKey, Exchange, IncomingMessage, Kind, Status
from bot.errors import LoginRefused, StoreError
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import TIMEOUT, Fault
from tests.harness.servers.telegram import UNCHANGED, Refused, TelegramPlatform
from tests.harness.telegram_harness import done, replies, running, shown, texts

ANSWER = """\
## 第一步 😀

**重点**：先看 `main.py`，再看[说明](https://example.org/x)。 مرحبا

1. one
   - two <br> `a|b`

```py
for number in range(9):
    print(number)
```

| 名称 | 值 |
|---|---|
| 一 | two |

> a quote, <!channel> and @everyone

"""


async def test_a_message_is_stored_before_it_is_confirmed(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: not telegram.pending)
        (kept,) = await harness.store.last_message_ids("telegram")
        assert kept == ChannelKey("telegram", str(telegram.private("Mei").id))


async def test_a_message_that_cannot_be_stored_is_delivered_again(
    telegram: TelegramPlatform, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue, failures = harness.store.enqueue, iter(range(2))

    async def failing(message: IncomingMessage, kind: Kind, *, claim: bool = True) -> Exchange | None:
        if next(failures, None) is not None:
            raise StoreError("the disk is full")
        return await enqueue(message, kind, claim=claim)

    async with running(telegram, harness):
        monkeypatch.setattr(harness.store, "enqueue", failing)
        await telegram.say("one", direct=True)
        await telegram.say("two", direct=True)
        waits = "I can't save messages right now. Yours is queued and will be answered."
        await done(telegram, waits, "ok", "ok", channel="Mei")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["one", "two"]


async def test_a_bug_costs_one_message(
    telegram: TelegramPlatform, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.raise_on("bad", monkeypatch)
    async with running(telegram, harness):
        await telegram.say("bad", direct=True)
        await telegram.say("good", direct=True)
        await done(telegram, "ok", channel="Mei")
        await telegram.until(lambda: not telegram.pending)
    assert [request.messages[-1].content for request in harness.engine.requests] == ["good"]


async def test_messages_sent_while_offline_are_answered_in_order(telegram: TelegramPlatform, harness: Harness) -> None:
    for number in range(3):
        await telegram.say(f"question {number}", direct=True)
    async with running(telegram, harness):
        await done(telegram, "ok", "ok", "ok", channel="Mei")
    asked = [request.messages[-1].content for request in harness.engine.requests]
    assert asked == ["question 0", "question 1", "question 2"]


async def test_a_backlog_of_many_polls_is_answered_once_it_is_complete(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    telegram.now -= timedelta(hours=3)
    for number in range(120):
        await telegram.say(f"question {number}", direct=True)
    telegram.now += timedelta(hours=3)
    await telegram.say("and now?", direct=True)
    async with running(telegram, harness):
        await telegram.until(lambda: len(texts(telegram, "Mei")) == 2 and "ok" in texts(telegram, "Mei"))
    assert len(harness.engine.requests) == 1


async def test_an_edit_made_while_offline_keeps_its_place(telegram: TelegramPlatform, harness: Harness) -> None:
    await telegram.say("first", direct=True)
    question = await telegram.say("secnod", direct=True)
    await telegram.edit(question, "second")
    async with running(telegram, harness):
        await done(telegram, "ok", "ok", channel="Mei")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["first", "second"]


async def test_a_retry_pressed_while_offline_keeps_its_place(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("wrong", "right")
    async with running(telegram, harness):
        await telegram.say("first", direct=True)
        await done(telegram, "wrong", channel="Mei")
    await telegram.say("second", direct=True)
    await telegram.press(replies(telegram, "Mei")[0].id, Action.RETRY)
    async with running(telegram, harness):
        await done(telegram, "right", "ok", channel="Mei")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["first", "first", "second"]


async def test_expired_questions_get_one_notice(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.now -= timedelta(hours=3)
    for number in range(3):
        await telegram.say(f"question {number}", direct=True)
    async with running(telegram, harness):
        await telegram.until(lambda: len(texts(telegram, "Mei")) == 1)
        await telegram.until(lambda: texts(telegram, "Mei")[0].startswith("I was offline"))
    assert harness.engine.requests == []


async def test_an_answer_cut_off_by_a_kill_is_completed_in_the_same_message(
    telegram: TelegramPlatform, tmp_path: Path
) -> None:
    async with make_harness(tmp_path) as before, running(telegram, before):
        before.engine.add(["half", asyncio.Event()])
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: texts(telegram, "Mei") == ["half"])
    async with make_harness(tmp_path) as after, running(telegram, after):
        after.engine.add("the whole answer")
        await done(telegram, "the whole answer", channel="Mei")


async def test_a_second_poller_is_logged_and_polling_continues(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        with capture_logs() as logs:
            await found(telegram)
            await telegram.say("hello", direct=True)
            await done(telegram, "ok", channel="Mei")
    assert any("another program polls Telegram" in entry.get("error", "") for entry in logs)


async def test_a_webhook_is_removed_and_its_updates_are_kept(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.webhook = "https://example.org"
    await telegram.say("hello", direct=True)
    async with running(telegram, harness):
        await done(telegram, "ok", channel="Mei")


async def test_a_wrong_token_is_reported_without_the_token(harness: Harness) -> None:
    async with TelegramPlatform(token="987654321:AAWrongWrongWrongWrongWrongWrongWro") as telegram:
        with pytest.raises(LoginRefused, match="BOT_TELEGRAM__TOKEN") as refusal:
            await telegram.adapter(FastClock()).run(harness.intake)
    assert "987654321" not in "".join(traceback.format_exception(refusal.value))


async def test_an_unavailable_telegram_at_the_start_is_retried(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.broken["getMe"] = Refused(502, "Bad Gateway")
    telegram.broken["setMyCommands"] = Refused(500, "Internal Server Error")
    adapter = asyncio.create_task(telegram.adapter(FastClock()).run(harness.intake))
    await telegram.until(lambda: len(telegram.calls) > 2)
    del telegram.broken["getMe"]
    await telegram.say("hello", direct=True)
    await done(telegram, "ok", channel="Mei")
    adapter.cancel()
    await asyncio.gather(adapter, return_exceptions=True)


@pytest.mark.parametrize("code", [404, 401, 429, 500])
async def test_polling_survives_errors_other_than_a_wrong_token(
    telegram: TelegramPlatform, harness: Harness, code: int
) -> None:
    async with running(telegram, harness):
        parameters = {"retry_after": 1} if code == 429 else {}
        telegram.broken["getUpdates"] = Refused(code, "Not just now", **parameters)
        await telegram.disconnect()
        calls = len(telegram.calls)
        await telegram.until(lambda: len(telegram.calls) > calls + 3)
        del telegram.broken["getUpdates"]
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")


async def test_a_revoked_token_ends_the_adapter(telegram: TelegramPlatform, harness: Harness) -> None:
    adapter = asyncio.create_task(telegram.adapter(FastClock()).run(harness.intake))
    await telegram.until(lambda: telegram.polls > 1)
    telegram.broken |= {name: Refused(401, "Unauthorized") for name in ("getMe", "getUpdates")}
    await telegram.disconnect()
    with pytest.raises(LoginRefused):
        await adapter


async def test_a_cut_connection_is_reopened(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        for number in range(3):
            await telegram.disconnect()
            await telegram.say(str(number), direct=True)
        await done(telegram, "ok", "ok", "ok", channel="Mei")


async def test_every_character_arrives_although_calls_fail(telegram: TelegramPlatform, harness: Harness) -> None:
    answer = "".join(f"Part {number}. {ANSWER}" for number in range(50))
    harness.engine.add([answer[at : at + 400] for at in range(0, len(answer), 400)])
    troubles = cycle([None, Fault("429", 3), None, Fault("500"), None, None, Fault("timeout")])
    telegram.script = lambda number, name: next(troubles)
    async with running(telegram, harness):
        await telegram.say("tell me all")
        await telegram.until(lambda: shown(replies(telegram)) == visible_text(answer))
    pieces = replies(telegram)
    assert len(pieces) > 1
    assert [piece.actions for piece in pieces] == [frozenset()] * (len(pieces) - 1) + [frozenset({Action.RETRY})]
    assert all(is_balanced(piece.markdown) for piece in pieces)


async def test_a_lost_response_to_an_edit_is_no_error(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.script = lambda number, name: Fault("lost") if name == "editMessageText" and number < 3 else None
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "ok")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (403, "Forbidden: the supergroup chat was deleted"),
        (403, "Forbidden: user is deactivated"),
        (400, "Bad Request: chat not found"),
    ],
)
async def test_an_exchange_fails_where_the_bot_cannot_write(
    telegram: TelegramPlatform, harness: Harness, code: int, said: str
) -> None:
    telegram.group("general").gone = (code, said)
    async with running(telegram, harness):
        question = await telegram.say("hello")
        await telegram.until(lambda: any(name == "sendMessage" for name, _ in telegram.calls))
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")
        place = ChannelKey("telegram", str(telegram.group("general").id))
        async with asyncio.timeout(TIMEOUT):
            while (kept := await harness.store.find(place, question)) is None or kept.status is not Status.FAILED:
                pass


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (403, "Forbidden: bot was kicked from the supergroup chat"),
        (403, "Forbidden: bot was blocked by the user"),
        (400, "Bad Request: not enough rights to send text messages to the chat"),
        (400, "Bad Request: TOPIC_CLOSED"),
    ],
)
async def test_a_permission_that_comes_back_is_waited_for(
    telegram: TelegramPlatform, harness: Harness, code: int, said: str
) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    async with running(telegram, harness):
        await telegram.say("hello")
        await telegram.until(lambda: texts(telegram) == ["half"])
        telegram.group("general").gone = (code, said)
        go_on.set()
        calls = len(telegram.calls)
        await telegram.until(lambda: len(telegram.calls) > calls + 3)
        telegram.group("general").gone = None
        await done(telegram, "half and half")


async def test_a_deleted_question_is_answered_as_telegram_does_not_report_it(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        await telegram.delete(await telegram.say("hello"))
        await done(telegram, "ok")


async def test_refused_markup_is_sent_as_plain_text(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.refuses_entities = True
    harness.engine.add("**bold**")
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "**bold**")


async def test_a_group_that_becomes_a_supergroup_keeps_its_history(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    old = telegram.group("general", "group")
    async with running(telegram, harness):
        await telegram.say("first")
        await done(telegram, "ok")
        telegram.push_migration(old, telegram.migrate("general"))
        await telegram.say("second")
        await done(telegram, "ok")
    assert [message.content for message in harness.engine.requests[1].messages] == ["Mei: first", "ok", "Mei: second"]


async def test_a_migration_during_an_answer_keeps_the_answer(telegram: TelegramPlatform, harness: Harness) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    telegram.group("general", "group")
    async with running(telegram, harness):
        await telegram.say("hello")
        await telegram.until(lambda: texts(telegram) == ["half"])
        new = telegram.migrate("general")
        go_on.set()
        await done(telegram, "half and half")
        assert await harness.store.has_history(ChannelKey("telegram", str(new.id)))


async def test_after_a_migration_the_numbers_of_the_former_chat_are_other_messages(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    telegram.group("general", "group")
    async with running(telegram, harness):
        await telegram.say("hello")
        await telegram.until(lambda: texts(telegram) == ["half"])
        new = telegram.migrate("general")
        for message in list(telegram.messages.values()):
            telegram.messages[new.id, message.id] = replace(message, chat=new, text="another", actions=frozenset())
        go_on.set()
        await done(telegram, "another", "half and half")
        assert telegram.seen()[-1].reply_to is None


@pytest.mark.parametrize(
    "update",
    [
        {"message": {"message_id": "x"}},
        {"message": {"message_id": 1, "date": 10**30, "chat": {"id": 1, "type": "private"}}},
        {"message": {"message_id": 1, "date": 0, "chat": {"id": 7, "type": "private"}, "from": {}, "text": "hi"}},
        {"message": {"message_id": 1, "date": 0, "chat": None, "text": 5}},
        {"message": []},
        {"message": None},
        {"callback_query": {"id": "1"}},
        {
            "callback_query": {
                "id": "1",
                "from": {"id": 1, "is_bot": False, "first_name": "x"},
                "chat_instance": "1",
                "data": "x",
            }
        },
        {"edited_message": {"message_id": 1, "date": 0}},
        {"poll_answer": 7},
        {},
    ],
)
async def test_a_malformed_update_does_not_block_others(
    telegram: TelegramPlatform, harness: Harness, update: dict[str, Any]
) -> None:
    async with running(telegram, harness):
        telegram.push(update)
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")


@pytest.mark.parametrize("text", ["\ud83d half", "\u202etxt", "a\x00b", "x" * 100_000, "<sop>[gMASK]"])
async def test_unusual_texts_are_answered(telegram: TelegramPlatform, harness: Harness, text: str) -> None:
    async with running(telegram, harness):
        await telegram.say(text)
        await telegram.until(lambda: len(texts(telegram)) == 1 and Action.RETRY in replies(telegram)[0].actions)


async def test_mangled_updates_do_not_stop_polling(telegram: TelegramPlatform, harness: Harness) -> None:
    dice = random.Random(11)
    harness.engine.add(*(str(number) for number in range(400)))
    async with running(telegram, harness):
        question = await telegram.say("hello", thread="moon", quote={"text": "moon", "position": 4})
        await done(telegram, "0", thread="moon")
        message = telegram.facts_of(telegram.find(question)) | {"from": telegram.person("Ben")}
        press = {"id": "1", "from": telegram.person("Ben"), "message": message, "chat_instance": "1", "data": "retry"}
        for _ in range(300):
            whole = dice.choice([{"message": message}, {"edited_message": message}, {"callback_query": press}])
            telegram.push(mangled(json.loads(json.dumps(whole)), dice))
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: texts(telegram, "Mei") not in ([], ["…"]))
    # Repeated edits of one question can produce the answer that is already shown.
    telegram.violations = [each for each in telegram.violations if each != UNCHANGED]


def mangled(update: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """Replace a few values of the update."""
    for _ in range(dice.randint(1, 3)):
        at: Any = update
        while True:
            key = dice.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not (isinstance(at[key], dict | list) and at[key]) or dice.random() < 0.2:
                break
            at = at[key]
        at[key] = dice.choice([None, -1, 10**30, 1.5, "", "x", "\ud800\u202e", True, [], {}, ["x"], {"id": "x"}])
    return update


async def test_a_malformed_response_is_requested_again(telegram: TelegramPlatform, harness: Harness) -> None:
    garbage = [b"<html>", b"[]", b'{"ok": true}']
    async with running(telegram, harness):
        telegram.garbage += garbage
        await telegram.disconnect()
        await telegram.until(lambda: not telegram.garbage)
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")


async def test_a_retry_after_a_migration_is_a_new_message(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("one", "two")
    old = telegram.group("general", "group")
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "one")
        telegram.push_migration(old, telegram.migrate("general"))
        await telegram.command("retry")
        await done(telegram, "two")


async def test_privacy_mode_is_not_logged_when_it_is_off(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.reads_all = True
    with capture_logs() as logs:
        async with running(telegram, harness):
            pass
    assert not any("privacy" in entry["event"] for entry in logs)


async def test_the_bots_name_is_case_insensitive_and_replies_go_to_their_topic(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        await telegram.say("/HELP@GLM_BOT", thread="moon", mention=False)
        await telegram.until(lambda: any("/clear" in text for text in texts(telegram, thread="moon")))


# Inspection


async def found(telegram: TelegramPlatform) -> list[Finding]:
    return [finding async for finding in inspect("telegram", telegram.settings())]


async def test_an_inspection_reports_what_the_operator_has_to_change(
    telegram: TelegramPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.adapters.telegram.adapter._SECOND_POLLER", 0.0)
    findings = await found(telegram)
    assert [finding.is_ok for finding in findings] == [True, False, True]
    assert "@glm_bot" in findings[0].text
    assert "/setprivacy" in findings[1].text
    telegram.reads_all, telegram.joins_groups, telegram.webhook = True, False, "https://example.org"
    assert [finding.is_ok for finding in await found(telegram)] == [True, True, False, False]
    telegram.takes_guests = True
    guests = (await found(telegram))[2]
    assert guests.is_ok
    assert "guest mode is on" in guests.text


async def test_an_inspection_finds_a_wrong_token_and_a_second_poller(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    telegram.broken["getUpdates"] = Refused(409, "Conflict: terminated by other getUpdates request")
    assert "another program" in (await found(telegram))[-1].text
    telegram.broken["getMe"] = Refused(401, "Unauthorized")
    (finding,) = await found(telegram)
    assert (finding.is_ok, "BOT_TELEGRAM__TOKEN" in finding.text) == (False, True)

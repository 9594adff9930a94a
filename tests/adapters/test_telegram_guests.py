"""Telegram's guest mode, and inline queries."""

import asyncio
from pathlib import Path

import pytest

from bot.adapters.telegram.markup import LIMIT
from bot.config.schema import AccessSection
from bot.domain import ChannelKey, Exchange, IncomingMessage, Kind, Status
from bot.errors import StoreError
from tests.adapters.test_telegram_rich import SHOWN, TABLE
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.platform import TIMEOUT, Fault
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.telegram_harness import done, replies, running, texts


async def test_a_mention_where_the_bot_is_no_member_is_answered(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("four", "five")
    async with running(telegram, harness):
        telegram.guest("2 + 2?")
        await done(telegram, "four", channel="elsewhere")
        telegram.guest("2 + 3?", author="Ben")
        await done(telegram, "four", "five", channel="elsewhere")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["Mei: 2 + 2?", "Ben: 2 + 3?"]
    assert all(not reply.actions for reply in replies(telegram, "elsewhere"))


async def test_an_answer_of_a_guest_is_rich(harness: Harness) -> None:
    harness.engine.add(TABLE)
    async with TelegramPlatform(knows="blocks") as telegram, running(telegram, harness):
        telegram.guest("how much?")
        await done(telegram, SHOWN, channel="elsewhere")
        assert telegram.violations == []


async def test_a_chat_of_a_guest_has_a_history_of_its_own(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("a secret", "four")
    async with running(telegram, harness):
        await telegram.say("tell me", channel="elsewhere")
        await done(telegram, "a secret", channel="elsewhere")
        telegram.guest("2 + 2?", author="Ben")
        await done(telegram, "a secret", "four", channel="elsewhere")
    assert len(harness.engine.requests[-1].messages) == 1


@pytest.mark.parametrize("kind", ["429", "500", "timeout"])
async def test_a_refused_answer_of_a_guest_is_sent_again(
    telegram: TelegramPlatform, harness: Harness, kind: str
) -> None:
    fault = Fault(kind, 1)  # type: ignore[arg-type]
    telegram.script = lambda number, name: fault if number in (0, 2) else None
    async with running(telegram, harness):
        telegram.guest("hello")
        await done(telegram, "ok", channel="elsewhere")


async def test_a_query_that_was_answered_is_not_answered_again(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.script = lambda number, name: Fault("lost") if number == 0 else None
    async with running(telegram, harness):
        telegram.guest("hello")
        await telegram.until(lambda: sum(name == "answerGuestQuery" for name, _ in telegram.calls) == 2)
        telegram.guest("and now?")
        await done(telegram, "…", "ok", channel="elsewhere")


async def test_after_a_restart_the_message_of_a_guest_is_continued(tmp_path: Path) -> None:
    async with TelegramPlatform() as telegram:
        async with make_harness(tmp_path) as before, running(telegram, before):
            before.engine.add(["half", asyncio.Event()])
            telegram.guest("hello")
            await telegram.until(lambda: texts(telegram, "elsewhere") == ["half"])
        async with make_harness(tmp_path) as after, running(telegram, after):
            await done(telegram, "ok", channel="elsewhere")


async def test_private_chats_with_the_same_person_are_apart(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("a secret", "four", "five")
    async with running(telegram, harness):
        telegram.guest("tell me", author="Mei", partner="Cai", channel="Mei and Cai")
        await done(telegram, "a secret", channel="Mei and Cai")
        telegram.guest("2 + 2?", author="Ben", partner="Cai", channel="Ben and Cai")
        await done(telegram, "four", channel="Ben and Cai")
        telegram.guest("/clear", author="Ben", partner="Cai", channel="Ben and Cai")
        await telegram.until(lambda: "nothing to delete" in texts(telegram, "Ben and Cai")[-1])
        await telegram.say("2 + 3?", author="Cai", direct=True)
        await done(telegram, "five", channel="Cai")
    assert [len(request.messages) for request in harness.engine.requests] == [1, 1, 1]


async def test_a_full_disk_does_not_use_up_the_only_answer(
    telegram: TelegramPlatform, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue, faults = harness.store.enqueue, 3

    async def failing(message: IncomingMessage, kind: Kind, *, claim: bool = True) -> Exchange | None:
        nonlocal faults
        if faults:
            faults -= 1
            raise StoreError("the disk is full")
        return await enqueue(message, kind, claim=claim)

    monkeypatch.setattr(harness.store, "enqueue", failing)
    async with running(telegram, harness):
        telegram.guest("2 + 2?")
        await done(telegram, "ok", channel="elsewhere")
    assert not faults


@pytest.mark.parametrize("rule", ["deny_channels", "allow_channels"])
async def test_lists_of_channels_apply_to_guests(telegram: TelegramPlatform, harness: Harness, rule: str) -> None:
    is_denied = rule == "deny_channels"
    listed = f"telegram:{telegram.group('one').id}"
    harness.access.reconfigure(AccessSection.model_validate({rule: [listed]}), harness.access.limits)
    async with running(telegram, harness):
        telegram.guest("hello", channel="one")
        telegram.guest("hello", channel="two")
        await done(telegram, "ok", channel="two" if is_denied else "one")
        assert texts(telegram, "one" if is_denied else "two") == []


class FrozenClock:
    """A clock on which no time passes, whatever is slept."""

    def now(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)


async def test_a_busy_group_does_not_delay_the_first_words_of_guests(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    harness.access.reconfigure(AccessSection(), NO_LIMITS)
    people = [f"Person {number}" for number in range(30)]
    async with running(telegram, harness, FrozenClock()):
        await telegram.say("hello", author="Ben", channel="elsewhere")
        await telegram.until(lambda: len(replies(telegram, "elsewhere")) == 1)
        for person in people:
            telegram.guest("hello", author=person)
        await telegram.until(lambda: len(replies(telegram, "elsewhere")) == 1 + len(people))


async def test_an_answer_that_exceeds_the_one_message_ends_with_a_sentence(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    lines = [f"Line {number} of a long answer.\n\n" for number in range(300)]
    harness.engine.add(lines)
    async with running(telegram, harness):
        telegram.guest("tell me all")
        key = ChannelKey("telegram", str(telegram.group("elsewhere").id), "guest")
        async with asyncio.timeout(TIMEOUT):
            while [each.status for each in await harness.store.said_in(key, 2)] != [Status.DELIVERED]:
                pass
        (shown,) = texts(telegram, "elsewhere")
    answer, _, sentence = shown.rpartition("\n\n")
    assert sentence == "The rest does not fit here. For the whole answer, ask me in a direct message."
    assert "".join(lines).startswith(answer)
    assert LIMIT - 1024 < len(shown) <= LIMIT


async def test_an_inline_query_points_to_the_private_chat(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        telegram.language = "zh"
        query = telegram.write_inline("2 + 2?")
        await telegram.until(lambda: query in telegram.inline_answers)
        answer = telegram.inline_answers[query]
        assert (answer["results"], answer["button"]["start_parameter"]) == ([], "ask")
        await telegram.say("/start ask", direct=True)
        await telegram.until(lambda: any("/clear" in text for text in texts(telegram, "Mei")))
    assert harness.engine.requests == []


async def test_words_as_they_are_written_are_answered_a_few_at_a_time(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    telegram.answering.clear()
    async with running(telegram, harness):
        for length in range(1, 41):
            telegram.write_inline("why is the sky blue? and the sea?"[:length])
        await telegram.until(lambda: not telegram.pending)
        written = [name for name, _ in telegram.calls if name == "answerInlineQuery"]
        telegram.answering.set()
        await telegram.until(lambda: len(telegram.inline_answers) == 8)
        last = telegram.write_inline("why is the sky blue?")
        await telegram.until(lambda: last in telegram.inline_answers)
    assert len(written) <= 8
    assert len(telegram.inline_answers) == 9


async def test_people_who_are_denied_get_no_answer_to_inline_queries(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    denied = f"telegram:{telegram.person('Mei')['id']}"
    harness.access.reconfigure(AccessSection(deny_users=(denied,)), harness.access.limits)
    async with running(telegram, harness):
        telegram.write_inline("why?", author="Mei")
        allowed = telegram.write_inline("why?", author="Ben")
        await telegram.until(lambda: allowed in telegram.inline_answers and not telegram.pending)
    assert [*telegram.inline_answers] == [allowed]

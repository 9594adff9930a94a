"""Replies on a platform: one at a time per exchange, and none that takes the others down."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from bot.delivery.markdown.format import MarkdownFormat, Rendered
from bot.delivery.replies import GRACE, Replies
from bot.domain import Action, ChannelKey, Controls, Exchange, Status
from bot.errors import AccessDenied, ChannelGone, ContentRefused, LoginRefused, MarkupRefused, PlatformError, StoreError
from tests.harness.fakes import FakeMessenger, FastClock
from tests.harness.fakes.messenger import Failure, Verb
from tests.harness.harness import Harness
from tests.harness.messages import CHANNEL, MEI, a_message

SORRY = "Something went wrong while I was answering. Please try again."
FILTERED = "(A filter of this server refuses the rest of this message.)"


@pytest.fixture
def clock() -> FastClock:
    return FastClock(1000)


class SlowPlatform(FakeMessenger):
    """Knows no nonces, as Telegram; has the first message long before its answer, until `answers`, reaches us."""

    def __init__(self, clock: FastClock) -> None:
        super().__init__(clock, knows_nonces=False)
        self.has_it = asyncio.Event()
        self.answers = asyncio.Event()

    async def send(
        self,
        channel: ChannelKey,
        text: Rendered,
        *,
        reply_to: str | None,
        controls: Controls,
        nonce: str,
        may_exist: bool = False,
        continues: str | None = None,
    ) -> str:
        message_id = await super().send(
            channel,
            text,
            reply_to=reply_to,
            controls=controls,
            nonce=nonce,
            may_exist=may_exist,
            continues=continues,
        )
        self.has_it.set()
        await self.answers.wait()
        return message_id


async def test_a_reply_grows_in_one_message_and_is_delivered(harness: Harness, clock: FastClock) -> None:
    harness.engine.add(["Hello", " there"])
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        exchange = await harness.accept(a_message("hi"))
        replies.start(exchange)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["Hello there"]
    assert messenger.violations == []
    kept = await harness.stored(exchange)
    assert (kept.status, len(kept.parts)) == (Status.DELIVERED, 1)


async def test_a_question_edited_while_its_reply_is_shown_is_answered_in_the_same_message(
    harness: Harness, clock: FastClock
) -> None:
    harness.engine.add(["old answer", asyncio.Event()], "new answer")
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        question = a_message("quesiton")
        replies.start(await harness.accept(question))
        await harness.engine.asked(1)
        again = await harness.intake.edit(replace(question, text="question"))
        assert again is not None
        replies.start(again)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["new answer"]
    assert messenger.violations == []


async def test_a_question_edited_while_the_first_message_is_on_its_way_is_answered_in_that_message(
    harness: Harness, clock: FastClock
) -> None:
    messenger = SlowPlatform(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        question = a_message("quesiton")
        replies.start(await harness.accept(question))
        await messenger.has_it.wait()
        again = await harness.intake.edit(replace(question, text="question"))
        assert again is not None
        assert again.parts == ()
        replies.start(again)
        await asyncio.sleep(0)
        messenger.answers.set()
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]
    assert (await harness.stored(again)).parts == ("m1",)


async def test_a_message_that_the_database_did_not_take_note_of_is_edited_by_the_next_answer(
    harness: Harness, clock: FastClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, refused = harness.store.record_part, asyncio.Event()

    async def refuse(exchange: Exchange, part: int, message_id: str) -> bool:
        refused.set()
        raise StoreError("the database is locked")

    monkeypatch.setattr(harness.store, "record_part", refuse)
    messenger = FakeMessenger(clock, knows_nonces=False)
    async with Replies(harness.intake, messenger, clock) as replies:
        question = a_message("quesiton")
        replies.start(await harness.accept(question))
        await refused.wait()
        again = await harness.intake.edit(replace(question, text="question"))
        assert again is not None
        monkeypatch.setattr(harness.store, "record_part", placed)
        replies.start(again)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]
    assert (await harness.stored(again)).parts == ("m1",)


async def test_a_double_click_queues_a_question_once(harness: Harness, clock: FastClock) -> None:
    messenger = FakeMessenger(clock)

    async def press() -> bool:
        pressed = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)
        if pressed.again is not None:
            replies.start(pressed.again)
        return pressed.again is not None

    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(await harness.accept(a_message("hi")))
        await replies.wait_idle()
        # The store answers in any order: the press that it has taken last goes on.
        assert any(await asyncio.gather(press(), press()))
        await replies.wait_idle()
        assert harness.exchanges.queues.in_channel(CHANNEL) == []
        replies.start(await harness.accept(a_message("are you there?")))
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok", "ok"]


async def test_regenerating_during_delivery_leaves_no_old_message(harness: Harness, clock: FastClock) -> None:
    is_sending_the_third, is_retried = asyncio.Event(), asyncio.Event()

    class HeldPlatform(FakeMessenger):
        async def send(self, *arguments: Any, **options: Any) -> str:
            if len(self.messages) == 2:
                is_sending_the_third.set()
                await is_retried.wait()
            return await super().send(*arguments, **options)

    harness.engine.add("one two three four five six seven eight nine ten", "short")
    messenger = HeldPlatform(clock, format=MarkdownFormat(20))
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(await harness.accept(a_message("hi")))
        await is_sending_the_third.wait()
        again = await harness.accept(a_message("/retry"))
        assert len(again.parts) == 2
        is_retried.set()
        await replies.wait_idle()
        assert len(messenger.messages) == 3
        assert await harness.intake.recover("discord") == []  # it is in hand
        replies.start(again)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["short"]


async def test_of_three_replies_to_one_question_the_last_waits_for_the_first(
    harness: Harness, clock: FastClock
) -> None:
    messenger = SlowPlatform(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        question = await harness.accept(a_message("hi"))
        replies.start(question)
        await messenger.has_it.wait()
        for _ in range(2):
            requeued = await harness.exchanges.requeue(question)
            assert requeued is not None
            replies.start(requeued)
        await asyncio.sleep(0)
        messenger.answers.set()
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]


async def test_an_adapter_that_ends_waits_for_the_message_that_is_on_its_way(
    harness: Harness, clock: FastClock
) -> None:
    messenger = SlowPlatform(clock)

    async def serve() -> None:
        async with Replies(harness.intake, messenger, clock) as replies:
            replies.start(exchange)
            await messenger.has_it.wait()
            replies.start(exchange)

    exchange = await harness.accept(a_message("hi"))
    serving = asyncio.create_task(serve())
    await messenger.has_it.wait()
    await clock.sleep(10 * GRACE)
    assert not serving.done()
    messenger.answers.set()
    await serving
    assert (await harness.stored(exchange)).parts == ("m1",)


async def test_a_channel_that_is_gone_ends_only_its_own_exchange(harness: Harness, clock: FastClock) -> None:
    gone = a_message("anybody?", channel=ChannelKey("discord", "gone"))
    messenger = FakeMessenger(
        clock, script=lambda number, verb: Failure(ChannelGone("no access")) if number == 0 else None
    )
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(lost := await harness.accept(gone))
        await replies.wait_idle()
        replies.start(await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]
    assert (await harness.stored(lost)).status is Status.FAILED
    assert await harness.intake.recover("discord") == []


async def test_an_internal_error_fails_its_exchange_and_no_other(harness: Harness, clock: FastClock) -> None:
    harness.engine.add([ZeroDivisionError("a bug")])
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(broken := await harness.accept(a_message("trigger it")))
        await replies.wait_idle()
        replies.start(await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert (await harness.stored(broken)).status is Status.FAILED
    assert messenger.texts(CHANNEL) == [SORRY, "ok"]


@pytest.mark.parametrize(
    ("question", "sentence"), [("trigger it", SORRY), ("触发它", "回答时出了点问题，请再试一次。")], ids=["en", "zh"]
)
async def test_a_refused_reply_becomes_a_sentence_with_a_retry_button(
    harness: Harness, clock: FastClock, question: str, sentence: str
) -> None:
    error = PlatformError("Slack says what_is_this")
    messenger = FakeMessenger(clock, script=lambda number, verb: Failure(error) if number == 1 else None)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(broken := await harness.accept(a_message(question)))
        await replies.wait_idle()
        assert (await harness.stored(broken)).status is Status.FAILED
        assert await harness.intake.recover("discord") == []
        (shown,) = messenger.messages.values()
        assert (shown.text, shown.controls) == (sentence, frozenset({Action.RETRY}))
        pressed = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)
        assert pressed.again is not None
        replies.start(pressed.again)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]
    assert (await harness.stored(broken)).status is Status.DELIVERED


@pytest.mark.parametrize(("has_landed", "text"), [(True, "the whole answer"), (False, "…")])
async def test_a_text_that_may_have_landed_is_not_replaced(
    harness: Harness, clock: FastClock, has_landed: bool, text: str
) -> None:
    harness.engine.add("the whole answer")
    error = KeyError("a field that the library misses in the response")
    messenger = FakeMessenger(
        clock, script=lambda number, verb: Failure(error, happens=has_landed) if number == 1 else None
    )
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(broken := await harness.accept(a_message("hi")))
        await replies.wait_idle()
        assert messenger.texts(CHANNEL) == [text, SORRY]
        assert (await harness.stored(broken)).status is Status.FAILED
        again = await harness.accept(a_message("/retry"))
        replies.start(again)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["ok"]


@pytest.mark.parametrize("is_of_platform", [True, False])
async def test_partial_text_stays_with_the_sentence_below_it(harness: Harness, is_of_platform: bool) -> None:
    clock, is_shown = FastClock(1000), asyncio.Event()
    last = " and more" if is_of_platform else ZeroDivisionError("a bug")
    harness.engine.add(["good start.", is_shown, last])

    def script(number: int, verb: Verb) -> Failure | None:
        if number == 1:
            is_shown.set()
        return Failure(PlatformError("what_is_this")) if number == 2 and is_of_platform else None

    messenger = FakeMessenger(clock, script=script)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(broken := await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == [f"good start.\n\n{SORRY}"]
    assert (await harness.stored(broken)).status is Status.FAILED


async def test_a_filtered_answer_is_delivered_without_its_rest_and_stored_whole(harness: Harness) -> None:
    clock, is_shown = FastClock(1000), asyncio.Event()
    harness.engine.add(["good start.", is_shown, " a bad word"])

    def script(number: int, verb: Verb) -> Failure | None:
        if number == 1:
            is_shown.set()
        is_bad = "bad" in messenger.calls[number].text
        return Failure(ContentRefused("blocked by the server")) if is_bad else None

    messenger = FakeMessenger(clock, script=script)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(asked := await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == [f"good start.\n\n{FILTERED}"]
    stored = await harness.stored(asked)
    assert stored.status is Status.DELIVERED
    assert stored.answer is not None
    assert stored.answer.text == "good start. a bad word"


async def test_a_permission_that_stays_away_fails_the_exchange(harness: Harness, clock: FastClock) -> None:
    messenger = FakeMessenger(clock, script=lambda number, verb: Failure(AccessDenied("may not write")))
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(asked := await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert (await harness.stored(asked)).status is Status.FAILED
    assert 10 <= len(messenger.calls) <= 40


@pytest.mark.parametrize(
    "error",
    [MarkupRefused("Bad Request: what is this?"), PlatformError("Slack says what_is_this")],
    ids=["Telegram", "Slack"],
)
async def test_a_reply_that_cannot_be_sent_at_all_fails_and_is_not_owed(
    harness: Harness, clock: FastClock, error: PlatformError
) -> None:
    messenger = FakeMessenger(clock, script=lambda number, verb: Failure(error))
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(refused := await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert (await harness.stored(refused)).status is Status.FAILED
    assert await harness.intake.recover("discord") == []
    assert len(messenger.calls) <= 4


async def test_a_reply_that_waits_for_a_login_stays_owed(harness: Harness, clock: FastClock) -> None:
    messenger = FakeMessenger(clock, script=lambda number, verb: Failure(LoginRefused("the token was revoked")))
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(exchange := await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert [owed.id for owed in await harness.intake.recover("discord")] == [exchange.id]
    assert len(messenger.calls) == 1


async def test_a_nearly_finished_reply_completes_during_shutdown(harness: Harness) -> None:
    clock = FastClock(1)  # all of the six seconds: the reply needs a few milliseconds of them
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(exchange := await harness.accept(a_message("hi")))
        await harness.engine.asked(1)
        asyncio.get_running_loop().call_soon(go_on.set)
    assert messenger.texts(CHANNEL) == ["half and half"]
    assert (await harness.stored(exchange)).status is Status.DELIVERED


async def test_a_message_during_shutdown_is_owed(harness: Harness, clock: FastClock) -> None:
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        pass
    late = await harness.accept(a_message("too late"))
    replies.start(late)
    assert messenger.calls == []
    assert [exchange.id for exchange in await harness.intake.recover("discord")] == [late.id]


async def test_an_unfinished_reply_is_owed_after_shutdown(harness: Harness, clock: FastClock) -> None:
    harness.engine.add(["half", asyncio.Event()], "whole")
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(await harness.accept(a_message("hi")))
        await harness.engine.asked(1)
    async with Replies(harness.intake, messenger, clock) as replies:
        for exchange in await harness.intake.recover("discord"):
            replies.start(exchange)
        await replies.wait_idle()
    assert messenger.texts(CHANNEL) == ["whole"]


class Watched(MarkdownFormat):
    """Counts the characters that are rendered on the event loop's thread."""

    on_loop = 0

    def render(self, markdown: str) -> Rendered:
        if threading.current_thread() is threading.main_thread():
            Watched.on_loop = max(Watched.on_loop, len(markdown))
        return super().render(markdown)


async def test_long_texts_are_split_and_rendered_outside_the_event_loop(harness: Harness, clock: FastClock) -> None:
    text = "*a [b](c) `d`\n" * 600
    harness.engine.add([text[:5000], text[5000:]])
    messenger = FakeMessenger(clock, Watched(2000))
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(await harness.accept(a_message("hi")))
        await replies.wait_idle()
    assert "".join(messenger.texts(CHANNEL)) == text
    assert Watched.on_loop <= 300


async def test_a_press_that_is_delivered_again_asks_for_no_other_answer(harness: Harness, clock: FastClock) -> None:
    messenger = FakeMessenger(clock)
    async with Replies(harness.intake, messenger, clock) as replies:
        replies.start(await harness.accept(a_message("hi")))
        await replies.wait_idle()
        first = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI, press="U1/17.5")
        assert first.again is not None
        replies.start(first.again)
        await replies.wait_idle()
        again = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI, press="U1/17.5")
        assert (again.again, again.notice) == (None, "")
        another = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI, press="U1/19.5")
        assert another.again is not None
        replies.start(another.again)
        await replies.wait_idle()

"""Replies whose edits, texts or permissions a platform refuses, and its rate limits."""

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from bot.chat.stream import ReplyStream
from bot.delivery.markdown.format import MarkdownFormat
from bot.delivery.markdown.split import split
from bot.delivery.pacer import Budget, Pacer
from bot.delivery.sender import Sender
from bot.delivery.view import ReplyView
from bot.domain import Delta, Exchange, Finished, FinishReason, Kind, Notice, Queued, ReplyEvent, Status
from bot.errors import (
    AccessDenied,
    ContentRefused,
    EditRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
    ReplyFull,
)
from bot.observability.metrics import Metrics
from bot.util.aio import finish_before_cancel
from tests.delivery.test_sender import RETRY, World, answered
from tests.harness.fakes import Failure, FakeMessenger, ManualClock
from tests.harness.fakes.messenger import Verb
from tests.harness.messages import CHANNEL, a_message

UNFINISHED = "The rest does not fit here. For the whole answer, ask me in a direct message."
FILTERED = "(A filter of this server refuses the rest of this message.)"
LONG = "".join(f"Sentence number {number} of a long answer. " for number in range(12))


def growing(text: str, step: int = 20) -> list[ReplyEvent | float]:
    events: list[ReplyEvent | float] = []
    for begin in range(0, len(text), step):
        events += [Delta(text[begin : begin + step]), 2.0]
    return [*events, Finished(FinishReason.STOP)]


def refuse(world: World, error: PlatformError, *verbs: Verb, count: int = 10**6) -> None:
    """Refuse the first `count` calls of these verbs."""
    left = [count]

    def script(number: int, verb: Verb) -> Failure | None:
        if verb not in verbs or not left[0]:
            return None
        left[0] -= 1
        return Failure(error)

    world.messenger.script = script


@pytest.fixture
def world() -> World:
    return World()


# Edits refused for good.


@pytest.mark.parametrize("limit", [2000, 100])
async def test_where_no_edit_is_allowed_the_whole_answer_is_sent_once(limit: int) -> None:
    world = World(limit)
    refuse(world, EditRefused("too old"), "edit")
    await world.deliver(*growing(LONG))
    whole = [chunk.text for chunk in split(LONG, MarkdownFormat(limit))]
    assert world.texts == whole
    assert world.controls[-1] == RETRY
    assert world.verbs.count("send") <= len(whole) + 2
    assert world.exchange.parts == tuple(world.messenger.messages)


async def test_where_old_messages_may_not_be_deleted_either_the_reply_still_ends(world: World) -> None:
    refuse(world, EditRefused("too old"), "edit", "delete")
    await world.deliver(*growing(LONG))
    assert world.texts == ["…", LONG]


async def test_an_edit_refused_in_the_middle_keeps_the_order_of_the_messages() -> None:
    world = World(100)

    def script(number: int, verb: Verb) -> Failure | None:
        is_third = world.messenger.calls[number].message_id == "m3"
        return Failure(EditRefused("too many edits")) if verb == "edit" and is_third and number > 30 else None

    world.messenger.script = script
    await world.deliver(*growing(LONG * 2, step=5))
    assert world.texts == [chunk.text for chunk in split(LONG * 2, MarkdownFormat(100))]
    assert list(world.messenger.messages)[:2] == ["m1", "m2"]


async def test_a_message_that_disappears_again_and_again_is_sent_at_most_three_times(world: World) -> None:
    refuse(world, MessageGone("not found"), "edit", "delete")
    await world.deliver(*growing(LONG))
    assert world.verbs.count("send") == 3
    assert world.texts[-1] == LONG


async def test_a_restart_where_no_edit_is_allowed_adds_one_message(world: World) -> None:
    refuse(world, EditRefused("too old"), "edit", "delete")
    run = asyncio.create_task(world.run(world.stream(Delta("half"), 600.0)))
    await world.clock.advance(100.0)
    run.cancel()
    await world.clock.settle()
    await world.deliver(*answered("the whole answer"))
    assert world.texts == ["…", "the whole answer"]


async def test_a_copy_that_an_earlier_run_sent_at_its_end_is_not_sent_again(world: World) -> None:
    world.messenger.knows_nonces = False
    refuse(world, EditRefused("too old"), "edit", "delete")
    recorded = world.exchange

    async def record(part: int, message_id: str) -> None:
        nonlocal recorded
        await world.record(part, message_id)
        if message_id == "m1":
            recorded = world.exchange

    await world.clock.run(world.run(world.stream(*answered("all of it")), record=record))
    assert world.texts == ["…", "all of it"]
    world.exchange = recorded  # killed before the copy's id was stored
    await world.deliver(*answered("all of it"))
    assert world.texts == ["…", "all of it"]


async def test_a_message_deleted_above_others_does_not_change_their_order() -> None:
    world = World(100)
    text = LONG[:250]
    run = asyncio.create_task(world.run(world.stream(Delta(text), 60.0, *answered(" The end."))))
    await world.clock.advance(30.0)
    del world.messenger.messages["m2"]
    refuse(world, MessageGone("not found"), "edit", count=0)
    await world.clock.run(run)
    second = World(100)
    second.exchange, second.messenger, second.clock = world.exchange, world.messenger, world.clock
    second.pacer = world.pacer
    await second.deliver(*answered(LONG))
    assert second.texts == [chunk.text for chunk in split(LONG, MarkdownFormat(100))]


# Texts that a filter refuses.


def filtering(world: World, *words: str) -> None:
    def script(number: int, verb: Verb) -> Failure | None:
        text = world.messenger.calls[number].text
        return Failure(ContentRefused("blocked")) if any(word in text for word in words) else None

    world.messenger.script = script


async def test_what_stood_before_a_filtered_word_stays(world: World) -> None:
    filtering(world, "casino")
    await world.deliver(Delta("A good start. "), 5.0, Delta("Then a casino"), 5.0, *answered(" and an end."))
    assert world.texts == [f"A good start. \n\n{FILTERED}"]
    assert world.controls == [RETRY]


async def test_half_a_word_that_a_filter_refuses_may_be_whole_later(world: World) -> None:
    world.messenger.script = lambda number, verb: (
        Failure(ContentRefused("blocked")) if world.messenger.calls[number].text.endswith("ass") else None
    )
    await world.deliver(Delta("First of all, "), 5.0, Delta("a class"), 5.0, *answered(" of its own."))
    assert world.texts == ["First of all, a class of its own."]


async def test_a_filter_refuses_one_message_of_several() -> None:
    world = World(100)
    filtering(world, "number 4")
    await world.deliver(*growing(LONG))
    whole = [chunk.text for chunk in split(LONG, MarkdownFormat(100))]
    assert len(world.texts) == len(whole)
    (number,) = (number for number, text in enumerate(whole) if "number 4" in text)
    others = [text for text in world.texts if FILTERED not in text]
    assert others == whole[:number] + whole[number + 1 :]
    assert world.texts[number].endswith(FILTERED)


@pytest.mark.parametrize("sends_whole", [True, False])
async def test_a_first_text_that_a_filter_refuses_becomes_a_sentence(world: World, sends_whole: bool) -> None:
    filtering(world, "casino")
    await deliver_whole(world, *answered("casino"), sends_whole=sends_whole)
    assert world.texts == [FILTERED]


async def test_a_filtered_answer_leaves_the_message_of_an_earlier_run_alone(world: World) -> None:
    await world.deliver(*answered("The answer before the restart"))
    filtering(world, "casino")
    await world.deliver(*answered("The answer before the restart, and a casino"))
    assert world.texts == ["The answer before the restart", FILTERED]


async def test_a_filter_that_refuses_everything_ends_the_delivery(world: World) -> None:
    refuse(world, ContentRefused("blocked"), "send", "edit")
    with pytest.raises(ContentRefused):
        await world.deliver(*answered("hello"))
    assert len(world.messenger.calls) <= 4


# Permissions.


async def test_a_permission_that_comes_back_completes_the_answer(world: World) -> None:
    world.messenger.script = lambda number, verb: (
        Failure(AccessDenied("may not write")) if 10.0 < world.clock.now() < 200.0 else None
    )
    await world.deliver(*growing(LONG))
    assert world.texts == [LONG]
    assert len(world.messenger.calls) < 40


@pytest.mark.parametrize(("verb", "seconds"), [("send", 300.0), ("edit", 3600.0)])
async def test_a_missing_permission_is_waited_for_longer_once_a_message_stands(
    world: World, verb: Verb, seconds: float
) -> None:
    refuse(world, AccessDenied("may not write"), verb)
    with pytest.raises(AccessDenied), capture_logs() as logs:
        await world.deliver(*answered("hello"))
    assert seconds <= world.clock.now() <= seconds + 40.0
    assert [line["log_level"] for line in logs] == ["warning"]


# Rate limits.


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.0001, math.nan])
async def test_rate_limits_that_name_no_wait_back_off(world: World, seconds: float) -> None:
    refuse(world, RateLimited(seconds), "edit", count=20)
    await world.deliver(*answered("hello"))
    assert world.texts == ["hello"]
    times = [call.at for call in world.messenger.calls if call.verb == "edit"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= 0.5 for gap in gaps)
    assert gaps[-1] >= 30.0


@pytest.mark.parametrize("seconds", [1e9, 1e300, math.inf])
async def test_no_rate_limit_lasts_longer_than_an_hour(world: World, seconds: float) -> None:
    refuse(world, RateLimited(seconds), "edit", count=1)
    with capture_logs() as logs:
        await world.deliver(*answered("hello"))
    assert world.texts == ["hello"]
    assert 3600.0 <= world.clock.now() <= 3700.0
    assert [(line["event"], line["seconds"]) for line in logs] == [("rate limited", 3600)]


# Answers that are complete before a placeholder is due.


async def deliver_whole(
    world: World, *events: ReplyEvent | float, sends_whole: bool = True, is_busy: bool = True
) -> None:
    async def produce(stream: ReplyStream) -> None:
        async for event in world.stream(*events):
            stream.put(event)

    if is_busy:
        world.pacer.pause(CHANNEL, 0.1)
    view = ReplyView(world.exchange, world.messenger.format, str)
    sender = Sender(
        world.messenger, world.exchange, view, world.pacer, [], world.record, Metrics(), sends_whole=sends_whole
    )
    async with ReplyStream(produce) as stream:
        await world.clock.run(sender.run(stream))


async def test_an_answer_that_is_complete_at_once_takes_one_call(world: World) -> None:
    await deliver_whole(world, Queued(1), 0.1, *answered("Paris."))
    assert [(call.verb, call.text) for call in world.messenger.calls] == [("send", "Paris.")]
    assert world.controls == [RETRY]
    assert world.exchange.parts == ("m1",)


async def test_where_the_channel_is_calm_a_placeholder_is_sent_at_once(world: World) -> None:
    await deliver_whole(world, *answered("Paris."), is_busy=False)
    assert [(call.text, call.at) for call in world.messenger.calls] == [("…", 0.0), ("Paris.", 1.0)]


async def test_a_slow_answer_begins_with_a_placeholder_all_the_same(world: World) -> None:
    await deliver_whole(world, 1.0, *answered("Paris."))
    assert [call.text for call in world.messenger.calls] == ["…", "Paris."]
    assert world.messenger.calls[0].at <= 0.5


async def test_an_answer_of_several_messages_begins_with_a_placeholder() -> None:
    world = World(100)
    await deliver_whole(world, *answered(LONG))
    assert world.texts == [chunk.text for chunk in split(LONG, MarkdownFormat(100))]
    assert world.messenger.calls[0].text == "…"


async def test_a_send_with_a_lost_response_is_repeated_with_the_same_text(world: World) -> None:
    world.messenger.script = lambda number, verb: (
        Failure(PlatformUnavailable("cut off"), happens=True) if number == 0 else None
    )
    await deliver_whole(world, 1.0, *answered("Paris."))
    assert [call.text for call in world.messenger.calls] == ["…", "…", "Paris."]
    assert world.texts == ["Paris."]


# Edits that a platform counts for all channels together.


async def test_answers_that_are_complete_at_once_need_no_edit_of_a_budget_that_is_used_up(world: World) -> None:
    world.pacer = Pacer(world.messenger.edit_interval, world.clock, edits_per_minute=10)
    budget = world.pacer.budget
    assert budget is not None
    for _ in range(8):
        await world.clock.run(budget.take_last())
    await deliver_whole(world, *answered("Paris."), is_busy=False)
    assert [call.text for call in world.messenger.calls] == ["Paris."]


async def test_a_channels_budget_keeps_calls_for_the_ends_of_its_replies() -> None:
    clock = ManualClock()
    budget = Budget(5, clock, counts_sends=True)
    with budget.reserve():
        await clock.run(budget.take_growing())
        with budget.reserve():
            await clock.run(budget.take_growing())
            third = asyncio.create_task(budget.take_growing())
            await clock.advance(30)
            assert not third.done()
            await clock.run(budget.take_last())
        await clock.advance(5)
        assert third.done()
        await clock.run(budget.take_last())
    before = clock.now()
    await clock.run(budget.take_last())
    assert clock.now() - before > 20  # a minute after the first one


async def test_growing_replies_share_a_budget_and_end_in_time() -> None:
    clock, ends = ManualClock(), dict[str, float]()
    messenger = FakeMessenger(clock, interval=1.3)
    pacer = Pacer(messenger.edit_interval, clock, edits_per_minute=50)

    async def words() -> AsyncGenerator[ReplyEvent, None]:
        for number in range(160):
            yield Delta(f"{number} ")
            await clock.sleep(0.25)
        yield Finished(FinishReason.STOP)

    async def reply(name: str) -> None:
        channel = replace(CHANNEL, channel=name)
        exchange = Exchange(1, a_message(id=name, channel=channel), Kind.CHAT, Status.OPEN, seed=1)

        async def record(part: int, message_id: str) -> None: ...

        async def produce(stream: ReplyStream) -> None:
            async for event in words():
                stream.put(event)

        view = ReplyView(exchange, messenger.format, str)
        async with ReplyStream(produce) as stream:
            await Sender(messenger, exchange, view, pacer, [], record, Metrics()).run(stream)
        ends[name] = clock.now()

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in "abcdefgh":
                tasks.create_task(reply(name))

    await clock.run(all_of_them())
    edits = [call for call in messenger.calls if call.verb == "edit"]
    for call in edits:
        assert sum(call.at - 60.0 < other.at <= call.at for other in edits) <= 50
    assert max(ends.values()) <= 40.0 + 3.0
    counts = [sum(call.channel.channel == name for call in edits) for name in "abcdefgh"]
    assert max(counts) - min(counts) <= 1
    assert max(later.at - earlier.at for earlier, later in pairwise(edits)) <= 3.0


# Cancellation.


async def test_a_second_cancellation_does_not_cut_off_a_call() -> None:
    go_on, ended = asyncio.Event(), list[str]()

    async def call() -> None:
        await go_on.wait()
        ended.append("call")

    async def caller() -> None:
        await finish_before_cancel(call())

    task = asyncio.create_task(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["call"]


async def test_an_edit_in_flight_lands_before_its_delivery_ends(world: World) -> None:
    await world.deliver(*answered("old"))
    world.messenger.seconds_per_call = 5.0
    run = asyncio.create_task(world.run(world.stream(*answered("late"))))
    await world.clock.advance(2.0)
    run.cancel()
    await world.clock.advance(10.0)
    assert run.cancelled()
    assert world.texts == ["late"]


async def test_a_notice_below_a_filtered_answer_is_shown_once(world: World) -> None:
    filtering(world, "casino")
    await world.deliver(Delta("Good. "), 5.0, Notice("Two turns were left out."), 5.0, *answered("A casino."))
    assert world.texts == [f"Good. \n\n{FILTERED}\n\nTwo turns were left out."]


def take(world: World, messages: int) -> None:
    """Take so many messages of a reply."""

    def script(number: int, verb: Verb) -> Failure | None:
        is_full = verb == "send" and len(world.messenger.messages) == messages
        return Failure(ReplyFull("no further message is taken")) if is_full else None

    world.messenger.script = script


@pytest.mark.parametrize("messages", [1, 3])
async def test_an_answer_that_does_not_fit_ends_with_a_sentence(messages: int) -> None:
    world = World(limit=120)
    take(world, messages)
    await world.deliver(*growing(LONG))
    assert len(world.texts) == messages
    assert world.texts[-1].endswith(f"\n\n{UNFINISHED}")
    left = " ".join(world.texts).removesuffix(UNFINISHED)
    assert LONG.startswith(left.strip().replace("\n\n", " ").replace("  ", " "))
    assert len(world.texts[-1]) > 100
    assert world.controls[-1] == RETRY
    assert len([call for call in world.messenger.calls if call.error]) == 1
    assert not world.messenger.violations


async def test_code_that_does_not_fit_is_closed_before_the_sentence() -> None:
    world = World(limit=200)
    take(world, 1)
    lines = "".join(f"x{number} = {number}\n" for number in range(60))
    await world.deliver(*answered(f"```py\n{lines}```"))
    (text,) = world.texts
    assert text.count("```") == 2
    assert text.endswith(f"```\n\n{UNFINISHED}")


async def test_a_note_for_which_there_is_no_message_stands_in_the_last_one() -> None:
    world = World(limit=400)
    take(world, 1)
    await world.deliver(Delta("word " * 79), Finished(FinishReason.CANCELLED))
    (text,) = world.texts
    assert text.startswith("word word")
    assert text.endswith(f"(stopped)\n\n{UNFINISHED}")


async def test_a_long_command_that_does_not_fit_ends_with_a_sentence() -> None:
    world = World(limit=200)
    world.exchange = replace(world.exchange, kind=Kind.COMMAND)
    take(world, 1)
    await world.deliver(Notice(LONG), Finished(FinishReason.STOP))
    (text,) = world.texts
    assert text.startswith("Sentence number 0")
    assert text.endswith(UNFINISHED)


async def test_a_reply_that_takes_no_first_message_is_a_fault(world: World) -> None:
    take(world, 0)
    with pytest.raises(ReplyFull):
        await world.deliver(*answered("hello"))

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.chat.stream import ReplyStream
from bot.delivery.markdown.blocks import is_balanced
from bot.delivery.markdown.format import MarkdownFormat, Rendered
from bot.delivery.markdown.split import split
from bot.delivery.messenger import Streams
from bot.delivery.pacer import Pacer
from bot.delivery.sender import RecordPart, Sender
from bot.delivery.view import ReplyView
from bot.domain import (
    Action,
    ChannelKey,
    Controls,
    Delta,
    Exchange,
    Finished,
    FinishReason,
    Kind,
    Notice,
    Part,
    Queued,
    ReplyEvent,
    Status,
    Thought,
)
from bot.errors import (
    AppendLimited,
    ChannelGone,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
    StoreError,
)
from bot.observability.metrics import Metrics
from tests.delivery.markdown.texts import TEXT
from tests.harness.fakes import Failure, FakeMessenger, ManualClock
from tests.harness.fakes.messenger import Verb
from tests.harness.messages import CHANNEL, a_message

STOP: Controls = frozenset({Action.STOP})
RETRY: Controls = frozenset({Action.RETRY})
NONE: Controls = frozenset()


class World:
    """A platform, its clock, and one exchange with what a store keeps of it."""

    def __init__(self, limit: int = 2000, interval: float = 1.0) -> None:
        self.clock = ManualClock()
        self.messenger = FakeMessenger(self.clock, MarkdownFormat(limit), interval)
        self.pacer = Pacer(self.messenger.edit_interval, self.clock)
        self.exchange = Exchange(1, a_message(id="q1"), Kind.CHAT, Status.OPEN, seed=1)
        self.store_faults = 0
        self.streams: Streams | None = None

    async def record(self, part: int, message_id: str) -> None:
        if self.store_faults:
            self.store_faults -= 1
            raise StoreError("the database is locked")
        parts = list(self.exchange.parts)
        parts[part : part + 1] = [message_id]
        self.exchange = replace(self.exchange, parts=tuple(parts))

    async def run(
        self,
        events: AsyncGenerator[ReplyEvent, None],
        exchange: Exchange | None = None,
        record: RecordPart | None = None,
    ) -> None:
        """Deliver the events of a generator, as a sender after a restart does."""
        exchange = exchange or self.exchange

        async def produce(stream: ReplyStream) -> None:
            async with aclosing(events):
                async for event in events:
                    stream.put(event)

        sender = Sender(
            self.messenger,
            exchange,
            ReplyView(exchange, self.messenger.format, str),
            self.pacer,
            [Part(id, is_recorded=True) for id in exchange.parts],
            record or self.record,
            Metrics(),
            streams=self.streams,
        )
        async with ReplyStream(produce) as stream:
            await sender.run(stream)

    async def deliver(self, *events: ReplyEvent | float) -> None:
        await self.clock.run(self.run(self.stream(*events)))

    async def stream(self, *events: ReplyEvent | float) -> AsyncGenerator[ReplyEvent, None]:
        """The events; a number is a pause."""
        for event in events:
            if isinstance(event, float):
                await self.clock.sleep(event)
            else:
                yield event

    @property
    def texts(self) -> list[str]:
        return self.messenger.texts(CHANNEL)

    @property
    def verbs(self) -> list[Verb]:
        return [call.verb for call in self.messenger.calls]

    @property
    def controls(self) -> list[Controls]:
        return [message.controls for message in self.messenger.messages.values()]

    def fail(self, failures: dict[int, PlatformError]) -> None:
        self.messenger.script = lambda number, verb: Failure(failures[number]) if number in failures else None


@pytest.fixture
def world() -> World:
    return World()


def answered(*texts: str, reason: FinishReason = FinishReason.STOP) -> list[ReplyEvent | float]:
    return [*map(Delta, texts), Finished(reason)]


async def test_a_placeholder_is_sent_at_once_as_a_reply_with_a_stop_button(world: World) -> None:
    run = asyncio.create_task(world.run(world.stream(60.0, *answered("hello"))))
    await world.clock.settle()
    assert world.texts == ["…"]
    assert world.exchange.parts == ("m1",)
    assert world.messenger.messages["m1"].reply_to == "q1"
    assert world.controls == [STOP]
    await world.clock.run(run)
    assert world.texts == ["hello"]
    assert world.controls == [RETRY]


async def test_edits_are_merged_and_paced(world: World) -> None:
    deltas: list[ReplyEvent | float] = []
    for number in range(40):
        deltas += [Delta(f"{number} "), 0.1]
    await world.deliver(*deltas, Finished(FinishReason.STOP))
    assert world.texts == ["".join(f"{number} " for number in range(40))]
    times = [call.at for call in world.messenger.calls]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))
    assert len(times) <= 6
    assert world.messenger.violations == []


async def test_text_is_never_older_than_two_intervals_when_it_goes_on_in_another_message() -> None:
    world = World(limit=500)
    events: list[ReplyEvent | float] = []
    for number in range(300):
        events += [Delta(f"word{number:03} and so on\n"), 0.13]
    await world.deliver(*events, Finished(FinishReason.STOP))
    edits = [call for call in world.messenger.calls if call.verb == "edit"]
    first_shown = [next(call.at for call in edits if f"word{number:03}" in call.text) for number in range(300)]
    assert max(at - 0.13 * number for number, at in enumerate(first_shown)) <= 2.0
    assert all(later.at - earlier.at >= 0.999 for earlier, later in pairwise(edits))


async def test_a_slow_platform_does_not_hold_back_the_model(world: World) -> None:
    world.messenger.seconds_per_call = 30.0
    ended = []

    async def events() -> AsyncGenerator[ReplyEvent, None]:
        for word in "abcdef":
            yield Delta(word)
            await world.clock.sleep(1.0)
        ended.append(world.clock.now())
        yield Finished(FinishReason.STOP)

    await world.clock.run(world.run(events()))
    assert ended == [6.0]
    assert world.texts == ["abcdef"]


async def test_the_queue_is_shown_until_text_comes(world: World) -> None:
    run = asyncio.create_task(world.run(world.stream(Queued(3, 12.0), 5.0, Queued(1), 5.0, *answered("hi"))))
    await world.clock.advance(2.0)
    assert world.texts == ["Waiting: number 3 in the queue, about 12 s."]
    await world.clock.advance(5.0)
    assert world.texts == ["Waiting: number 1 in the queue."]
    await world.clock.run(run)
    assert world.texts == ["hi"]


async def test_a_thinking_model_shows_its_time_until_text_comes(world: World) -> None:
    thoughts = Thought("", 0.0), 3.0, Thought("", 3.4), 3.0
    run = asyncio.create_task(world.run(world.stream(Queued(1), *thoughts, *answered("hi"))))
    await world.clock.advance(5.0)
    assert world.texts == ["Thinking… 3 s"]
    await world.clock.run(run)
    assert world.texts == ["hi"]


async def test_shown_thoughts_are_a_quotation_that_ends_with_the_first_text(world: World) -> None:
    run = asyncio.create_task(world.run(world.stream(Thought("2 and\n", 0.0), Thought("2 ", 1.0), 3.0, *answered("4"))))
    await world.clock.advance(2.0)
    assert world.texts == ["Thinking… 1 s\n\n> 2 and\n> 2"]
    await world.clock.run(run)
    assert world.texts == ["4"]


async def test_notices_are_below_the_text_in_any_order_of_events(world: World) -> None:
    await world.deliver(
        Notice("Two turns were left out."), *answered("an", " answer")[:2], Notice("Late."), *answered()
    )
    assert world.texts == ["an answer\n\nTwo turns were left out.\n\nLate."]


async def test_a_notice_does_not_hide_that_one_waits(world: World) -> None:
    run = asyncio.create_task(world.run(world.stream(Notice("Note."), Queued(2), 9.0, *answered("hi"))))
    await world.clock.advance(5.0)
    assert world.texts == ["Waiting: number 2 in the queue.\n\nNote."]
    await world.clock.run(run)
    assert world.texts == ["hi\n\nNote."]


async def test_no_text_is_older_than_two_intervals_while_it_flows() -> None:
    world = World(limit=300)
    run = asyncio.create_task(
        world.run(
            world.stream(
                *(step for n in range(200) for step in (Delta(f"{n:03} "), 0.125)), Finished(FinishReason.STOP)
            )
        )
    )
    for now in range(1, 200):
        await world.clock.advance(0.125)
        shown = "".join(world.texts).replace("…", "")
        assert len(shown) // 4 >= now - 2 * 8 - 1
    await world.clock.run(run)
    assert world.messenger.violations == []


async def test_a_notice_is_never_inside_an_unfinished_code_block(world: World) -> None:
    await world.deliver(*answered("```py\nx = 1", reason=FinishReason.LENGTH))
    assert world.texts == ["```py\nx = 1\n```\n\n(The answer was cut off here: it became too long.)"]


async def test_a_notice_that_does_not_fit_becomes_a_separate_message() -> None:
    world = World(limit=40)
    await world.deliver(Delta("a" * 38), Notice("A notice."), *answered())
    assert world.texts == ["a" * 38, "A notice."]
    assert world.controls == [NONE, RETRY]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (FinishReason.STOP, "I have no answer to that. Please rephrase your question."),
        (FinishReason.ERROR, "I have no answer to that. Please rephrase your question."),
        (FinishReason.CANCELLED, "(stopped)"),
    ],
)
async def test_an_empty_reply_still_ends_with_a_sentence(world: World, reason: FinishReason, sentence: str) -> None:
    await world.deliver(Delta(" \n"), Finished(reason))
    assert world.texts == [sentence]


async def test_a_command_has_no_controls(world: World) -> None:
    world.exchange = replace(world.exchange, kind=Kind.COMMAND)
    await world.deliver(Notice("Forgotten."), Finished(FinishReason.STOP))
    assert world.texts == ["Forgotten."]
    assert all(call.controls == NONE for call in world.messenger.calls)


async def test_a_commands_words_are_whole_at_once(world: World) -> None:
    world.exchange = replace(world.exchange, kind=Kind.COMMAND)
    await world.deliver(Notice("Forgotten."), 60.0, Finished(FinishReason.STOP))
    assert [call.text for call in world.messenger.calls] == ["…", "Forgotten."]


async def test_a_long_answer_goes_on_in_further_messages() -> None:
    world = World(limit=60)
    text = "```py\n" + "print('hello')\n" * 20 + "```\nThat is all."
    await world.deliver(*map(Delta, text), Finished(FinishReason.STOP))
    assert world.texts == [piece.text for piece in split(text, MarkdownFormat(60))]
    assert world.exchange.parts == tuple(world.messenger.messages)
    assert world.controls == [*[NONE] * (len(world.texts) - 1), RETRY]
    assert [message.reply_to for message in world.messenger.messages.values()][:2] == ["q1", None]
    assert world.messenger.violations == []


async def test_every_part_is_placed_before_it_is_edited() -> None:
    world = World(limit=60)
    seen = []
    record = world.record

    async def noting(part: int, message_id: str) -> None:
        seen.append(message_id)
        await record(part, message_id)
        assert world.messenger.messages[message_id].text == "…"

    await world.clock.run(world.run(world.stream(*answered("word " * 50)), record=noting))
    assert seen == list(world.messenger.messages)


async def test_a_message_recorded_before_is_edited_and_not_sent_again(world: World) -> None:
    await world.deliver(*answered("an old answer"))
    await world.deliver(3.0, *answered("a new answer"))
    assert world.texts == ["a new answer"]
    assert world.verbs.count("send") == 1


async def test_the_old_messages_of_a_shorter_reply_are_emptied_and_then_taken_back() -> None:
    world = World(limit=60)
    await world.deliver(*answered("an old sentence. " * 10))
    assert len(world.texts) == 4
    run = asyncio.create_task(world.run(world.stream(Delta("new"), 60.0, *answered(" text"))))
    await world.clock.advance(30.0)
    assert world.texts == ["new", "…", "…", "…"]
    await world.clock.run(run)
    assert world.texts == ["new text"]


async def test_an_old_message_that_was_deleted_is_skipped() -> None:
    world = World(limit=60)
    await world.deliver(*answered("an old sentence. " * 10))
    del world.messenger.messages["m2"]
    await world.deliver(*answered("new"))
    assert world.texts == ["new"]


async def test_an_emptied_message_that_is_gone_is_sent_again_when_it_is_needed() -> None:
    world = World(limit=60)
    await world.deliver(*answered("an old sentence. " * 5))
    del world.messenger.messages["m2"]
    await world.deliver(Delta("new "), 30.0, *answered("sentence. " * 8))
    assert world.exchange.parts == ("m1", "m3")
    assert "".join(world.texts) == "new " + "sentence. " * 8


async def test_a_rate_limit_is_obeyed_and_the_last_text_arrives(world: World) -> None:
    world.fail({1: RateLimited(30.0), 2: RateLimited(5.0)})
    await world.deliver(Delta("one"), 2.0, *answered(" two"))
    assert [call.at for call in world.messenger.calls] == [0.0, 1.0, 31.0, 36.0]
    assert world.texts == ["one two"]
    assert world.messenger.violations == []


async def test_a_placeholder_that_was_refused_is_tried_again_before_any_event(world: World) -> None:
    world.fail({0: RateLimited(7.0), 1: PlatformUnavailable("cut off")})
    run = asyncio.create_task(world.run(world.stream(60.0, *answered("hi"))))
    await world.clock.advance(10.0)
    assert world.texts == ["…"]
    await world.clock.run(run)


async def test_a_fault_that_passes_is_retried_ever_more_slowly(world: World) -> None:
    world.fail({number: PlatformUnavailable("cut off") for number in range(1, 12)})
    await world.deliver(*answered("hello"))
    times = [call.at for call in world.messenger.calls[1:]]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert world.texts == ["hello"]
    assert gaps[0] <= 1.0
    assert all(15.0 <= gap <= 30.0 for gap in gaps[-4:])


async def test_refused_markup_is_said_plain_and_tried_again_at_the_end(world: World) -> None:
    class Marked(MarkdownFormat):
        def plain(self, markdown: str) -> Rendered:
            return Rendered(markdown.replace("*", ""))

    world.messenger.format = Marked(2000)
    world.fail({1: MarkupRefused("a half-open mark")})
    await world.deliver(Delta("**bold"), 5.0, *answered("er** text"))
    assert [call.text for call in world.messenger.calls] == ["…", "**bold", "bold", "**bolder** text"]
    world.fail({number: MarkupRefused("never") for number in (5, 6)})
    world.messenger.script = lambda number, verb: Failure(MarkupRefused("never")) if number == 4 else None
    await world.deliver(*answered("**new** text"))
    assert world.texts == ["new text"]


async def test_plain_text_longer_than_its_markup_is_split_again(world: World) -> None:
    class Linked(MarkdownFormat):
        def render(self, markdown: str) -> Rendered:
            return Rendered(markdown.replace("/long", ""), ("a link",))

        def plain(self, markdown: str) -> Rendered:
            return Rendered(markdown)

    world.messenger.format = Linked(50)
    text = "see /long " * 9
    world.messenger.script = lambda number, verb: (
        Failure(MarkupRefused("no")) if world.messenger.calls[number].verb == "edit" and number == 1 else None
    )
    await world.deliver(*answered(text))
    assert "".join(world.texts) == text
    assert len(world.texts) == 2
    assert world.messenger.violations == []


async def test_a_first_message_that_is_refused_is_sent_plain(world: World) -> None:
    class Marked(MarkdownFormat):
        def plain(self, markdown: str) -> Rendered:
            return Rendered(f"plain {markdown}")

    world.messenger.format = Marked(2000)
    world.messenger.script = lambda number, verb: Failure(MarkupRefused("no blocks here")) if number == 0 else None
    await world.deliver(1.0, *answered("hello"))
    assert [call.text for call in world.messenger.calls] == ["…", "plain …", "hello"]
    assert world.texts == ["hello"]


async def test_a_reply_is_whole_though_a_message_too_many_may_not_be_taken_back() -> None:
    world = World(limit=100)
    world.messenger.script = lambda number, verb: Failure(PlatformError("no")) if verb == "delete" else None
    await world.deliver(*answered("word " * 30))
    await world.deliver(Delta("short"), 5.0, Finished(FinishReason.STOP))
    assert world.texts[0] == "short"
    assert world.controls[0] == RETRY
    assert set(world.texts[1:]) == {"…"}


async def test_a_platform_that_refuses_plain_words_is_a_mistake(world: World) -> None:
    world.fail({number: MarkupRefused("no") for number in range(1, 9)})
    with pytest.raises(MarkupRefused):
        await world.deliver(*answered("hello"))


async def test_a_deleted_message_is_replaced_by_a_new_one(world: World) -> None:
    run = asyncio.create_task(world.run(world.stream(Delta("one"), 9.0, *answered(" two"))))
    await world.clock.advance(5.0)
    del world.messenger.messages["m1"]
    await world.clock.run(run)
    assert world.texts == ["one two"]
    assert world.exchange.parts == ("m2",)


async def test_a_reply_to_a_deleted_question_is_a_plain_message(world: World) -> None:
    world.fail({0: MessageGone("the question was deleted")})
    await world.deliver(*answered("hello"))
    assert world.texts == ["hello"]
    assert world.messenger.messages["m1"].reply_to is None
    world.exchange = replace(world.exchange, id=2, parts=())
    world.fail({number: MessageGone("no") for number in range(99)})
    with pytest.raises(MessageGone):
        await world.deliver(*answered("hello"))


async def test_a_channel_that_is_gone_ends_the_delivery_and_the_model(world: World) -> None:
    closed = []

    async def events() -> AsyncGenerator[ReplyEvent, None]:
        try:
            while True:
                yield Delta("more ")
                await world.clock.sleep(1.0)
        finally:
            closed.append(True)

    world.fail({2: ChannelGone("the bot was removed")})
    with pytest.raises(ChannelGone):
        await world.clock.run(world.run(events()))
    assert closed == [True]


async def test_an_error_of_the_stream_reaches_the_caller(world: World) -> None:
    async def events() -> AsyncGenerator[ReplyEvent, None]:
        yield Delta("half")
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):
        await world.clock.run(world.run(events()))
    assert world.texts == ["half"]


async def test_an_id_that_could_not_be_noted_is_noted_before_the_first_edit(world: World) -> None:
    world.store_faults = 3
    await world.deliver(*answered("hello"))
    assert world.exchange.parts == ("m1",)
    assert world.verbs == ["send", "edit"]


async def test_nothing_is_sent_twice_while_the_store_fails(world: World) -> None:
    world.store_faults = 99
    await world.deliver(*answered("hello"))
    assert world.verbs == ["send", "edit"]


async def test_a_send_that_has_begun_is_noted_even_if_the_delivery_is_cancelled(world: World) -> None:
    world.messenger.seconds_per_call = 5.0
    run = asyncio.create_task(world.run(world.stream(60.0, *answered("hello"))))
    await world.clock.advance(1.0)
    run.cancel()
    await world.clock.advance(10.0)
    assert run.cancelled()
    assert world.exchange.parts == ("m1",)


class AllStreams:
    """Streams of a platform on which each message is one."""

    appends_per_minute = 60

    def expect(self, exchange: Exchange) -> None:
        pass

    def is_open(self, channel: ChannelKey, message_id: str) -> bool:
        return True


@pytest.mark.parametrize(("limit", "is_paused"), [(AppendLimited(30.0), True), (RateLimited(30.0), False)])
async def test_a_limit_of_another_call_than_an_append_delays_no_appends_elsewhere(
    world: World, limit: RateLimited, *, is_paused: bool
) -> None:
    world.streams = AllStreams()
    world.pacer = Pacer(world.messenger.edit_interval, world.clock, appends_per_minute=60)
    world.fail({1: limit})
    run = asyncio.create_task(world.run(world.stream(*answered("hello"))))
    await world.clock.advance(5.0)
    assert world.verbs == ["send", "edit"]
    assert world.pacer.appends is not None
    assert world.pacer.appends.is_used_up is is_paused
    await world.clock.run(run)
    assert world.texts == ["hello"]


async def test_a_rate_limit_of_a_cancelled_send_delays_the_next_one(world: World) -> None:
    world.messenger.seconds_per_call = 5.0
    world.messenger.script = lambda number, verb: Failure(RateLimited(60.0)) if number == 0 else None
    run = asyncio.create_task(world.run(world.stream(*answered("hello"))))
    await world.clock.advance(1.0)
    run.cancel()
    await world.clock.advance(10.0)
    assert run.cancelled()
    await world.deliver(*answered("hello"))
    assert world.messenger.violations == []
    assert world.texts == ["hello"]


async def test_replies_in_one_channel_share_its_pace_fairly(world: World) -> None:
    async def words(name: str) -> AsyncGenerator[ReplyEvent, None]:
        for _ in range(20):
            yield Delta(f"{name} ")
            await world.clock.sleep(1.0)
        yield Finished(FinishReason.STOP)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                exchange = replace(world.exchange, id=number, message=a_message())
                tasks.create_task(world.run(words(str(number)), exchange))

    await world.clock.run(all_of_them())
    edits = [call for call in world.messenger.calls if call.verb == "edit"]
    assert [call.at for call in world.messenger.calls if call.verb == "send"] == [0.0] * 4
    assert all(later.at - earlier.at >= 1.0 for earlier, later in pairwise(edits))
    counts = [sum(call.message_id == f"m{number}" for call in edits) for number in range(1, 5)]
    assert max(counts) - min(counts) <= 1


async def test_only_the_throttled_channel_waits() -> None:
    world = World()
    other = replace(CHANNEL, channel="c2")
    calls: list[tuple[str, float]] = []

    async def refused() -> None:
        raise RateLimited(100.0)

    with pytest.raises(RateLimited):
        await world.pacer.call(CHANNEL, refused)

    async def note(name: str) -> None:
        calls.append((name, world.clock.now()))

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.pacer.call(CHANNEL, lambda: note("throttled"), urgent=True))
            tasks.create_task(world.pacer.call(other, lambda: note("other")))

    await world.clock.run(both())
    assert calls == [("other", 0.0), ("throttled", 100.0)]


async def test_lanes_at_rest_are_forgotten() -> None:
    world = World()

    async def nothing() -> None: ...

    for number in range(3000):
        await world.pacer.call(replace(CHANNEL, channel=str(number)), nothing)
        if number % 500 == 0:
            await world.clock.advance(2.0)
    assert len(world.pacer._lanes) <= 1600


class Killed(Exception):
    """The process ends here."""


@settings(max_examples=25, deadline=None)
@given(
    text=TEXT,
    limit=st.integers(100, 300),
    seed=st.integers(0, 10**6),
    knows_nonces=st.booleans(),
)
async def test_the_whole_answer_arrives_once_despite_errors_and_kills(
    text: str, limit: int, seed: int, knows_nonces: bool
) -> None:
    world, random = World(limit), Random(seed)
    world.messenger.knows_nonces = knows_nonces

    def script(number: int, verb: Verb) -> Failure | None:
        chance = random.random()
        # Without nonces a platform has a message twice that it took, but did not tell us of.
        happens = random.random() < 0.5 and (knows_nonces or verb != "send")
        if chance < 0.06:
            return Failure(Killed(), happens=happens)
        if chance < 0.2:
            return Failure(RateLimited(random.uniform(1.0, 30.0)))
        if chance < 0.3:
            return Failure(PlatformUnavailable("cut off"), happens=happens)
        return None

    world.messenger.script = script
    events: list[ReplyEvent | float] = []
    for begin in range(0, len(text), 20):
        events += [Delta(text[begin : begin + 20]), 0.3]
    while True:
        try:
            await world.deliver(*events, Finished(FinishReason.STOP))
            break
        except Killed:
            world.pacer = Pacer(world.messenger.edit_interval, world.clock)
            await world.clock.advance(60.0)
    whole = [piece.text for piece in split(text, MarkdownFormat(limit)) if piece.text.strip()]
    assert world.texts == (whole or ["I have no answer to that. Please rephrase your question."])
    assert all(map(is_balanced, world.texts))
    assert [mistake for mistake in world.messenger.violations if "changes nothing" not in mistake] == []


async def test_a_new_database_brings_back_no_reply_of_the_old_one(world: World) -> None:
    await world.deliver(*answered("the old answer"))
    world.exchange = Exchange(1, a_message(id="q2"), Kind.CHAT, Status.OPEN, seed=2)
    await world.deliver(*answered("another answer"))
    assert world.texts == ["the old answer", "another answer"]


async def test_a_send_that_a_killed_process_made_is_not_made_again(world: World) -> None:
    world.messenger.script = lambda number, verb: Failure(Killed(), happens=True) if number == 0 else None
    with pytest.raises(Killed):
        await world.deliver(*answered("hello"))
    await world.deliver(*answered("hello"))
    assert world.texts == ["hello"]


async def test_a_message_deleted_before_a_restart_does_not_come_back_by_its_nonce(world: World) -> None:
    for text in ("one", "two", "three"):
        await world.deliver(*answered(text))
        world.messenger.messages.clear()
    await world.deliver(*answered("four"))
    assert world.texts == ["four"]
    assert len({message.reply_to for message in world.messenger.messages.values()}) == 1

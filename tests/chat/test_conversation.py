"""A channel's conversation: order, history, stopping, clearing, and what goes wrong."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.chat.prompt import build_prompt
from bot.chat.settings import ChatSettings
from bot.config.schema import ConversationSection, LimitsSection
from bot.domain import (
    ChannelKey,
    ChatMessage,
    Exchange,
    Fallback,
    Finished,
    FinishReason,
    Kind,
    Queued,
    ReplyEvent,
    Status,
    Thought,
    Usage,
)
from bot.engine.backends.echo import EchoEngine
from bot.errors import AnswerBrokenOff, EngineBusy, EngineFailed, PromptTooLong, StoreDamaged, StoreError
from bot.storage.base import History
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, a_message
from tests.storage import temporary_store


async def test_a_question_is_answered_and_stored(harness: Harness) -> None:
    harness.engine.add(["Hel", "lo!"])
    exchange = await harness.accept(a_message("hi"))
    events = await harness.replied(exchange)
    assert text_of(events) == "Hello!"
    assert events[-1] == Finished(FinishReason.STOP, Usage(2, 6))
    kept = await harness.stored(exchange)
    assert kept.status is Status.DELIVERED
    assert kept.answer is not None
    assert (kept.answer.text, kept.answer.usage) == ("Hello!", Usage(2, 6))


async def test_the_answer_is_stored_before_finished_is_emitted(harness: Harness) -> None:
    exchange = await harness.accept(a_message("hi"))
    async with harness.intake.answers.stream(exchange) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert (await harness.stored(exchange)).status is Status.ANSWERED


async def test_the_prompt_contains_the_earlier_exchanges(harness: Harness) -> None:
    harness.engine.add("I am fine.", "You asked how I am.")
    await harness.ask(a_message("How are you?"))
    await harness.ask(a_message("What did I ask?"))
    assert harness.engine.requests[1].messages == (
        ChatMessage("user", "How are you?"),
        ChatMessage("assistant", "I am fine."),
        ChatMessage("user", "What did I ask?"),
    )


async def test_each_channel_and_each_thread_has_a_separate_history(harness: Harness) -> None:
    for channel in (CHANNEL, ChannelKey("discord", "c2"), ChannelKey("slack", "c1"), ChannelKey("discord", "c1", "t")):
        await harness.ask(a_message(f"only for {channel}", channel=channel))
    assert all(len(request.messages) == 1 for request in harness.engine.requests)


async def test_history_outlives_a_restart(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        await before.ask(a_message("remember me"))
    async with make_harness(tmp_path) as after:
        await after.ask(a_message("what did I say?"))
        assert after.engine.requests[0].messages[0] == ChatMessage("user", "remember me")


async def test_history_beyond_the_context_is_dropped_oldest_first_with_a_notice(tmp_path: Path) -> None:
    # A token of the scripted engine is a character: 100 of context less 40 for the answer leave 60.
    engine = ScriptedEngine(default="a" * 10, context_length=100)
    async with make_harness(tmp_path, engine, conversation=ConversationSection(answer_tokens=40)) as harness:
        for number in range(3):
            await harness.ask(a_message(f"question {number}"))
        events = await harness.ask(a_message("x" * 20))
    shown = [message.content for message in engine.requests[-1].messages]
    assert shown == ["question 1", "a" * 10, "question 2", "a" * 10, "x" * 20]
    assert "left out: 1" in notice_of(events)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=8),
    question=st.integers(1, 99),
    answer=st.integers(1, 99),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_history_shown_is_the_longest_that_fits(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, int]], question: int, answer: int
) -> None:
    engine = ScriptedEngine(context_length=100)
    async with make_harness(
        tmp_path_factory.mktemp("harness"),
        engine,
        conversation=ConversationSection(answer_tokens=answer, history_turns=5),
    ) as harness:
        engine.add(*("a" * replied for _, replied in lengths))
        engine_room = 100 - min(answer, 50)
        for asked, _ in lengths:
            await harness.ask(a_message("q" * asked))
        await harness.ask(a_message("x" * question))
    shown = engine.requests[-1].messages
    kept = (len(shown) - 1) // 2
    sizes = [asked + replied for asked, replied in lengths]
    assert shown[-1].content == "x" * question
    assert kept <= 5
    assert kept == 0 or question + sum(sizes[len(sizes) - kept :]) <= engine_room
    if kept < min(5, len(sizes)):
        assert question + sum(sizes[len(sizes) - kept - 1 :]) > engine_room, "one more turn would have fitted"


async def test_the_system_prompt_opens_every_conversation(tmp_path: Path) -> None:
    async with make_harness(tmp_path, conversation=ConversationSection(system_prompt="Be brief.")) as harness:
        await harness.ask(a_message("hi"))
        assert harness.engine.requests[0].messages[0] == ChatMessage("system", "Be brief.")


async def test_group_prompts_contain_author_names_and_quotations(tmp_path: Path) -> None:
    async with make_harness(tmp_path, conversation=ConversationSection(name_speakers=True)) as harness:
        await harness.ask(a_message("is that so?", is_direct=False, quoted="The earth\nis flat."))
        await harness.ask(a_message("hi", is_direct=True))
        shared, _, direct = harness.engine.requests[1].messages
    assert shared.content == "> The earth\n> is flat.\n\nMei: is that so?"
    assert direct.content == "hi"


async def test_an_engine_that_only_repeats_gets_no_names(tmp_path: Path) -> None:
    settings = ChatSettings(ConversationSection(name_speakers=True))
    async with temporary_store(tmp_path) as store:
        exchange = await store.enqueue(a_message("Hello", is_direct=False), Kind.CHAT)
        assert exchange is not None
        history = await store.history(exchange, 10)
        named = build_prompt(history, settings, ScriptedEngine())
        assert [message.content for message in named.messages] == ["Mei: Hello"]
        echoed = build_prompt(history, settings, EchoEngine())
        assert [message.content for message in echoed.messages] == ["Hello"]


async def test_a_channel_is_answered_in_the_order_of_its_rows(harness: Harness) -> None:
    first, second = await harness.accept(a_message("first")), await harness.accept(a_message("second"))
    later = asyncio.create_task(harness.replied(second))
    await harness.clock.settle()
    assert harness.engine.requests == []
    await harness.replied(first)
    assert (await later)[0] == Queued(1)
    assert [request.messages[-1].content for request in harness.engine.requests] == ["first", "second"]


async def test_channels_do_not_wait_for_each_other(harness: Harness) -> None:
    harness.engine.go_on.clear()
    here = asyncio.create_task(harness.ask(a_message("here")))
    there = asyncio.create_task(harness.ask(a_message("there", channel=ChannelKey("discord", "c2"))))
    await harness.engine.asked(2)
    harness.engine.go_on.set()
    assert text_of(await here) == text_of(await there) == "ok"


async def test_a_stopped_answer_keeps_its_text(harness: Harness) -> None:
    said = asyncio.Event()
    harness.engine.add(["half an ", asyncio.Event(), "answer"])
    exchange = await harness.accept(a_message("hi"))
    events: list[ReplyEvent] = []

    async def read() -> None:
        async with harness.intake.answers.stream(exchange) as stream:
            async for event in stream:
                events.append(event)
                said.set()

    reading = asyncio.create_task(read())
    await said.wait()
    assert harness.exchanges.stop(exchange)
    await reading
    assert text_of(events) == "half an "
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.CANCELLED
    assert len(harness.engine.closed) == 1, "the model works on"
    kept = await harness.stored(exchange)
    assert kept.answer is not None
    assert (kept.answer.text, kept.answer.reason) == ("half an ", FinishReason.CANCELLED)


async def test_a_stop_during_the_first_text_is_not_lost(harness: Harness) -> None:
    thinking = asyncio.Event()
    harness.engine.add([thinking, "late", asyncio.Event()])
    exchange = await harness.accept(a_message("hi"))
    replying = asyncio.create_task(harness.events(exchange))
    await harness.engine.asked(1)
    await harness.clock.settle()
    thinking.set()
    assert harness.exchanges.stop(exchange)
    assert (await replying)[-1].reason is FinishReason.CANCELLED  # type: ignore[union-attr]  # the last is Finished


async def test_a_waiting_question_can_be_stopped(harness: Harness) -> None:
    harness.engine.add(["…", asyncio.Event()])
    first, second = await harness.accept(a_message("first")), await harness.accept(a_message("second"))
    running = asyncio.create_task(harness.replied(first))
    waiting = asyncio.create_task(harness.replied(second))
    await harness.engine.asked(1)
    assert harness.exchanges.stop(second)
    # It still leaves the line in its turn: the answer to the first stands above.
    assert (await waiting)[-1] == Finished(FinishReason.CANCELLED, Usage())
    assert len(harness.engine.requests) == 1, "the model never saw it"
    harness.exchanges.stop(first)
    await running


async def test_stop_without_a_running_answer_does_nothing(harness: Harness) -> None:
    exchange = await harness.accept(a_message())
    await harness.replied(exchange)
    assert not harness.exchanges.stop(exchange)


async def test_an_answer_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(answer_seconds=0.5)) as harness:
        harness.engine.add(["endless ", asyncio.Event()])
        events = await harness.ask(a_message())
    assert text_of(events) == "endless "
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH


async def test_a_reply_whose_reader_stopped_is_owed(harness: Harness) -> None:
    harness.engine.add(["one", asyncio.Event()], "again")
    exchange = await harness.accept(a_message())
    async with harness.intake.answers.stream(exchange) as events:
        await anext(events)
    assert (await harness.stored(exchange)).status is Status.OPEN
    assert harness.engine.closed, "the model works on"
    harness.exchanges.release(exchange)
    (owed,) = await harness.intake.recover("discord")
    assert text_of(await harness.replied(owed)) == "again"
    assert harness.engine.requests[0].params.seed == harness.engine.requests[1].params.seed == exchange.seed


async def test_a_cancelled_reader_frees_its_place_in_the_channel(harness: Harness) -> None:
    harness.engine.add(["one", asyncio.Event()])
    reading = asyncio.create_task(harness.ask(a_message()))
    await harness.engine.asked(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert text_of(await harness.ask(a_message())) == "ok"


async def test_clearing_during_an_answer_ends_it_and_stores_nothing(harness: Harness) -> None:
    harness.engine.add(["a secret", asyncio.Event()])
    exchange = await harness.accept(a_message("tell me"))
    replying = asyncio.create_task(harness.replied(exchange))
    await harness.engine.asked(1)
    assert await harness.exchanges.clear(CHANNEL) == 1
    assert isinstance((await replying)[-1], Finished)
    kept = await harness.stored(exchange)
    assert (kept.status, kept.message.text, kept.answer) == (Status.CLEARED, "", None)
    await harness.ask(a_message("next"))
    assert len(harness.engine.requests[-1].messages) == 1


async def test_clearing_a_channel_ends_answers_in_its_threads(harness: Harness) -> None:
    thread = ChannelKey(CHANNEL.platform, CHANNEL.channel, "t1")
    elsewhere = ChannelKey(CHANNEL.platform, "c2")
    hold = asyncio.Event()
    harness.engine.add(["…", hold], ["…", hold, "whole"])
    inside = asyncio.create_task(harness.ask(a_message(channel=thread)))
    await harness.engine.asked(1)
    outside = asyncio.create_task(harness.ask(a_message(channel=elsewhere)))
    await harness.engine.asked(2)
    await harness.exchanges.clear(CHANNEL)
    assert isinstance(last := (await inside)[-1], Finished)
    assert last.reason is FinishReason.CANCELLED
    hold.set()
    assert text_of(await outside) == "…whole"


@pytest.mark.parametrize(
    ("error", "said"),
    [(EngineBusy(64, 64), "The queue is full"), (EngineFailed("out of memory"), "Something went wrong")],
)
async def test_an_engine_error_becomes_one_sentence(harness: Harness, error: Exception, said: str) -> None:
    harness.engine.add([error], "better")
    exchange = await harness.accept(a_message("hi"))
    events = await harness.replied(exchange)
    assert said in notice_of(events)
    assert events[-1] == Finished(FinishReason.ERROR)
    assert (await harness.stored(exchange)).status is Status.DELIVERED
    assert text_of(await harness.ask(a_message("hi"))) == "better"
    assert len(harness.engine.requests[-1].messages) == 1, "what failed is no history"


async def test_an_owed_question_waits_while_the_queue_of_the_engine_is_full(harness: Harness) -> None:
    await harness.intake.store(a_message("asked while the bot was down"))
    (owed,) = await harness.intake.recover("discord")
    harness.engine.add([EngineBusy(64, 64)], [EngineBusy(64, 64)], "at last")
    events = await harness.replied(owed)
    assert text_of(events) == "at last"
    assert notice_of(events) == ""
    assert (await harness.stored(owed)).status is Status.DELIVERED


async def test_a_stop_ends_the_wait_for_a_full_queue(harness: Harness) -> None:
    await harness.intake.store(a_message("asked while the bot was down"))
    (owed,) = await harness.intake.recover("discord")
    harness.engine.add(*([EngineBusy(64, 64)] for _ in range(1000)))
    replied = asyncio.create_task(harness.replied(owed))
    await harness.engine.asked(1)
    await harness.exchanges.clear(CHANNEL)
    assert (await replied)[-1] == Finished(FinishReason.CANCELLED)


async def test_a_prompt_that_proves_too_long_after_the_first_text_is_not_sent_again(harness: Harness) -> None:
    harness.engine.add(["so far", PromptTooLong(9, 8)])
    events = await harness.ask(a_message("hi"))
    assert text_of(events) == "so far"
    assert len(harness.engine.requests) == 1


async def test_a_question_longer_than_the_context_is_refused_with_its_size(tmp_path: Path) -> None:
    async with make_harness(tmp_path, ScriptedEngine(context_length=50)) as harness:
        await harness.ask(a_message("short"))
        notice = notice_of(await harness.ask(a_message("x" * 60)))
    assert notice == "Your message is too long: 60 tokens, the limit is 50."


async def test_a_failure_during_an_answer_keeps_its_text_and_adds_a_notice(harness: Harness) -> None:
    harness.engine.add(["so far", EngineFailed("NaN")])
    events = await harness.ask(a_message("hi"))
    assert text_of(events) == "so far"
    assert notice_of(events)


async def test_thoughts_are_neither_stored_nor_part_of_the_next_prompt(harness: Harness) -> None:
    harness.engine.add([Thought("2 and 2"), Thought(" make"), "Four."])
    events = await harness.ask(a_message("what is 2 + 2?"))
    assert [event.text for event in events if isinstance(event, Thought)] == [""], "hidden, and merged"
    assert text_of(events) == "Four."
    await harness.ask(a_message("and 3 + 3?"))
    assert "2 and 2" not in str(harness.engine.requests)


async def test_thoughts_are_shown_by_a_setting(tmp_path: Path) -> None:
    async with make_harness(tmp_path, conversation=ConversationSection(show_thoughts=True)) as harness:
        harness.engine.add([Thought("2 and 2"), Thought(" make"), "Four."])
        events = await harness.ask(a_message("what is 2 + 2?"))
        assert [event.text for event in events if isinstance(event, Thought)] == ["2 and 2 make"]
        assert text_of(events) == "Four."


async def test_a_prompt_that_the_engine_counts_higher_is_cut_again(harness: Harness) -> None:
    await harness.ask(a_message("first"))
    harness.engine.add([PromptTooLong(3000, 2048)], "after all")
    assert text_of(await harness.ask(a_message("second"))) == "after all"
    harness.engine.add(*[[PromptTooLong(3000, 2048)]] * 3)
    assert "too long: 3000 tokens" in notice_of(await harness.ask(a_message("third")))


async def test_an_answer_that_a_server_breaks_off_says_so(harness: Harness) -> None:
    harness.engine.add(["The first ", AnswerBrokenOff("gone")])
    events = await harness.ask(a_message("hello"))
    assert text_of(events) == "The first "
    assert notice_of(events) == "(The answer broke off here: the model server failed.)"
    assert events[-1] == Finished(FinishReason.ERROR)


@pytest.mark.parametrize(("question", "named"), [("hi", "Answered by small."), ("你好", "由 small 回答。")])
async def test_a_reply_names_the_fallback_that_answered(harness: Harness, question: str, named: str) -> None:
    harness.engine.add([Queued(1), Fallback("small"), Queued(1), "I am small"])
    exchange = await harness.accept(a_message(question))
    events = await harness.replied(exchange)
    assert (text_of(events), notice_of(events)) == ("I am small", named)
    kept = (await harness.stored(exchange)).answer
    assert kept is not None
    assert kept.notice == named


async def test_turns_that_a_fallback_has_no_room_for_are_told(harness: Harness) -> None:
    harness.engine.add([Fallback("small", left_out=3), "I am small"])
    notice = notice_of(await harness.ask(a_message("hi")))
    assert notice == "The oldest turns of this conversation were left out: 2.\nAnswered by small."


async def test_a_chinese_question_is_refused_in_chinese(harness: Harness) -> None:
    harness.engine.add([EngineFailed("NaN")])
    assert any("\u4e00" <= letter <= "\u9fff" for letter in notice_of(await harness.ask(a_message("你好"))))


async def test_a_question_waits_while_the_database_cannot_be_read(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = harness.store.history
    failures = [StoreError("the server closed the connection")]

    async def closed_once(exchange: Exchange, limit: int, *, is_own: bool, pictures: int) -> History:
        if failures:
            raise failures.pop()
        return await history(exchange, limit, is_own=is_own, pictures=pictures)

    monkeypatch.setattr(harness.store, "history", closed_once)
    events = await harness.ask(a_message("Is anybody there?"))
    assert (text_of(events), notice_of(events)) == ("ok", "")
    assert failures == []


async def test_a_question_that_waits_for_the_database_can_be_stopped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = await harness.accept(a_message("Is anybody there?"))

    async def closed(*_: object, **__: object) -> History:
        harness.exchanges.worker(exchange).stop()
        raise StoreError("the server closed the connection")

    monkeypatch.setattr(harness.store, "history", closed)
    assert "database has a problem" in notice_of(await harness.events(exchange))


async def test_a_damaged_database_is_named_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def damaged(*_: object, **__: object) -> History:
        raise StoreDamaged("a page cannot be read")

    monkeypatch.setattr(harness.store, "history", damaged)
    assert "database has a problem" in notice_of(await harness.ask(a_message("Is anybody there?")))

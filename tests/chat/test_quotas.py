"""Quotas: who may ask, what is counted, and what /usage tells."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.config.schema import AccessSection, Config, LimitsSection
from bot.domain import (
    Action,
    Author,
    ChannelKey,
    Exchange,
    IncomingMessage,
    Queued,
    ReplyEvent,
    Scope,
    Thought,
    Usage,
    UsageSum,
)
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness, notice_of, text_of
from tests.harness.messages import MEI, NOON, a_message

ADA, TOM = Author("discord", "9", "Ada"), Author("discord", "2", "Tom")
ROOM, TOPIC = ChannelKey("discord", "c1"), ChannelKey("discord", "c1", "t1")
HERE = ["user", "channel", "server"]


def said(text: str = "hello", author: Author = MEI, channel: ChannelKey = ROOM) -> IncomingMessage:
    return a_message(text, author=author, channel=channel, is_direct=False, server="s1")


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path, access=AccessSection(admins=(ADA.key,))) as harness:
        yield harness


def configure(harness: Harness, **quotas: Any) -> None:
    tables: Any = {name.replace("__", ":"): table for name, table in quotas.items()}
    harness.settings.reconfigure(Config(quotas=tables))


async def is_answered(harness: Harness, message: IncomingMessage) -> bool:
    return bool(text_of(await harness.ask(message)))


async def use_of(harness: Harness, level: Any, id: str) -> UsageSum:
    return sum((await harness.store.usage(Scope(level, id), date(2000, 1, 1))).values(), UsageSum())


@pytest.mark.parametrize("level", HERE)
async def test_a_quota_is_used_up_until_its_period_ends(harness: Harness, level: str, tmp_path: Path) -> None:
    configure(harness, **{level: {"answers_per_day": 2}})
    assert [await is_answered(harness, said()) for _ in range(2)] == [True, True]
    refusal = notice_of(await harness.ask(said()))
    assert "(answers per day: 2); it returns in 12 h 0 min (" in refusal
    assert await use_of(harness, "user", MEI.key) == await use_of(harness, "platform", "discord")
    async with make_harness(tmp_path) as again:
        configure(again, **{level: {"answers_per_day": 2}})
        assert not await is_answered(again, said()), "a restart forgives nothing"
    async with make_harness(tmp_path, today=NOON + timedelta(days=1)) as tomorrow:
        configure(tomorrow, **{level: {"answers_per_day": 2}})
        assert await is_answered(tomorrow, said())


@pytest.mark.parametrize(("period", "last"), [("week", 2), ("month", 10)])
async def test_a_longer_period_ends_on_monday_or_with_the_month(
    harness: Harness, period: str, last: int, tmp_path: Path
) -> None:
    quotas = {"user": {f"answers_per_{period}": 1}}
    configure(harness, **quotas)
    assert await is_answered(harness, said())
    assert f"answers per {period}: 1" in notice_of(await harness.ask(said()))
    for days, is_free in ((last, False), (last + 1, True)):
        async with make_harness(tmp_path, today=NOON + timedelta(days=days)) as later:
            configure(later, **quotas)
            assert await is_answered(later, said()) is is_free


async def test_others_and_other_places_have_their_own(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 1}, channel={"answers_per_day": 2})
    assert await is_answered(harness, said())
    assert "You have used up" in notice_of(await harness.ask(said()))
    assert await is_answered(harness, said(author=TOM, channel=TOPIC)), "a thread counts for its channel"
    assert "This channel has used up" in notice_of(await harness.ask(said(author=ADA)))
    assert await is_answered(harness, said(author=ADA, channel=ChannelKey("discord", "c2")))


async def test_the_narrowest_table_is_in_force_and_0_is_no_limit(harness: Harness) -> None:
    staff = replace(MEI, roles=frozenset({"staff", "more"}))
    configure(
        harness,
        user={"answers_per_day": 1, "tokens_per_day": 1},
        role__discord__staff={"answers_per_day": 2, "tokens_per_day": 0},
        role__discord__more={"answers_per_day": 9},
        **{f"user__discord__{TOM.id}": {"answers_per_day": 3, "tokens_per_day": 0}},
    )
    for author, count in ((staff, 2), (TOM, 3)):
        assert [await is_answered(harness, said(author=author)) for _ in range(count + 1)] == [*[True] * count, False]


async def test_tokens_and_seconds_are_counted_as_the_answer_has_them(harness: Harness) -> None:
    configure(harness, user={"tokens_per_day": 1})
    exchange = await harness.accept(said())
    await harness.replied(exchange)
    answer = (await harness.stored(exchange)).answer
    assert answer is not None
    assert answer.usage != Usage()
    for level, id in (("user", MEI.key), ("channel", "discord:c1"), ("server", "discord:s1")):
        use = await use_of(harness, level, id)
        assert (use.answers, use.prompt_tokens, use.completion_tokens) == (
            1,
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
        )
    assert "tokens per day: 1" in notice_of(await harness.ask(said()))
    assert (await use_of(harness, "user", MEI.key)).answers == 1, "a refusal costs nothing"


async def test_a_regenerated_answer_is_a_new_question(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 2})
    await harness.ask(said())
    assert text_of(await harness.ask(said("/retry")))
    refusal = notice_of(await harness.ask(said("/retry")))
    assert "answers per day: 2" in refusal
    assert (await use_of(harness, "user", MEI.key)).answers == 2


@pytest.mark.parametrize("how", ["button", "command", "edit"])
async def test_who_asks_again_has_the_roles_of_now(harness: Harness, how: str) -> None:
    configure(harness, user={"answers_per_day": 1}, role__discord__staff={"answers_per_day": 9})

    async def is_asked_again(author: Author, text: str) -> bool:
        before = len(harness.engine.requests)
        if how == "command":
            await harness.ask(said("/retry", author))
        else:
            if how == "edit":
                again = await harness.intake.edit(replace(question.message, author=author, text=text))
            else:
                again = (await harness.intake.on_button(ROOM, "m1", Action.RETRY, author)).again
            if again is not None:
                await harness.replied(again)
        return len(harness.engine.requests) > before

    question = await harness.accept(said())
    await harness.record_part(question, 0, "m1")
    await harness.replied(question)
    staff = replace(MEI, roles=frozenset({"staff"}))
    assert not await is_asked_again(MEI, "hello!")
    assert await is_asked_again(staff, "hello again")
    assert not await is_asked_again(MEI, "and again")


async def test_use_is_counted_after_forget_me(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 1})
    await harness.ask(said())
    assert "Deleted" in notice_of(await harness.ask(said("/forget me")))
    assert "You have used up" in notice_of(await harness.ask(said()))


async def test_usage_shows_what_is_left_and_when_it_returns(harness: Harness) -> None:
    assert "No quota is set here." in notice_of(await harness.ask(said("/usage")))
    configure(harness, user={"answers_per_day": 5}, server={"tokens_per_month": 1000})
    await harness.ask(said())
    shown = notice_of(await harness.ask(said("/usage")))
    assert "You, today: answers 1" in shown
    assert "You, answers per day: 5, left: 4; the quota returns in 12 h 0 min" in shown
    assert "This server, tokens per month: 1,000, left: " in shown
    assert "Only admins" in notice_of(await harness.ask(said("/usage server")))
    server = notice_of(await harness.ask(said("/usage server", ADA)))
    assert "This server, this month: answers 1" in server
    assert "You, " not in server
    assert "Write `/usage`" in notice_of(await harness.ask(said("/usage please")))


async def test_a_direct_chat_is_no_channel(harness: Harness) -> None:
    configure(harness, channel={"answers_per_day": 1})
    direct = replace(said(), is_direct=True, server=None)
    assert [await is_answered(harness, replace(direct, id=str(number))) for number in range(3)] == [True] * 3
    assert await use_of(harness, "channel", "discord:c1") == UsageSum()
    assert "This platform, today: answers 3" in notice_of(
        await harness.ask(replace(said("/usage server", ADA), is_direct=True, server=None))
    )


async def test_the_sums_of_a_platform_are_those_of_now_after_each_answer(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 9})
    for answers in range(1, 4):
        await harness.ask(replace(said(), is_direct=True, server=None))
        shown = notice_of(await harness.ask(replace(said("/usage server", ADA), is_direct=True, server=None)))
        assert f"This platform, today: answers {answers}" in shown


async def test_near_a_limit_one_answer_at_a_time_is_under_way(harness: Harness) -> None:
    """Two people ask at once in two channels; the server has one answer left."""
    configure(harness, server={"answers_per_day": 1})
    exchanges = [
        await harness.accept(said(author=author, channel=ChannelKey("discord", channel)))
        for author, channel in ((MEI, "c1"), (TOM, "c2"))
    ]

    async def answered(exchange: Exchange) -> bool:
        return bool(text_of(await harness.replied(exchange)))

    assert sorted(await asyncio.gather(*map(answered, exchanges))) == [False, True]
    assert (await use_of(harness, "server", "discord:s1")).answers == 1


def waited(events: list[ReplyEvent]) -> list[int]:
    return [event.position for event in events if isinstance(event, Queued)]


async def test_far_from_a_limit_the_longest_answer_is_what_counts_of_those_under_way(tmp_path: Path) -> None:
    engine = ScriptedEngine(context_length=131_072, max_batch_size=32)
    engine.go_on.clear()
    async with make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
        tables: Any = {"server": {"tokens_per_day": 100_000}}
        harness.settings.reconfigure(Config(quotas=tables, limits=LimitsSection(max_answer_tokens=1_000)))
        asked = [asyncio.create_task(harness.ask(said(channel=ChannelKey("discord", f"c{n}")))) for n in range(10)]
        await engine.asked(10)
        engine.go_on.set()
        assert not any([waited(await each) for each in asked])


async def test_people_who_ask_at_once_pass_a_quota_of_tokens_by_one_answer_at_most(tmp_path: Path) -> None:
    engine = ScriptedEngine(default="a" * 100, context_length=131_072, max_batch_size=32)
    async with make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
        tables: Any = {"server": {"tokens_per_day": 700}}
        harness.settings.reconfigure(Config(quotas=tables, limits=LimitsSection(max_answer_tokens=100)))
        asked = [harness.ask(said(channel=ChannelKey("discord", f"c{n}"))) for n in range(20)]
        answered = [bool(text_of(events)) for events in await asyncio.gather(*asked)]
        used = (await use_of(harness, "server", "discord:s1")).tokens
        assert 700 <= used < 700 + used / answered.count(True)
        assert False in answered


async def test_what_is_deleted_while_an_answer_waits_for_room_reaches_no_model(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
        tables: Any = {"server": {"tokens_per_day": 1_500}}
        harness.settings.reconfigure(Config(quotas=tables, limits=LimitsSection(max_answer_tokens=1_000)))
        secret = said("a secret")
        await harness.ask(secret)
        engine.go_on.clear()
        others = [asyncio.create_task(harness.ask(said(channel=ChannelKey("discord", c)))) for c in ("c2", "c3")]
        await engine.asked(3)
        stream = harness.intake.answers.stream(await harness.accept(said("and now?")))
        async with stream as events:
            first = await anext(events)
            assert first == Queued(2)
            await harness.intake.delete(ROOM, secret.id)
            engine.go_on.set()
            assert text_of([event async for event in events]) == "ok"
        await asyncio.gather(*others)
        assert [message.content for message in engine.requests[-1].messages if "secret" in message.content] == []


async def test_a_group_that_becomes_a_supergroup_keeps_what_it_has_used_as_a_server(harness: Harness) -> None:
    def asked(group: str) -> IncomingMessage:
        return replace(said(channel=ChannelKey("discord", group)), server=group)

    configure(harness, server={"answers_per_month": 2})
    go_on = asyncio.Event()
    assert await is_answered(harness, asked("-100"))
    harness.engine.add(["under ", go_on, "way"])
    under_way = await harness.accept(asked("-100"))
    answered = asyncio.create_task(harness.replied(under_way))
    await harness.engine.asked(2)
    await harness.intake.rename_channel(ChannelKey("discord", "-100"), "-1009")
    go_on.set()
    await answered
    assert (await use_of(harness, "server", "discord:-1009")).answers == 2
    assert "This server has used up" in notice_of(await harness.ask(asked("-1009")))


async def stopped(harness: Harness, event: type, *script: Any) -> None:
    """Ask, and stop the question at the first event of this kind."""
    harness.engine.add([*script, asyncio.Event()])
    exchange = await harness.accept(said())

    async with harness.intake.answers.stream(exchange) as stream:
        async for each in stream:
            if isinstance(each, event):
                harness.exchanges.stop(exchange)
    await harness.exchanges.complete(exchange)


async def test_reasoning_that_is_stopped_before_the_first_word_is_an_answer(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 1})
    await stopped(harness, Thought, Thought("Let me "), Thought("see"))
    use = await use_of(harness, "user", MEI.key)
    assert use.answers == 1
    assert use.prompt_tokens > 0
    assert use.completion_tokens > 0
    assert not await is_answered(harness, said())


async def test_a_question_that_is_stopped_in_the_queue_of_the_model_has_used_nothing(harness: Harness) -> None:
    configure(harness, user={"answers_per_day": 1})
    await stopped(harness, Queued, Queued(3))
    assert await use_of(harness, "user", MEI.key) == UsageSum()
    assert await is_answered(harness, said())


@pytest.mark.parametrize(("change", "level"), [("answer", "user"), ("rename", "channel")])
async def test_sums_that_change_while_usage_reads_them_are_read_again(
    harness: Harness, change: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, is_read, go_on = harness.store.usage, asyncio.Event(), asyncio.Event()

    async def read_slowly(scope: Scope, since: date) -> dict[date, UsageSum]:
        days = await usage(scope, since)
        if scope.level == level:
            is_read.set()
            await go_on.wait()
        return days

    if change == "rename":
        await harness.ask(said(channel=ChannelKey("discord", "old")))
    with monkeypatch.context() as patch:
        patch.setattr(harness.store, "usage", read_slowly)
        configure(harness, **({"channel": {"answers_per_day": 9}} if change == "rename" else {}))
        shown = asyncio.create_task(harness.ask(said("/usage")))
        await is_read.wait()
        if change == "answer":
            await harness.ask(said())
        else:
            await harness.intake.rename_channel(ChannelKey("discord", "old"), "c1")
        go_on.set()
        await shown
    configure(harness, **{level: {"answers_per_day": 1}})
    assert not await is_answered(harness, said())


async def test_the_ledger_is_the_sum_of_the_stored_answers_after_ends_at_any_moment(tmp_path: Path) -> None:
    """Thirty processes end while they answer: no answer is counted twice, none is left out."""
    dice = random.Random(17)
    for life in range(31):
        async with make_harness(tmp_path, limits=NO_LIMITS) as harness:
            configure(harness, user={"tokens_per_day": 1_000_000})
            owed = await harness.intake.recover("discord")
            if life < 30:
                asked = [
                    said(author=dice.choice([MEI, TOM]), channel=ChannelKey("discord", c)) for c in ("1", "2", "3")
                ]
                owed += [await harness.accept(message) for message in asked]
            answers = [asyncio.create_task(harness.replied(exchange)) for exchange in owed]
            if life < 30:
                await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
                for answer in answers:
                    answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
    async with make_harness(tmp_path) as harness:
        stored = await harness.store.said_since("discord", NOON)
        usages = [exchange.answer.usage for exchange in stored if exchange.answer is not None]
        assert len(usages) == 90
        use = await use_of(harness, "platform", "discord")
        assert (use.answers, use.tokens) == (90, sum(each.prompt_tokens + each.completion_tokens for each in usages))
        people = [await use_of(harness, "user", author.key) for author in (MEI, TOM)]
        assert sum(people, UsageSum()) == use

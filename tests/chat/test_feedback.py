"""Votes on answers in the chat: who may vote, what is counted, and who agrees to an export."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from bot.config.schema import AccessSection, Config, LimitsSection
from bot.delivery.markdown.format import MarkdownFormat
from bot.delivery.view import ReplyView
from bot.domain import Action, Author, Delta, Exchange, Finished, FinishReason, Notice, ReplyEvent, Vote
from tests.harness.harness import Harness, make_harness, notice_of
from tests.harness.messages import CHANNEL, MEI, a_message

BEN = Author("discord", "2", "Ben")
CONFIG = {"feedback": {"enabled": True, "export": True}, "personas": {"pirate": {"system_prompt": "You are a pirate."}}}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path) as harness:
        harness.settings.reconfigure(Config.model_validate(CONFIG))
        yield harness


async def answered(harness: Harness) -> Exchange:
    exchange = await harness.accept(a_message("question"))
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    return await harness.stored(exchange)


async def press(harness: Harness, action: Action, by: Author) -> str:
    return (await harness.intake.on_button(CHANNEL, "m1", action, by)).notice


async def test_everybody_whom_the_bot_answers_may_vote(harness: Harness) -> None:
    await answered(harness)
    assert "Saved: 👍" in await press(harness, Action.UP, BEN)
    harness.access.reconfigure(AccessSection(deny_users=(BEN.key,)), LimitsSection())
    assert await press(harness, Action.DOWN, BEN) == ""
    assert "Saved: 👍" in await press(harness, Action.UP, MEI)


async def test_a_person_who_may_not_ask_in_a_channel_may_not_vote_there(harness: Harness) -> None:
    exchange = await answered(harness)
    harness.settings.reconfigure(Config.model_validate({**CONFIG, "channels": {str(CHANNEL): {"who": ["discord:r1"]}}}))
    assert await press(harness, Action.UP, BEN) == "You may not ask me here."
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.UP, BEN, is_added=True)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {}
    ben = replace(BEN, roles=frozenset({"r1"}))
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.UP, ben, is_added=True)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {exchange.id: Vote.UP}
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.UP, BEN, is_added=False)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {}


async def test_votes_are_limited_as_commands_are(harness: Harness) -> None:
    await answered(harness)
    harness.access.reconfigure(AccessSection(), LimitsSection(requests_per_minute=3))
    for _ in range(3):
        await press(harness, Action.UP, BEN)
    assert "too fast" in await press(harness, Action.UP, BEN)


async def test_a_reaction_that_is_taken_away_takes_the_vote_back_also_beyond_the_limit(harness: Harness) -> None:
    exchange = await answered(harness)
    harness.access.reconfigure(AccessSection(), LimitsSection(requests_per_minute=1))
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.DOWN, BEN, is_added=True)
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.UP, BEN, is_added=True)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {exchange.id: Vote.DOWN}
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.UP, BEN, is_added=False)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {exchange.id: Vote.DOWN}
    await harness.intake.on_reaction(CHANNEL, "m1", Vote.DOWN, BEN, is_added=False)
    assert await harness.intake.own_votes(BEN, [exchange.id]) == {}


@pytest.mark.parametrize(
    ("command", "persona"), [("/help", "-"), ("/persona use pirate", "pirate"), ("/persona set Be brief.", "*")]
)
async def test_votes_are_counted_by_the_persona_that_answered(harness: Harness, command: str, persona: str) -> None:
    await harness.ask(a_message(command))
    await answered(harness)
    await harness.ask(a_message("/persona clear"))
    await press(harness, Action.DOWN, BEN)
    labels = {"model": "engine", "persona": persona, "vote": "down"}
    assert harness.intake.metrics.registry.get_sample_value("chatglm_bot_votes_total", labels) == 1


@pytest.mark.parametrize(
    ("events", "has_votes"),
    [
        ([Delta("Yes."), Finished(FinishReason.STOP)], True),
        ([Delta("Yes"), Finished(FinishReason.CANCELLED)], True),
        ([Delta("Yes"), Notice("The server failed."), Finished(FinishReason.ERROR)], False),
        ([Notice("You are asking too fast."), Finished(FinishReason.ERROR)], False),
        ([Notice("The quota is used up."), Finished(FinishReason.STOP)], False),
    ],
)
async def test_only_an_answer_of_the_model_can_be_voted_on(
    harness: Harness, events: list[ReplyEvent], has_votes: bool
) -> None:
    view = ReplyView(await answered(harness), MarkdownFormat(2000), str, asks_for_votes=True)
    for event in events[:-1]:
        view.apply(event)
        assert view.message(0).controls == {Action.STOP}
    view.apply(events[-1])
    votes = {Action.UP, Action.DOWN} if has_votes else set()
    assert view.message(0).controls == {Action.RETRY, *votes}


async def said(harness: Harness, text: str, author: Author) -> str:
    return notice_of(await harness.ask(a_message(text, author=author, is_direct=False)))


async def test_a_person_agrees_to_an_export_and_takes_it_back(harness: Harness) -> None:
    assert "`share_answers` = false (default)" in await said(harness, "/settings share_answers", BEN)
    assert "takes this back" in await said(harness, "/settings share_answers true", BEN)
    assert "`share_answers` = true (for you, set in the chat)" in await said(harness, "/settings", BEN)
    assert not await harness.store.has_consented(MEI)
    assert "not exported any more" in await said(harness, "/settings share_answers off", BEN)
    assert not await harness.store.has_consented(BEN)


async def test_an_answer_that_is_no_yes_or_no_is_no_agreement(harness: Harness) -> None:
    assert "`share_answers` cannot be maybe." in await said(harness, "/settings share_answers maybe", MEI)
    harness.settings.reconfigure(Config())
    assert "does not allow" in await said(harness, "/settings share_answers true", MEI)
    assert not await harness.store.has_consented(MEI)


async def test_nobody_agrees_for_all_who_write_as_a_group(harness: Harness) -> None:
    group = Author("telegram", "-1007", "the group")  # an anonymous administrator
    assert "write as yourself" in await said(harness, "/settings share_answers true", group)
    assert not await harness.store.has_consented(group)

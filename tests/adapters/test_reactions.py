"""Reactions to answers, which are votes on Discord and Telegram."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.config.schema import FeedbackSection
from bot.domain import Action
from tests.adapters.test_votes import UP, Room, on_discord, on_telegram
from tests.harness.discord_harness import run_discord_bot
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import DIRECT_REACTIONS, REACTIONS
from tests.harness.servers.telegram import TelegramPlatform

React = Callable[[str, str, tuple[str, ...]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reacting:
    """A room where votes are collected; `react` gives a person these reactions to a message, in place of others."""

    room: Room
    react: React

    async def counts(self, **expected: int) -> None:
        """Wait until the counters of votes are these."""
        await self.room.platform.until(lambda: {vote: self.room.counted(vote) or 0 for vote in expected} == expected)


def _on_discord(platform: DiscordPlatform) -> React:
    shown: dict[tuple[str, str], tuple[str, ...]] = {}

    async def react(message: str, author: str, emoji: tuple[str, ...]) -> None:
        before, shown[message, author] = shown.get((message, author), ()), emoji
        for each in before:
            if each not in emoji:
                await platform.react(message, each, author=author, is_added=False)
        for each in emoji:
            if each not in before:
                await platform.react(message, each, author=author)

    return react


def _on_telegram(platform: TelegramPlatform) -> React:
    platform.manages_topics = True  # an administrator

    async def react(message: str, author: str, emoji: tuple[str, ...]) -> None:
        platform.react(message, *emoji, author=author)

    return react


@pytest.fixture(params=["discord", "telegram"])
async def reacting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reacting]:
    async for room in {"discord": on_discord, "telegram": on_telegram}[request.param](tmp_path):
        room.harness.settings.feedback = FeedbackSection(enabled=True)
        if isinstance(room.platform, DiscordPlatform):
            yield Reacting(room, _on_discord(room.platform))
        else:
            assert isinstance(room.platform, TelegramPlatform)
            yield Reacting(room, _on_telegram(room.platform))


async def test_a_reaction_is_a_vote_that_may_change_and_is_taken_back_with_it(reacting: Reacting) -> None:
    answer = await reacting.room.answered("hi")
    await reacting.react(answer.id, "Mei", ("👍",))
    await reacting.react(answer.id, "Ben", ("👎🏽",))
    await reacting.counts(up=1, down=1)
    await reacting.react(answer.id, "Mei", ("👎",))
    await reacting.counts(up=1, down=2)
    await reacting.react(answer.id, "Ben", ())
    await reacting.counts(up=1, down=2, taken_back=2)


async def test_a_reaction_and_a_button_are_one_vote(reacting: Reacting) -> None:
    answer = await reacting.room.answered("hi")
    await reacting.room.press(answer, Action.UP, UP)
    await reacting.react(answer.id, "Mei", ("👍",))
    await reacting.react(answer.id, "Ben", ("👍",))
    await reacting.counts(up=2)
    assert reacting.room.counted("repeated") is None


async def test_other_reactions_and_messages_are_no_votes(reacting: Reacting) -> None:
    said = await reacting.room.platform.say("a plain message", mention=False)
    answer = await reacting.room.answered("hi")
    await reacting.react(said, "Ben", ("👍",))
    await reacting.react(answer.id, "Ben", ("❤",))
    await reacting.react(answer.id, "Mei", ("👍",))
    await reacting.counts(up=1)
    await reacting.room.answered("handled in the meantime")
    assert [reacting.room.counted(vote) for vote in ("up", "down", "taken_back")] == [1, None, None]


async def test_an_answer_that_broke_off_has_no_votes(reacting: Reacting) -> None:
    reacting.room.harness.engine.add(["half", RuntimeError("the device is gone")], "whole")
    await reacting.room.platform.say("first")
    await reacting.room.platform.until(
        lambda: any(seen.actions == {Action.RETRY} for seen in reacting.room.platform.seen() if seen.author == "bot")
    )
    (broken,) = [seen for seen in reacting.room.platform.seen() if seen.author == "bot"]
    await reacting.react(broken.id, "Ben", ("👎",))
    answer = await reacting.room.answered("second")
    await reacting.react(answer.id, "Ben", ("👍",))
    await reacting.counts(up=1)
    assert reacting.room.counted("down") is None


async def test_discord_is_asked_for_reactions_only_where_votes_are_collected(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    for takes_votes in (False, True):
        async with run_discord_bot(platform, tmp_path, takes_votes=takes_votes):
            intents = platform.identified[-1]["intents"]
        assert bool(intents & REACTIONS) == bool(intents & DIRECT_REACTIONS) == takes_votes

"""Votes on answers: their buttons on each platform, over its own protocol."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bot.config.schema import FeedbackSection
from bot.domain import Action, ChannelKey
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import run_discord_bot
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import LoopbackPlatform, Seen
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform

RATED = {Action.RETRY, Action.UP, Action.DOWN}
UP, DOWN = (f"Saved: {symbol}. Press it again to take it back." for symbol in "👍👎")
TAKEN_BACK = "Your vote was taken back."
NO_ANSWER = "That answer was deleted or is being replaced, so your vote was not saved."


@dataclass(frozen=True, slots=True)
class Room:
    """A channel in which the bot answers, and the notices that it shows to those who press a button."""

    platform: LoopbackPlatform
    harness: Harness
    notices: Callable[[], list[str]]

    @property
    def answers(self) -> list[Seen]:
        """The bot's messages with buttons."""
        return [seen for seen in self.platform.seen() if seen.author == "bot" and seen.actions]

    async def answered(self, question: str) -> Seen:
        count = len(self.answers)
        await self.platform.say(question)
        await self.platform.until(lambda: len(self.answers) > count and self.answers[-1].actions == RATED)
        return self.answers[-1]

    async def press(self, answer: Seen, action: Action, *notices: str, author: str = "Mei") -> None:
        """Press a button, and wait until these are the notices so far."""
        await self.platform.press(answer.id, action, author=author)
        try:
            await self.platform.until(lambda: self.notices() == list(notices))
        except TimeoutError:
            assert self.notices() == list(notices)

    async def channel(self) -> ChannelKey:
        """Return the channel of the first question."""
        exchanges = await self.harness.store.said_since(self.platform.name, datetime(2000, 1, 1, tzinfo=UTC))
        return exchanges[0].message.channel

    def counted(self, vote: str, persona: str = "-") -> float | None:
        labels = {"model": "engine", "persona": persona, "vote": vote}
        return self.harness.intake.metrics.registry.get_sample_value("chatglm_bot_votes_total", labels)


async def on_discord(folder: Path) -> AsyncIterator[Room]:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        async with run_discord_bot(platform, folder, takes_votes=True) as bot:
            yield Room(platform, bot.harness, lambda: _without_buttons(platform))
        assert platform.violations == []


async def on_slack(folder: Path) -> AsyncIterator[Room]:
    async with make_harness(folder) as harness, SlackServer() as server, slack_harness.running(harness, server):
        yield Room(server, harness, lambda: _without_buttons(server))


async def on_telegram(folder: Path) -> AsyncIterator[Room]:
    async with (
        make_harness(folder) as harness,
        TelegramPlatform() as telegram,
        telegram_harness.running(telegram, harness),
    ):
        yield Room(telegram, harness, lambda: [each for each in telegram.answers.values() if each])


def _without_buttons(platform: LoopbackPlatform) -> list[str]:
    return [seen.markdown for seen in platform.seen() if seen.author == "bot" and not seen.actions]


PLATFORMS = {"discord": on_discord, "slack": on_slack, "telegram": on_telegram}


@pytest.fixture(params=PLATFORMS)
async def room(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Room]:
    async for room in PLATFORMS[request.param](tmp_path):
        room.harness.settings.feedback = FeedbackSection(enabled=True)
        yield room


async def test_two_people_vote_change_their_votes_and_take_them_back(room: Room) -> None:
    answer = await room.answered("hi")
    await room.press(answer, Action.UP, UP)
    await room.press(answer, Action.UP, UP, UP, author="Ben")
    await room.press(answer, Action.DOWN, UP, UP, DOWN, author="Ben")
    await room.press(answer, Action.UP, UP, UP, DOWN, TAKEN_BACK)
    assert [room.counted(vote) for vote in ("up", "down", "taken_back")] == [2, 1, 1]
    assert room.answers[-1].actions == RATED, "the buttons stay"


async def test_a_press_that_is_delivered_twice_takes_no_vote_back(room: Room) -> None:
    answer = await room.answered("hi")
    await room.press(answer, Action.UP, UP)
    room.platform.repeat_press()  # type: ignore[attr-defined]  # each loopback platform has it
    await room.answered("handled in the meantime")
    assert [room.counted(vote) for vote in ("up", "taken_back", "repeated")] == [1, None, None]
    assert set(room.notices()) == {UP}


async def test_a_vote_is_confirmed_in_the_language_of_its_voter(room: Room) -> None:
    answer = await room.answered("hi")
    speak_chinese(room.platform, "Ben")
    await room.press(answer, Action.UP, "已保存：👍。再按一次即可撤回。", author="Ben")


def speak_chinese(platform: Any, person: str) -> None:
    match platform.name:
        case "discord":
            platform.locales[person] = "zh-CN"
        case "slack":
            platform.workspace.locales[person] = "zh-CN"
        case _:
            platform.language = "zh-hans"


async def test_a_vote_on_an_answer_that_was_deleted_is_not_saved(room: Room) -> None:
    answer = await room.answered("hi")
    await room.harness.exchanges.clear(await room.channel())
    await room.press(answer, Action.UP, NO_ANSWER)
    assert room.counted("up") is None


async def test_an_answer_that_is_made_again_begins_without_votes(room: Room) -> None:
    room.harness.engine.add("first", "second")
    answer = await room.answered("hi")
    await room.press(answer, Action.UP, UP)
    await room.platform.press(answer.id, Action.RETRY)
    await room.platform.until(lambda: room.answers[-1].visible == "second" and room.answers[-1].actions == RATED)
    await room.press(answer, Action.UP, UP, UP)


async def test_a_press_below_a_message_that_is_no_answer_does_nothing(room: Room) -> None:
    answer = await room.answered("hi")
    await room.harness.store.rename_channel(await room.channel(), "1234")  # no reply is known here any more
    await room.platform.press(answer.id, Action.UP)
    await room.answered("still there?")
    assert room.notices() == []


async def test_votes_are_not_asked_for_by_default(room: Room) -> None:
    answer = await room.answered("hi")
    room.harness.settings.feedback = FeedbackSection()
    await room.press(answer, Action.UP, "Votes are not collected any more.")
    await room.platform.say("again")
    await room.platform.until(lambda: room.answers[-1].id != answer.id and room.answers[-1].actions == {Action.RETRY})

"""/signin on each platform: the link reaches its admin alone, and is stored nowhere."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from bot.chat.sign_in import LINK_SECONDS, SignIn
from tests.adapters.test_rights import appoint, every_platform, place_of, reply_to
from tests.harness.fakes import FastClock, ManualClock, ScriptedEngine
from tests.harness.platform_bench import Bench, open_bench

PAGE = "https://bot.example.org/web/signin"
LINK = re.compile(rf"{PAGE}#([\w-]{{43}})")


@asynccontextmanager
async def open_place(name: str, page: str = PAGE) -> AsyncIterator[tuple[Bench, SignIn, ManualClock]]:
    clock = ManualClock()
    sign_in = SignIn(clock, page)
    async with open_bench(name, ScriptedEngine(default="an answer"), FastClock(), sign_in=sign_in) as bench:
        appoint(bench, "Ada")
        if name == "telegram":
            bench.platform.private("Ada")  # type: ignore[attr-defined]  # she has written to the bot before
        yield bench, sign_in, clock


def private_texts(bench: Bench) -> list[str]:
    """Return what the bot has shown to Ada alone."""
    platform: Any = bench.platform
    if platform.name == "slack":
        ada, messages = platform.workspace.user("Ada"), platform.workspace.messages.values()
        return [each.text for each in messages if each.for_user == ada]
    return [seen.markdown for seen in platform.seen("Ada") if seen.author == "bot"]


def open_texts(bench: Bench) -> list[str]:
    platform: Any = bench.platform
    if platform.name == "slack":
        return [str(each) for each in platform.workspace.messages.values() if each.for_user is None]
    return [seen.markdown for seen in platform.seen("general")]


def tokens(texts: list[str]) -> list[str]:
    return [token for text in texts for token in LINK.findall(text)]


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@every_platform
async def test_the_link_reaches_the_admin_alone_and_signs_in_once(name: str, lines: list[Any]) -> None:
    async with open_place(name) as (bench, sign_in, _):
        told = await reply_to(bench, "signin", "Ada")
        await bench.platform.until(lambda: bool(tokens(private_texts(bench))))
        assert "link" in told or name == "slack"  # there both texts are in the channel
        (token,) = tokens(private_texts(bench))
        assert tokens(open_texts(bench)) == []
        stored = b"".join(path.read_bytes() for path in bench.database.parent.iterdir())
        rows = [exchange.answer for exchange in await bench.intake.said_in(place_of(bench.platform, "general"), 9)]
        assert token not in str(rows) + str(lines)
        assert token.encode() not in stored
        person = sign_in.redeem(token)
        assert person is not None
        assert person.name == "Ada"
        assert sign_in.redeem(token) is None
    assert bench.platform.violations == []


@every_platform
async def test_others_get_none(name: str) -> None:
    async with open_place(name) as (bench, _, _):
        assert "Only admins" in await reply_to(bench, "signin", "Uma")
        assert tokens(open_texts(bench) + private_texts(bench)) == []


@pytest.mark.parametrize("name", ["discord", "telegram"])
async def test_refused_direct_messages_are_explained(name: str) -> None:
    async with open_place(name) as (bench, _, _):
        platform: Any = bench.platform
        appoint(bench, "Eve")  # on Telegram she has never written to the bot
        if name == "discord":
            platform.forbidden.add(platform.direct("Eve"))
        assert "I cannot send you a direct message" in await reply_to(bench, "signin", "Eve")


async def test_without_an_address_no_link_is_sent_and_a_sentence_says_why() -> None:
    async with open_place("discord", "") as (bench, _, _):
        assert "server.public_url" in await reply_to(bench, "signin", "Ada")
        assert private_texts(bench) == []


async def test_a_link_ends_after_five_minutes_and_with_the_next_one() -> None:
    async with open_place("discord") as (bench, sign_in, clock):
        for _ in range(3):
            await reply_to(bench, "signin", "Ada")
        await bench.platform.until(lambda: len(tokens(private_texts(bench))) == 3)
        first, second, third = tokens(private_texts(bench))
        assert sign_in.redeem(first) is None
        assert sign_in.redeem(second) is None
        await clock.advance(LINK_SECONDS)
        assert sign_in.redeem(third) is None

"""The bot on loopback platforms with a model server that sees, killed while it fetches a picture and while it answers."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.domain import Action
from tests.chaos.processes import run_bot, until
from tests.harness.platform_bench import PROFILES
from tests.harness.servers.model_server import ModelServer, delta, hang, refuse
from tests.reading.hostile_pictures import drawn

CAT = ("cat.png", drawn("PNG", (2000, 1000)), "image/png")


async def say(platform: Any, text: str) -> object:
    """Say something with a picture, as the platform's clients attach it."""
    file = platform.file(*CAT)
    match platform.name:
        case "telegram":
            return await platform.say(text, direct=True, attached=file)
        case "slack":
            return await platform.say(text, direct=True, files=[file])
        case _:
            return await platform.say(text, direct=True, attachments=[file])


def replies(platform: Any) -> list[str]:
    return [seen.markdown for seen in platform.seen("Mei") if seen.author == "bot"]


def settings(server: ModelServer) -> dict[str, str]:
    return {"BOT_ENGINE__BACKEND": "remote", "BOT_ENGINE__URLS": server.url, "BOT_ENGINE__VISION": "true"}


def is_answered(platform: Any) -> Callable[[], bool]:
    return lambda: bool(replies(platform)) and Action.RETRY in platform.seen("Mei")[-1].actions


@pytest.mark.parametrize("name", PROFILES)
async def test_after_a_kill_while_a_picture_is_fetched_the_question_is_answered_once(tmp_path: Path, name: str) -> None:
    platform: Any = PROFILES[name].open()
    async with ModelServer(["a cat"]) as server, platform:
        platform.shelf.is_open.clear()
        async with run_bot({name: platform}, tmp_path, settings(server)) as bot:
            await bot.connected()
            await say(platform, "what is it?")
            await until(lambda: bool(platform.shelf.asked))
        platform.shelf.is_open.set()
        async with run_bot({name: platform}, tmp_path, settings(server)) as bot:
            await bot.connected()
            await platform.until(is_answered(platform))
        assert replies(platform) == ["a cat"]
        assert [len(each) for each in server.pictures] == [1]


async def test_after_a_kill_in_an_answer_the_picture_is_not_fetched_again(tmp_path: Path) -> None:
    platform: Any = PROFILES["discord"].open()
    async with ModelServer(["a cat"]) as server, platform:
        server.then(hang(delta("a")))
        async with run_bot({"discord": platform}, tmp_path, settings(server)) as bot:
            await bot.connected()
            await say(platform, "what is it?")
            await platform.until(lambda: "a" in "".join(replies(platform)))
        async with run_bot({"discord": platform}, tmp_path, settings(server)) as bot:
            await bot.connected()
            await platform.until(is_answered(platform))
        assert replies(platform) == ["a cat"]
        assert len(platform.shelf.asked) == 1
        assert server.pictures[0] == server.pictures[1] != []


async def test_a_server_that_refuses_pictures_answers_once_without_them(tmp_path: Path) -> None:
    platform: Any = PROFILES["discord"].open()
    async with ModelServer(["an answer"]) as server, platform:
        server.then(refuse(400, {"error": {"message": "scripted is not a multimodal model"}}))
        async with run_bot({"discord": platform}, tmp_path, settings(server)) as bot:
            await bot.connected()
            await say(platform, "what is it?")
            await platform.until(is_answered(platform))
            assert [len(each) for each in server.pictures] == [1, 0]
            await asyncio.gather(say(platform, "and this?"), platform.until(lambda: len(replies(platform)) == 2))
            await platform.until(is_answered(platform))
        line = "I cannot see pictures, so I skipped cat.png."
        assert ["an answer" in text and line in text for text in replies(platform)] == [True, True]
        assert [len(each) for each in server.pictures] == [1, 0, 0]

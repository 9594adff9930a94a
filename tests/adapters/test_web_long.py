"""A long conversation in the web chat: the event loop serves others while a page is made of it."""

import asyncio
import json
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from uuid import uuid4

import pytest

from bot.chat.intake import Intake
from bot.domain import ChannelKey, Exchange
from tests.adapters.test_web import Tab, browser, cookie_of, has, served
from tests.harness.fakes import ScriptedEngine
from tests.harness.loop_monitor import LoopMonitor

QUESTION = "many words " * 1000
ANSWER = "这是一个关于代码的句子，它有一些文字。\n\n" * 400


def first_event(url: str, path: str, cookies: dict[str, str]) -> bytes:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", path, headers={"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())})
    response = connection.getresponse()
    while not (line := response.readline()).startswith(b"data: "):
        pass
    connection.close()
    return line.removeprefix(b"data: ")


async def test_a_page_of_a_long_conversation_does_not_hold_up_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, ScriptedEngine("an answer")) as url, browser(url) as http:
        tab = Tab(http, uuid4().hex)
        await tab.ask("a question")
        await tab.until(has(1))
        read = Intake.said_in

        async def said(intake: Intake, channel: ChannelKey, limit: int) -> list[Exchange]:
            (row,) = await read(intake, channel, 1)
            assert row.answer is not None
            long = replace(row, answer=replace(row.answer, text=ANSWER))
            return [replace(long, message=replace(row.message, id=uuid4().hex, text=QUESTION)) for _ in range(limit)]

        monkeypatch.setattr(Intake, "said_in", said)
        monkeypatch.setattr(Intake, "openings", said)
        with LoopMonitor() as monitor:
            path = f"/web/events?chat={tab.chat}&listed=500"
            event = await asyncio.to_thread(first_event, url, path, cookie_of(http))
    news = json.loads(event)
    assert [each["text"] for each in news["exchanges"]] == [ANSWER] * 200
    assert len(news["chats"]) == 500
    assert monitor.slow == []

"""R27: streams of model servers broken at random bytes, over 3 endpoints.

Users ask in many channels of a loopback platform.  Of the first servers one continues answers as vLLM does,
one as llama-server, one not at all; of the second servers none does.  About half of all streams are cut at a random byte, by a reset or as if
they were whole; some requests get a 500 first.  Each answer must stand once: whole, or its beginning with a sentence and the button.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import Action
from bot.engine.backends.remote import RemoteEngine
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock
from tests.harness.platform import Seen
from tests.harness.platform_bench import Bench, open_bench, without_spaces
from tests.harness.servers.model_server import STOPPED, ModelServer, delta, event

NAME = "R27"

# Streams to break, and channels that ask at once.
_SIZES: dict[Scale, tuple[int, int]] = {"full": (1000, 20), "short": (30, 4)}
_OWNERS = {"continuing": ("vllm", "llamacpp", "tests"), "others": ("tests", "tests", "tests")}
_SHARE = 0.5
_REFUSED = 0.1
# At this speed a server's longest pause is a few seconds.
_FACTOR = 20.0
_QUESTION = re.compile(r"q\d+e")
_SENTENCES = ("(The answer broke off here", "Something went wrong")


@dataclass
class BrokenStreams:
    """Counts the streams that are broken, and those that continue another."""

    wanted: int
    chance: random.Random
    broken: int = 0
    rests: int = 0
    refused: int = 0
    answers: dict[str, str] = field(default_factory=dict)

    def text(self, question: str) -> list[str]:
        """Return the answer to a question: the same on each server, unlike all others."""
        number = _QUESTION.search(question)
        assert number is not None, "every question has its number"
        words = random.Random(number[0])
        middle = [
            words.choice(["中文，", "words ", "**bold** ", "a\n\nparagraph ", "😀 "])
            for _ in range(words.randrange(3, 60))
        ]
        pieces = [f"{number[0]}: ", *middle, "end."]
        self.answers[number[0]] = "".join(pieces)
        return pieces

    async def behave(self, server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Send the answer, or its beginning."""
        if self.chance.random() < _REFUSED:
            self.refused += 1
            return web.Response(status=500)
        self.rests += body["messages"][-1]["role"] == "assistant"
        data = b"".join(map(delta, server.answer_to(body))) + event(STOPPED) + b"data: [DONE]\n\n"
        is_broken = self.broken < self.wanted and self.chance.random() < _SHARE
        response = await server.stream(request)
        size = len(data)
        if is_broken:
            self.broken += 1
            # A stream that lacks only [DONE] is whole.
            size = self.chance.randrange(data.index(event(STOPPED)))
        await response.write(data[:size])
        if is_broken and self.chance.random() < _SHARE and request.transport is not None:
            await asyncio.sleep(0)
            request.transport.abort()
        return response


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for subject in _OWNERS:
        yield await break_streams(subject, *_SIZES[scale], seed)


async def break_streams(subject: str, wanted: int, channels: int, seed: int) -> Row:
    """Let users ask until this many streams were broken."""
    streams = BrokenStreams(wanted, random.Random(f"{seed} {subject}"))
    questions: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(ModelServer(streams.text, owner=owner)) for owner in _OWNERS[subject]
        ]
        for server in servers:
            server.default = streams.behave
        section = EngineSection(
            backend="remote", urls=tuple(each.url for each in servers), model="scripted", context_length=100_000
        )
        clock = FastClock(_FACTOR)
        bench = await stack.enter_async_context(open_bench("discord", RemoteEngine(section, clock), clock))

        async def ask(channel: str) -> None:
            while streams.broken < wanted:
                question = f"q{len(questions)}e"
                questions[question] = channel
                await bench.ask(question, channel)

        async with asyncio.TaskGroup() as tasks:
            for number in range(channels):
                tasks.create_task(ask(f"room {number}"))
        return _row(subject, bench, streams, questions)


def _row(subject: str, bench: Bench, streams: BrokenStreams, questions: dict[str, str]) -> Row:
    whole = ended = unanswered = 0
    wrong: list[str] = []
    for channel in set(questions.values()):
        replies = bench.replies(channel)
        asked = [question for question, where in questions.items() if where == channel]
        if len(replies) != len(asked):
            wrong.append(f"{len(replies)} replies to {len(asked)} questions")
        for question, reply in zip(asked, replies, strict=False):
            kind = _kind(streams.answers.get(question, ""), reply)
            whole += kind == "whole"
            ended += kind == "ended"
            unanswered += kind == "unanswered"
            if kind == "wrong":
                wrong.append(f"{question}: {reply.markdown[:200]!r}")
    result = (
        f"{streams.broken:,} streams broken, {streams.refused} answered 500, {len(questions):,} questions: whole {whole} "
        f"(continued {streams.rests} times), ended by a sentence with a button {ended + unanswered} "
        f"({unanswered} without text), replaced silently or twice {len(wrong)}"
    )
    is_tried = streams.rests > 0 if subject == "continuing" else ended > 0
    return Row(subject, "\n     ".join([result, *wrong[:5]]), not wrong and whole > 0 and is_tried)


def _kind(answer: str, reply: Seen) -> str:
    shown, wanted = without_spaces(reply.markdown), without_spaces(answer)
    if Action.RETRY not in reply.actions:
        return "wrong"
    if shown == wanted:
        return "whole"
    for sentence in _SENTENCES:
        before, found, _ = shown.partition(without_spaces(sentence))
        if found:
            if not before:
                return "unanswered"
            return "ended" if wanted.startswith(before) else "wrong"
    return "wrong"

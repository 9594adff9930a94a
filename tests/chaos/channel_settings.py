"""R30: channels with personas and models of their own: what a prompt has of another channel.

Questions come shuffled and many at once, while personas and models are set in the chat.  Each
question, answer and persona has the number of its channel; every prompt that reaches the engine
is searched for the numbers of others.
"""

import asyncio
import random
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bot.config.schema import AccessSection, Config
from bot.domain import Author, ChannelKey, ChatRequest, IncomingMessage
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, make_harness
from tests.harness.messages import a_message

NAME = "R30"

_CHANNELS = {"full": 200, "short": 30}
_SHORT_QUESTIONS = 300
# `make reliability ARGS="R30 --questions 2000"` changes it.
QUESTIONS = 20_000
# In memory if possible, as in R2.
_MEMORY = Path("/dev/shm")  # the parent of a temporary folder
ADA, MODELS = Author("discord", "9", "Ada"), ["engine", "big", "small"]
# Questions that are answered at the same time.
AT_ONCE = 40


@dataclass
class PromptsSeen:
    """The prompts that reached the engine, and what was wrong with them."""

    channels: int
    questions: int
    changes: int = 0
    prompts: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        wrong = ", ".join(f"{kind} {self.wrong[kind]}" for kind in ("text", "persona", "model"))
        return (
            f"{self.channels} channels with {self.channels} personas and {len(MODELS)} models, settings changed "
            f"{self.changes:,} times, questions {self.questions:,}, prompts {self.prompts:,}: of another channel: {wrong}"
        )

    @property
    def is_kept(self) -> bool:
        return not self.wrong and self.prompts == self.questions


def place(number: int) -> ChannelKey:
    """Return the channel with this number; every fifth one is a thread of the one before."""
    if number % 5 == 4:
        return ChannelKey("discord", f"c{number - 1}", f"t{number}")
    return ChannelKey("discord", f"c{number}")


def config(channels: int) -> Config:
    """Half of the channels have their persona from config.toml, the others from the chat."""
    tables: dict[str, Any] = {
        "models": {name: {"model": "demo"} for name in MODELS[1:]},
        "personas": {f"p{number}": {"system_prompt": f"persona of [{number}]"} for number in range(channels)},
        "platforms": {"discord": {"models": MODELS}},
        "channels": {},
        "threads": {},
    }
    for number in range(0, channels, 2):
        table = tables["channels"] if place(number).thread is None else tables["threads"]
        table[str(place(number))] = {"persona": f"p{number}", "model": MODELS[number % 3]}
    return Config(**tables)


def wrongs(request: ChatRequest, number: int) -> Iterator[str]:
    """Yield what a prompt has of another channel than its own."""
    system = [message.content for message in request.messages if message.role == "system"]
    if system != [f"persona of [{number}]"]:
        yield "persona"
    if request.model != MODELS[number % 3]:
        yield "model"
    if {word for message in request.messages for word in re.findall(r"\[(\d+)\]", message.content)} != {str(number)}:
        yield "text"


def echo(request: ChatRequest) -> str:
    return f"answer to: {request.messages[-1].content}"


async def ask_everywhere(folder: Path, channels: int, questions: int, seed: int) -> PromptsSeen:
    """Ask shuffled questions in all channels while settings change; check the prompts."""
    chance = random.Random(f"{seed} channel settings")
    by_channel = {str(place(number)): number for number in range(channels)}
    result = PromptsSeen(channels, questions)
    engine = ScriptedEngine(default=echo, context_length=100_000, max_waiting=10_000)
    async with make_harness(folder, engine, access=AccessSection(admins=(ADA.key,)), limits=NO_LIMITS) as harness:
        harness.settings.reconfigure(config(channels))

        def sent(text: str, number: int, author: Author) -> IncomingMessage:
            return a_message(text, channel=place(number), author=author, is_direct=False, server="s1")

        async def choose(number: int) -> None:
            by_name = chance.random() < 0.5
            persona = f"use p{number}" if by_name else f"set persona of [{number}]"
            await harness.ask(sent(f"/persona {persona}", number, ADA))
            await harness.ask(sent(f"/model {MODELS[number % 3]}", number, ADA))
            result.changes += 2

        for number in range(1, channels, 2):
            await choose(number)
        left = iter([chance.randrange(channels) for _ in range(questions)])
        while batch := list(islice(left, AT_ONCE)):
            author = Author("discord", str(chance.randrange(5)), "Mei")
            asked = [harness.ask(sent(f"question of [{number}]", number, author)) for number in batch]
            await asyncio.gather(*asked, choose(chance.choice(batch)))
    result.prompts = len(engine.requests)
    result.wrong.update(each for request in engine.requests for each in wrongs(request, by_channel[request.channel]))
    return result


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    questions = QUESTIONS if scale == "full" else _SHORT_QUESTIONS
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        result = await ask_everywhere(Path(folder), _CHANNELS[scale], questions, seed)
    yield Row("all parts", str(result), result.is_kept)

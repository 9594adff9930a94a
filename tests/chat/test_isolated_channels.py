"""No prompt has text, persona or model of another channel, whatever else is asked and set meanwhile.

python -m tests.chat.test_isolated_channels [QUESTIONS [CHANNELS]]
"""

import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bot.config.schema import AccessSection, Config
from bot.domain import Author, ChannelKey, ChatRequest, IncomingMessage
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, make_harness
from tests.harness.messages import a_message

ADA, MODELS = Author("discord", "9", "Ada"), ["engine", "big", "small"]
# Questions that are answered at the same time.
AT_ONCE = 40


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


async def run(folder: Path, channels: int, questions: int, seed: int) -> tuple[int, Counter[str]]:
    """Ask shuffled questions in all channels; return the number of prompts and what was wrong with them."""
    chance = random.Random(seed)
    by_channel = {str(place(number)): number for number in range(channels)}
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

        for number in range(1, channels, 2):
            await choose(number)
        numbers = [chance.randrange(channels) for _ in range(questions)]
        left = iter(numbers)
        while batch := list(islice(left, AT_ONCE)):
            author = Author("discord", str(chance.randrange(5)), "Mei")
            asked = [harness.ask(sent(f"question of [{number}]", number, author)) for number in batch]
            await asyncio.gather(*asked, choose(chance.choice(batch)))
    wrong = Counter(each for request in engine.requests for each in wrongs(request, by_channel[request.channel]))
    return len(engine.requests), wrong


async def test_no_prompt_has_anything_of_another_channel(tmp_path: Path) -> None:
    assert await run(tmp_path, channels=30, questions=300, seed=1) == (300, Counter())


if __name__ == "__main__":
    wanted, rooms = ([int(word) for word in sys.argv[1:]] + [20_000, 200][len(sys.argv) - 1 :])[:2]
    began = time.monotonic()
    with TemporaryDirectory() as directory:
        prompts, wrong = asyncio.run(run(Path(directory), rooms, wanted, seed=1))
    seconds = time.monotonic() - began
    for line in (
        f"{prompts} prompts in {rooms} channels, {rooms} personas, {len(MODELS)} models, {seconds:.0f} s",
        f"with another channel's text, persona or model: {wrong.total()}",
    ):
        sys.stdout.write(f"{line}\n")
    sys.exit(bool(wrong) or prompts != wanted)

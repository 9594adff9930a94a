"""Times the engine as a whole: clients that all ask at once, and read their answers to the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from benchmarks.figures import Served, Spread
from benchmarks.options import Options
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, SamplingParams
from bot.engine.base import Engine
from bot.engine.chatglm.text import AnswerStream
from bot.engine.serving.base import Detokenizer


class Words(Protocol):
    """What of a tokenizer is measured: the way from ids to text."""

    @property
    def vocabulary(self) -> int: ...

    def detokenizer(self) -> Detokenizer: ...


class FixedLength:
    """A `Tokenizer` that makes all answers equally long: one prompt for all, and no id ends an answer."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, prompt: Sequence[int], words: Words) -> None:
        self.vocabulary = words.vocabulary
        self.detokenizer = words.detokenizer
        self._prompt = list(prompt)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        return self._prompt


@dataclass(frozen=True, slots=True)
class MadeUpWords:
    """`Words` for a model of random weights: each id is a word of its own, tidied like a real answer."""

    vocabulary: int
    leading_spaces_dropped: int = 1

    def detokenizer(self) -> Detokenizer:
        return AnswerStream(self)

    def surface(self, token: int) -> str:
        return f"▁{token}"


@dataclass(frozen=True, slots=True)
class Round:
    """What `clients` asking at once have seen."""

    tokens_per_second: float
    first_text_seconds: tuple[float, ...]
    gap_seconds: tuple[float, ...] = ()  # between one piece of an answer and the next, of all answers


async def one_round(engine: Engine, clients: int, options: Options) -> Round:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_ask(engine, number, options.tokens)) for number in range(clients)]
    seconds = time.perf_counter() - began
    answers = [task.result() for task in tasks]
    return Round(
        sum(tokens for tokens, _ in answers) / seconds,
        tuple(times[0] for _, times in answers),
        tuple(later - earlier for _, times in answers for earlier, later in pairwise(times)),
    )


async def measure_clients(engine: Engine, options: Options, watch: Callable[[int], None]) -> tuple[Served, Served]:
    """Time one client and all of them in turn, so that a busy machine slows both down alike."""
    counts = (1, options.clients)
    rounds: dict[int, list[Round]] = {count: [] for count in counts}
    for count in counts:
        await one_round(engine, count, options)  # a warm-up
    for done in range(options.repeat):
        watch(done)
        for count in counts:
            rounds[count].append(await one_round(engine, count, options))
    one, many = (_summary(count, rounds[count]) for count in counts)
    return one, many


def _summary(clients: int, rounds: Sequence[Round]) -> Served:
    return Served(
        clients,
        Spread.of(each.tokens_per_second for each in rounds),
        Spread.of(seconds for each in rounds for seconds in each.first_text_seconds),
    )


async def _ask(engine: Engine, number: int, tokens: int) -> tuple[int, list[float]]:
    """Ask one question; return how many tokens came, and after how many seconds each piece of text."""
    params = SamplingParams(max_tokens=tokens, seed=number)
    name = f"client {number}"
    request = ChatRequest((ChatMessage("user", name),), params, channel=name, user=name)
    began = time.perf_counter()
    times: list[float] = []
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta) or (isinstance(event, Finished) and not times):
                times.append(time.perf_counter() - began)
            if isinstance(event, Finished):
                return event.usage.completion_tokens, times
    raise AssertionError("an engine's stream ends with Finished")

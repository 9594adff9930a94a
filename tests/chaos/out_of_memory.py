"""R13: out-of-memory errors in the model.

The real engine with the demo model, inside the whole chat.  Random steps fail, prefills and
decodes, before or after keys and values are written: for one request in any batch, for
batches above a size, or transiently.  Each answer is compared with an undisturbed run.  With
a model server they are 500s and dropped streams.
"""

import asyncio
import logging
import random
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.domain import (
    Author,
    ChannelKey,
    ChatMessage,
    Delta,
    EngineInfo,
    Finished,
    FinishReason,
    Notice,
    SamplingParams,
)
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.storage.sql import SqlStore
from bot.util.clock import MonotonicClock
from tests.chaos.figure import Row, Scale
from tests.harness import platform_bench
from tests.harness.fakes import FastClock
from tests.harness.messages import a_message

NAME = "R13"

SLOTS = 6
# Bytes that a step holds when it fails.
BALLAST = 1 << 20
SECONDS = 2.0
QUESTIONS = (
    "hello",
    "what is quantization?",
    "how do I clear you?",
    "你好",
    "who are you?",
    "what can you do?",
    "thank you",
)
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592"
    ),
    MemoryError,
)

_askers = count()
Shortage = Literal["one request", "together", "in passing"]
SHORTAGES: tuple[Shortage, ...] = ("one request", "together", "in passing")


class Ballast:
    """Stand-in for the tensors of a failed step: freed once nothing holds its frames."""

    def __init__(self) -> None:
        self.memory = bytearray(BALLAST)


class LowMemoryModel:
    """The demo model with injected out-of-memory errors."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.context_length, self.slots = model.context_length, model.slots
        self.ballasts: list[weakref.ref[Ballast]] = []
        self.failures = Counter[str]()
        self.fails: Callable[[Batch], bool] = lambda batch: False
        self.error: Callable[[], Exception] = MemoryError
        self.is_written = False
        self.prompts: dict[int, tuple[int, ...]] = {}  # of each slot

    def forward(self, batch: Batch) -> Tensor:
        if batch.is_prefill:
            self.prompts.update(zip(batch.slots, batch.tokens, strict=True))
        ballast = Ballast()
        fails = self.fails(batch)
        logits = self._model.forward(batch) if self.is_written or not fails else None
        if fails or logits is None:
            self.ballasts.append(weakref.ref(ballast))
            self.failures["prefills" if batch.is_prefill else "decodes"] += 1
            raise self.error()
        return logits


@dataclass
class Tally:
    rounds: int = 0
    asked: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    victims: int = 0
    told: int = 0
    harmed: list[str] = field(default_factory=list)  # other requests in the batch
    held: int = 0
    next_failed: int = 0
    slowest_next: float = 0.0

    def __str__(self) -> str:
        return (
            f"failed prefills {self.failures['prefills']:,}, decodes {self.failures['decodes']:,}; asked {self.asked:,}, "
            f"of {self.victims:,} without memory {self.told:,} were told in one sentence, others harmed "
            f"{len(self.harmed)}; memory still held {self.held}; the next one answered "
            f"{self.rounds - self.next_failed:,} of {self.rounds:,}, within {self.slowest_next:.2f} s"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.harmed or self.held or self.next_failed) and self.told == self.victims


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    notice: str
    reason: FinishReason


@dataclass(frozen=True)
class Harness:
    model: LowMemoryModel
    tokenizer: ChatGLMTokenizer
    intake: Intake
    store: SqlStore

    async def ask(self, question: str) -> Reply:
        # A new author and channel each time: no limit applies, and no question waits for another.
        number = next(_askers)
        channel, author = ChannelKey("discord", f"c{number}"), Author("discord", f"u{number}", "Mei")
        exchange = await self.intake.accept(a_message(question, channel=channel, author=author))
        assert exchange is not None, "no limit applies"
        async with self.intake.answers.stream(exchange) as stream:
            events = [event async for event in stream]
        await self.intake.exchanges.complete(exchange)
        end = events[-1]
        assert isinstance(end, Finished)
        return Reply(
            "".join(event.text for event in events if isinstance(event, Delta)),
            "\n".join(event.text for event in events if isinstance(event, Notice)),
            end.reason,
        )


@asynccontextmanager
async def make_harness(max_tokens: int) -> AsyncIterator[Harness]:
    model, tokenizer = LowMemoryModel(load(DEMO, device="cpu", slots=SLOTS)), ChatGLMTokenizer.load(DEMO)
    info = EngineInfo("demo", "chatglm", "none", "float32", "cpu", model.context_length)
    clock, settings = MonotonicClock(), ConversationSection(name_speakers=False)
    limits = LimitsSection(requests_per_minute=0, requests_per_minute_channel=0, tokens_per_hour=0)
    engine = ServingEngine(lambda progress: LoadedModel(model, tokenizer, info), max_waiting=64)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bot.db'}"
        # A server that fails rests for seconds of this clock.
        served = platform_bench.wrap_engine(engine, FastClock(20))
        async with SqlStore(url) as store, served as answering:
            params = SamplingParams(temperature=0, max_tokens=max_tokens)
            access = Access(AccessSection(), limits, clock)
            yield Harness(
                model,
                tokenizer,
                Intake(access, answering, store, ChatSettings(settings, params, limits.answer_seconds)),
                store,
            )


def shortage(harness: Harness, kind: Shortage, dice: random.Random, victim: str) -> Callable[[Batch], bool]:
    """Return which steps fail; `victim` is the question without memory."""
    model = harness.model
    prompt = tuple(harness.tokenizer.prompt((ChatMessage("user", victim),)))
    after = dice.choice((0, dice.randrange(1, 12)))  # tokens of its answer; 0 is its prefill
    together = dice.randint(1, 3)
    was_short = False

    def one_request(batch: Batch) -> bool:
        rows = zip(batch.slots, batch.tokens, batch.starts, strict=True)
        return any(
            model.prompts[slot] == prompt and start + len(fed) >= len(prompt) + after for slot, fed, start in rows
        )

    def in_passing(batch: Batch) -> bool:
        nonlocal was_short
        was_short = not was_short and dice.random() < 0.1
        return was_short

    match kind:
        case "one request":
            return one_request
        case "together":
            return lambda batch: len(batch) > together
        case "in passing":
            return in_passing


async def run_round(
    harness: Harness, kind: Shortage, dice: random.Random, undisturbed: dict[str, Reply], tally: Tally
) -> None:
    """Ask several questions while memory is short, and one after it has recovered."""
    model = harness.model
    questions = dice.sample(QUESTIONS, dice.randint(2, SLOTS))
    victim = questions[0]
    model.error, model.is_written = dice.choice(ERRORS), dice.random() < 0.5
    model.fails = shortage(harness, kind, dice, victim)
    replies = dict(zip(questions, await asyncio.gather(*map(harness.ask, questions)), strict=True))
    model.fails = lambda batch: False
    tally.rounds += 1
    tally.asked += len(questions)
    for question, reply in replies.items():
        if reply == undisturbed[question]:
            continue
        if kind == "one request" and question == victim and reply.reason is FinishReason.ERROR:
            tally.victims += 1
            tally.told += bool(reply.notice) and undisturbed[question].text.startswith(reply.text)
        else:
            tally.harmed.append(f"{kind}: {question}")
    began = time.monotonic()
    tally.next_failed += await harness.ask(victim) != undisturbed[victim]
    tally.slowest_next = max(tally.slowest_next, time.monotonic() - began)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    dice = random.Random(seed)
    # Each failure logs a traceback, which would bury the table.
    log = logging.getLogger("bot.engine.serving.runner")
    log.disabled, was_disabled = True, log.disabled
    try:
        # A step fails within 12 tokens: a short answer has the same failures.
        async with make_harness(max_tokens=48 if scale == "full" else 16) as harness:
            undisturbed = {question: await harness.ask(question) for question in QUESTIONS}
            for kind in SHORTAGES:
                tally = Tally()
                harness.model.failures, harness.model.ballasts = tally.failures, []
                for _ in range(60 if scale == "full" else 4):
                    await run_round(harness, kind, dice, undisturbed, tally)
                tally.held = sum(ballast() is not None for ballast in harness.model.ballasts)
                yield Row(kind, str(tally), tally.is_kept, tally.slowest_next <= SECONDS)
    finally:
        log.disabled = was_disabled

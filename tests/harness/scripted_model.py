"""A scripted CausalLM and Tokenizer: the model repeats its prompt, byte by byte."""

from __future__ import annotations

import asyncio
import codecs
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import torch
from torch import Tensor

from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, EngineInfo, SamplingParams, Tokens
from bot.engine.serving.base import Batch, Detokenizer
from bot.engine.serving.engine import LoadedModel, ServingEngine
from tests.harness.platform import TIMEOUT

START, STOP = 256, 257
VOCABULARY = 258

FOREVER = "forever "  # the answer to a prompt with this prefix never ends


class ByteDetokenizer:
    def __init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._bytes.decode(bytes([token]))

    def finish(self) -> str:
        return self._bytes.decode(b"", final=True)


class ByteTokenizer:
    vocabulary = VOCABULARY
    stop_ids = frozenset([STOP])

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        return [*"\n".join(message.content for message in messages).encode(), START]

    def tokenize(self, text: str) -> Tokens:
        ids = tuple(text.encode())
        return Tokens(ids, tuple(map(chr, ids)), (START,))

    def detokenizer(self) -> Detokenizer:
        return ByteDetokenizer()


class ScriptedModel:
    """Repeats each prompt, and asserts that its batches are consistent.

    `before` runs in every step, in the worker thread; it may wait or raise.  `after` may
    change the logits.
    """

    def __init__(self, slots: int = 4, context_length: int = 64) -> None:
        self.slots = slots
        self.context_length = context_length
        self.before: Callable[[Batch], None] = lambda batch: None
        self.after: Callable[[Batch, Tensor], Tensor] = lambda batch, logits: logits
        self.steps: list[Batch] = []
        self._cache: dict[int, list[int]] = {}

    def forward(self, batch: Batch) -> Tensor:
        self.steps.append(batch)
        self.before(batch)
        assert len(set(batch.slots)) == len(batch) <= self.slots
        logits = torch.zeros(len(batch), VOCABULARY + 2)
        for row, (slot, tokens, start) in enumerate(zip(batch.slots, batch.tokens, batch.starts, strict=True)):
            assert 0 <= slot < self.slots
            if batch.is_prefill:
                assert start == 0
                self._cache[slot] = []
            held = self._cache[slot]
            # A failed step may be retried.
            assert start in {len(held), len(held) - 1}, "the slot holds another sequence"
            del held[start:]
            assert start == 0 or len(tokens) == 1
            held += tokens
            assert len(held) <= self.context_length
            logits[row, self._next(held)] = 50.0
        return self.after(batch, logits)

    @staticmethod
    def _next(held: list[int]) -> int:
        prompt = held[: held.index(START)]
        said = len(held) - len(prompt) - 1
        if bytes(prompt).startswith(FOREVER.encode()):
            return ord("a") + said % 26
        return prompt[said] if said < len(prompt) else STOP


class Gate:
    """Blocks the model before each step until the test releases it."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, batch: Batch) -> None:
        self._arrived.release()
        if not self._is_open:
            assert self._go.acquire(timeout=600), "the test forgot to open the gate"

    async def arrival(self) -> None:
        """Wait until the model is blocked before the next step."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=600)

    async def step(self) -> None:
        """Release one step, and wait until the model is blocked before the next."""
        self._go.release()
        await self.arrival()

    def open(self) -> None:
        self._is_open = True
        self._go.release()


def loaded(model: ScriptedModel) -> LoadedModel:
    info = EngineInfo("scripted", "scripted", "none", "float32", "cpu", model.context_length)
    return LoadedModel(model, ByteTokenizer(), info)


@asynccontextmanager
async def serving(
    model: ScriptedModel, *, max_waiting: int = 8, now: Callable[[], float] = time.monotonic
) -> AsyncIterator[ServingEngine]:
    """Run an engine around the model; assert that its thread has ended afterwards."""
    engine = ServingEngine(lambda progress: loaded(model), max_waiting=max_waiting, now=now)
    async with asyncio.timeout(TIMEOUT), engine:
        yield engine
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def ask(text: str, user: str = "", channel: str = "", **params: object) -> ChatRequest:
    sampling = SamplingParams(**params)  # type: ignore[arg-type]  # each test names real fields
    return ChatRequest((ChatMessage("user", text),), sampling, channel=channel, user=user)


async def events(engine: ServingEngine, request: ChatRequest) -> list[EngineEvent]:
    return [event async for event in engine.generate(request)]


def text_of(seen: list[EngineEvent]) -> str:
    return "".join(event.text for event in seen if isinstance(event, Delta))


class Time:
    """A manual monotonic clock."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

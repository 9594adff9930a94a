"""Bounded queue and worker thread of an encoder."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple

import numpy as np

from bot.engine.embeddings.base import Embeddings, Encoder
from bot.errors import EngineBusy

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Tokens of a batch, padding included: a cancelled request holds the encoder until its batch ends.
BATCH_TOKENS = 4096
_BATCH_TEXTS = 64


class QueuedEmbedder:
    """An `Embedder`: open requests take turns, a batch each.

    An async context manager: entering loads the encoder in its thread, leaving drops it once its batch has ended.
    """

    def __init__(self, load: Callable[[], Encoder], *, normalize: bool = False, max_waiting: int = 16) -> None:
        self._load = load
        self._normalize = normalize
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embeddings")
        # First come, first served: a request with many batches waits behind all others after each.
        self._turn = asyncio.Lock()
        self._open = 0
        self._encoder: Encoder | None = None

    @property
    def name(self) -> str:
        return self._entered().name

    @property
    def dimensions(self) -> int:
        return self._entered().dimensions

    async def embed(self, texts: Sequence[str], *, normalize: bool | None = None) -> Embeddings:
        encoder = self._entered()
        if self._open > self._max_waiting:
            raise EngineBusy(self._open - 1, self._max_waiting, section="embeddings")
        self._open += 1
        try:
            async with self._turn:
                tokens = await self._run(encoder.tokenize, texts)
            vectors = np.zeros((len(texts), encoder.dimensions), np.float32)
            for rows in batches([len(ids) for ids in tokens]):
                async with self._turn:
                    vectors[rows] = await self._run(encoder.encode, [tokens[row] for row in rows])
        finally:
            self._open -= 1
        if encoder.normalizes or (self._normalize if normalize is None else normalize):
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return Embeddings(vectors, sum(map(len, tokens)))

    async def __aenter__(self) -> Self:
        self._encoder = await self._run(self._load)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder = None
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _entered(self) -> Encoder:
        assert self._encoder is not None, "enter it with `async with` first"
        return self._encoder

    async def _run(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of all texts in batches of about the same length, the longest first.

    >>> list(batches([2, 9, 3]))
    [[1, 2, 0]]
    >>> list(batches([3000, 1, 2000, 2000]))
    [[0], [2, 3], [1]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == _BATCH_TEXTS or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

"""One step through model and sampler; what fails, fails for the rows concerned and nobody else."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import torch

from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.sampler import Sampler
from bot.engine.serving.scheduler import Step
from bot.engine.serving.sequence import Sequence
from bot.errors import EngineFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

Outcome = str | EngineFailed  # the text that the step completed, often ''; or why the row ends

# Steps that go well before twice as many rows are decoded together again: each failure
# costs a collection of garbage, and a traceback in the log.
CALM = 200


class Runner:
    """Feeds steps to the model, and what the model says back to the sequences.

    Where a step of several rows fails, one may have failed the others, or all together
    were too much: its halves are tried, until the rows that fail alone are found.  A step
    that is run again writes the same keys and values to the same places.  A decode that
    was too much for the memory is made in smaller parts for a while.  What a broken device
    raises ends the worker: none of its steps will go well again.
    """

    def __init__(self, model: CausalLM, vocabulary: int) -> None:
        self._model = model
        self._sampler = Sampler(vocabulary)
        self._most_rows = model.slots
        self._calm = 0

    def run(self, step: Step[Sequence]) -> dict[Sequence, Outcome]:
        """Give each of the step's sequences its next token, or the reason why it gets none."""
        outcomes: dict[Sequence, Outcome] = {}
        for part in _parts(step, len(step.jobs) if step.is_prefill else self._most_rows):
            outcomes |= self._run(part)
        return outcomes

    def _run(self, step: Step[Sequence]) -> dict[Sequence, Outcome]:
        jobs = step.jobs
        tokens = _guarded(lambda: self._tokens(jobs))
        if isinstance(tokens, _MemoryIsFull) and len(jobs) == 1:
            tokens = _guarded(lambda: self._tokens(jobs))  # with what was given back there may be enough
        if not isinstance(tokens, EngineFailed):
            self._note_success()
            return {sequence: _take(sequence, token) for sequence, token in zip(jobs, tokens, strict=True)}
        if len(jobs) == 1:
            return dict.fromkeys(jobs, tokens)
        half = (len(jobs) + 1) // 2
        outcomes: dict[Sequence, Outcome] = {}
        for part in _parts(step, half):
            outcomes |= self._run(part)
        if (
            isinstance(tokens, _MemoryIsFull)
            and not step.is_prefill
            and not any(isinstance(each, EngineFailed) for each in outcomes.values())
        ):
            self._most_rows, self._calm = min(half, self._most_rows), 0
        return outcomes

    def _note_success(self) -> None:
        self._calm += 1
        if self._calm >= CALM:
            self._most_rows, self._calm = min(2 * self._most_rows, self._model.slots), 0

    @torch.inference_mode()
    def _tokens(self, jobs: Mapping[Sequence, int]) -> list[int | None]:
        batch = Batch(
            slots=tuple(jobs.values()),
            tokens=tuple(sequence.next_input for sequence in jobs),
            starts=tuple(sequence.cached for sequence in jobs),
        )
        return self._sampler.draw(self._model.forward(batch), [sequence.row for sequence in jobs])


class _MemoryIsFull(EngineFailed):
    """There was no memory for a step."""


def _parts(step: Step[Sequence], rows: int) -> Iterator[Step[Sequence]]:
    """Cut a step into steps of at most so many rows."""
    every = iter(step.jobs.items())
    while part := dict(islice(every, rows)):
        yield Step(part, step.is_prefill)


def _take(sequence: Sequence, token: int | None) -> Outcome:
    if token is None:
        return EngineFailed("the model's numbers are no numbers any more (NaN or inf); this answer ends here")
    return _guarded(lambda: sequence.take(token))


def _guarded(work: Callable[[], T]) -> T | EngineFailed:
    try:
        return work()
    except Exception as error:
        # Whatever a model or a device raises, the loop has others to serve.
        log.exception("a step of the model failed")
        failure = (_MemoryIsFull if is_out_of_memory(error) else EngineFailed)(_sentence(error))
    # Outside the handler: inside it the traceback still holds the failed step's tensors.
    if isinstance(failure, _MemoryIsFull):
        # The young: what a step leaves behind is young, and to look at all there is would stop the event
        # loop for half a second.
        gc.collect(1)
        return_memory()
    else:
        _raise_if_broken()
    return failure


def _raise_if_broken() -> None:
    """Ask the devices whether the failure is theirs: after some errors CUDA raises at each call until the process ends."""
    for device in _reserved():
        torch.cuda.synchronize(device)


def device_memory() -> int:
    """Bytes that torch holds on CUDA devices, its reserve included."""
    return sum(_reserved().values())


def _reserved() -> dict[int, int]:
    """Bytes by device; one that we hold nothing of is not spoken to, for that alone would take memory there."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {device: held for device in devices if (held := torch.cuda.memory_reserved(device))}


def return_memory() -> None:
    """Give back to the device what torch keeps in reserve."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise what torch raises when memory runs out; on a CPU that is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def _sentence(error: Exception) -> str:
    if is_out_of_memory(error):
        return "there is not enough memory for this answer; a lower engine.max_batch_size or int4 needs less"
    return f"a step of the model failed ({type(error).__name__}); the log has the details"

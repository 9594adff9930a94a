"""Run steps on model and sampler, and isolate failures to the rows that cause them."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.lookup import PromptLookup, share_drafts
from bot.engine.serving.sampler import Sampler
from bot.engine.serving.scheduler import Step
from bot.engine.serving.sequence import Sequence
from bot.errors import EngineFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

StepResult = str | EngineFailed  # the text that the step completed, often ''; or the failure that ends the row

Drafts = Mapping[Sequence, tuple[int, ...]]
"""Tokens that may follow the last one of a sequence."""

_NOT_FINITE = "the model returned NaN or infinite logits, so this answer ends here"

# Successful steps before the row limit doubles again: each out-of-memory costs a garbage
# collection and a traceback in the log.
STEPS_BEFORE_GROWTH = 200


class Runner:
    """Runs steps on the model, and appends sampled tokens to their sequences.

    A failed step of several rows is bisected until the failing rows are found.  Retrying is
    idempotent: it writes the same keys and values to the same cache entries.  After an
    out-of-memory decode, the row limit is halved for a while.  An error of the device itself
    ends the worker, since no later step can succeed.

    `step_tokens` are the most tokens of a decode step with drafts, the rows' last ones included; 0
    if the model takes no drafts.
    """

    def __init__(self, model: CausalLM, vocabulary: int, step_tokens: int = 0) -> None:
        self._model = model
        self._sampler = Sampler(vocabulary)
        self._max_rows = model.slots
        self._step_tokens = step_tokens
        self._successes = 0
        self._without_drafts = 0  # steps to come

    def run(self, step: Step[Sequence]) -> dict[Sequence, StepResult]:
        """Append the next tokens to each sequence of the step; return the texts or failures."""
        results: dict[Sequence, StepResult] = {}
        for part in _split(step, len(step.jobs) if step.is_prefill else self._max_rows):
            drafts = {} if step.is_prefill else self._drafts(part.jobs)
            results |= self._run(part, drafts)
        return results

    def _drafts(self, jobs: Mapping[Sequence, int]) -> Drafts:
        if not self._step_tokens:
            return {}
        lookups: dict[Sequence, PromptLookup] = {}
        for sequence in jobs:
            if sequence.lookup is None and sequence.tokens == 1:
                sequence.lookup = PromptLookup((*sequence.prompt, sequence.last))
            if sequence.lookup is not None:
                lookups[sequence] = sequence.lookup
        if self._without_drafts:
            self._without_drafts -= 1
            return {}
        room = self._step_tokens - len(jobs)
        if room <= 0:
            return {}
        # The last token of an answer needs no draft.
        chances = {each: lookup.chances(each.limit - each.tokens - 1) for each, lookup in lookups.items()}
        counts = share_drafts(chances, len(jobs), room)
        return {sequence: lookups[sequence].draft(count) for sequence, count in counts.items()}

    def _run(self, step: Step[Sequence], drafts: Drafts) -> dict[Sequence, StepResult]:
        jobs = step.jobs
        tokens = _catch(lambda: self._sample(jobs, drafts))
        if drafts and isinstance(tokens, EngineFailed):
            self._without_drafts = STEPS_BEFORE_GROWTH
            return self._run(step, {})
        if isinstance(tokens, _OutOfMemory) and len(jobs) == 1:
            tokens = _catch(lambda: self._sample(jobs, {}))  # the memory that was freed may be enough
        if not isinstance(tokens, EngineFailed):
            self._successes += 1
            if self._successes >= STEPS_BEFORE_GROWTH:
                self._max_rows, self._successes = min(2 * self._max_rows, self._model.slots), 0
            return {sequence: _append(sequence, each) for sequence, each in zip(jobs, tokens, strict=True)}
        if len(jobs) == 1:
            return dict.fromkeys(jobs, tokens)
        half = (len(jobs) + 1) // 2
        results: dict[Sequence, StepResult] = {}
        for part in _split(step, half):
            results |= self._run(part, {})
        if (
            isinstance(tokens, _OutOfMemory)
            and not step.is_prefill
            and not any(isinstance(each, EngineFailed) for each in results.values())
        ):
            self._max_rows, self._successes = min(half, self._max_rows), 0
        return results

    @torch.inference_mode()
    def _sample(self, jobs: Mapping[Sequence, int], drafts: Drafts) -> list[list[int | None]]:
        batch = Batch(
            slots=tuple(jobs.values()),
            tokens=tuple((*sequence.next_input, *drafts.get(sequence, ())) for sequence in jobs),
            starts=tuple(sequence.num_cached for sequence in jobs),
            prefixes=tuple(sequence.prefix for sequence in jobs),
        )
        rows = [sequence.sampler for sequence in jobs]
        return self._sampler.verify(self._model.forward(batch), rows, [drafts.get(each, ()) for each in jobs])


class _OutOfMemory(EngineFailed):
    """A step ran out of memory."""


def _split(step: Step[Sequence], rows: int) -> Iterator[Step[Sequence]]:
    """Split a step into steps of at most `rows` rows."""
    every = iter(step.jobs.items())
    while part := dict(islice(every, rows)):
        yield Step(part, step.is_prefill)


def _append(sequence: Sequence, tokens: Iterable[int | None]) -> StepResult:
    text = ""
    for count, token in enumerate(tokens):
        if token is None:
            # After a draft the next step meets it again: the text before it is delivered first.
            return text if count else EngineFailed(_NOT_FINITE)
        more = _catch(partial(sequence.append_token, token))
        if isinstance(more, EngineFailed):
            return more
        text += more
        if sequence.reason is not None:
            break
    return text


def _catch(work: Callable[[], T]) -> T | EngineFailed:
    try:
        return work()
    except Exception as error:
        # Any error of a model or device: the other requests must go on.
        log.exception("a model step failed")
        if is_out_of_memory(error):
            failure: EngineFailed = _OutOfMemory(
                "not enough memory for this answer; lower engine.max_batch_size or use int4"
            )
        else:
            failure = EngineFailed(f"a model step failed ({type(error).__name__}); see the log")
    # Outside the handler: within it the traceback keeps the failed step's tensors alive.
    if isinstance(failure, _OutOfMemory):
        # A step's garbage is young; a full collection would stop the event loop for half a second.
        gc.collect(1)
        release_memory()
    else:
        # After a device error every CUDA call raises until the process ends: raise it here.
        for device in _reserved_bytes():
            torch.cuda.synchronize(device)
    return failure


def device_memory() -> int:
    """Return the bytes that torch reserves on CUDA devices."""
    return sum(_reserved_bytes().values())


def _reserved_bytes() -> dict[int, int]:
    # Devices without a reservation are left out: synchronising would create a context there.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {device: held for device in devices if (held := torch.cuda.memory_reserved(device))}


def release_memory() -> None:
    """Return torch's cached memory to the CUDA devices."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory; on a CPU torch raises RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

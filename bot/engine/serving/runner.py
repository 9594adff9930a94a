"""One step through model and sampler; what fails, fails for the rows concerned and nobody else."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
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


class Runner:
    """Feeds steps to the model, and what the model says back to the sequences."""

    def __init__(self, model: CausalLM, vocabulary: int) -> None:
        self._model = model
        self._sampler = Sampler(vocabulary)

    def run(self, step: Step[Sequence]) -> dict[Sequence, Outcome]:
        """Give each of the step's sequences its next token, or the reason why it gets none."""
        tokens = _guarded(lambda: self._tokens(step.jobs))
        if not isinstance(tokens, EngineFailed):
            return {sequence: _take(sequence, token) for sequence, token in zip(step.jobs, tokens, strict=True)}
        if step.is_prefill and len(step.jobs) > 1:
            # One prompt may have failed the others, or all together were too much: one by one.
            outcomes: dict[Sequence, Outcome] = {}
            for sequence, slot in step.jobs.items():
                outcomes |= self.run(Step({sequence: slot}, is_prefill=True))
            return outcomes
        return {sequence: EngineFailed(str(tokens)) for sequence in step.jobs}

    @torch.inference_mode()
    def _tokens(self, jobs: Mapping[Sequence, int]) -> list[int | None]:
        batch = Batch(
            slots=tuple(jobs.values()),
            tokens=tuple(sequence.next_input for sequence in jobs),
            starts=tuple(sequence.cached for sequence in jobs),
        )
        return self._sampler.draw(self._model.forward(batch), [sequence.row for sequence in jobs])


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
        memory_is_full = is_out_of_memory(error)
        failure = EngineFailed(_sentence(error))
    # Outside the handler: inside it the traceback still holds the failed step's tensors.
    if memory_is_full:
        gc.collect()
        return_memory()
    return failure


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

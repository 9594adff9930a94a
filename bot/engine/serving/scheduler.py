"""Choose the sequences of the next step.  Pure Python: no torch, no asyncio."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Generic

from bot.engine.serving.queue import J, RoundRobinQueue

# Token budget of a prefill: larger batches make short prompts cheaper, but stall running answers.
PREFILL_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Step(Generic[J]):
    """The jobs of one step with their slots: whole prompts, or one token each."""

    jobs: Mapping[J, int]
    is_prefill: bool


class Scheduler(Generic[J]):
    """Assigns slots to jobs, and composes steps.

    A job gets a slot as soon as one is free: while any job waits, all slots are in use.
    Users with fewer running jobs go first.  Prefills and decodes alternate, so that running
    answers keep streaming while new ones start.
    """

    def __init__(self, slots: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.slots = slots
        self._free = list(range(slots))  # a heap: models read adjacent low slots fastest
        self._prefill_tokens = prefill_tokens
        self._waiting: RoundRobinQueue[J] = RoundRobinQueue()
        self._running: dict[J, int] = {}
        self._new: deque[J] = deque()  # admitted, not prefilled yet
        self._deferred: set[J] = set()  # the short ones of these that a long prompt overtook
        self._was_prefill = False

    @property
    def waiting(self) -> list[J]:
        """Jobs without a slot, the next one first."""
        return list(self._waiting)

    @property
    def running(self) -> Mapping[J, int]:
        """Jobs with their slots."""
        return MappingProxyType(self._running)

    @property
    def free(self) -> int:
        return len(self._free)

    def add(self, job: J) -> None:
        self._waiting.push(job)
        self._admit()

    def remove(self, job: J) -> bool:
        """Remove a job, waiting or running; return whether it was scheduled.

        Its slot is reused at once: a prefill overwrites it.
        """
        if job not in self._running:
            return self._waiting.discard(job)
        heappush(self._free, self._running.pop(job))
        if job in self._new:
            self._new.remove(job)
            self._deferred.discard(job)
        self._admit()
        return True

    def step(self) -> Step[J] | None:
        """Return the next step; None if no job runs."""
        if not self._running:
            return None
        decoding = [job for job in self._running if job not in self._new]
        self._was_prefill = bool(self._new) and not (self._was_prefill and decoding)
        jobs = self._prompts() if self._was_prefill else decoding
        return Step({job: self._running[job] for job in jobs}, self._was_prefill)

    def _admit(self) -> None:
        while self._free and self._waiting:
            job = self._waiting.pop(Counter(job.user for job in self._running))
            self._running[job] = heappop(self._free)
            self._new.append(job)

    def _prompts(self) -> list[J]:
        """Return the next prompts: a long one alone, or short ones together.

        FIFO, except that a short prompt waits for at most one long one.  Only prompts deferred
        by the last long one overtake the next, so long prompts do not starve.
        """
        first = next((job for job in self._new if job in self._deferred), self._new[0])
        jobs = [first]
        if self._is_long(first):
            self._deferred.update(job for job in self._new if not self._is_long(job))
        else:
            # Deferred jobs first; the sort is stable.
            others = (job for job in self._new if job is not first and not self._is_long(job))
            tokens = first.prompt_tokens
            for job in sorted(others, key=lambda job: job not in self._deferred):
                tokens += job.prompt_tokens
                if tokens > self._prefill_tokens:
                    break
                jobs.append(job)
        for job in jobs:
            self._new.remove(job)
            self._deferred.discard(job)
        return jobs

    def _is_long(self, job: J) -> bool:
        return job.prompt_tokens > self._prefill_tokens

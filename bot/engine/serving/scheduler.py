"""Which sequences the next step runs.  Pure Python: no torch, no asyncio."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

# Prompts are prefilled together while they have no more tokens than this: more of them make
# short ones cheaper, but every running answer waits meanwhile.
PREFILL_TOKENS = 512


class Job(Protocol):
    """What is scheduled; `user` and `channel` are opaque, jobs are told apart by identity."""

    @property
    def user(self) -> str: ...

    @property
    def channel(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


T = TypeVar("T")
J = TypeVar("J", bound=Job)


def in_turn(rows: Iterable[Iterable[T]]) -> Iterator[T]:
    """Take one item of each row in turn, until all are empty.

    >>> "".join(in_turn(["abc", "x", "12"]))
    'ax1b2c'
    """
    waiting = deque(iter(row) for row in rows)
    while waiting:
        row = waiting.popleft()
        for item in row:
            yield item
            waiting.append(row)
            break


class Rotation(Generic[J]):
    """A queue that turns over users, then over a user's channels; first come within one channel.

    With n users waiting, each is served within n turns, however much the others ask.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, OrderedDict[str, deque[J]]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[J]:
        """All that wait, in the order they are served if nobody else comes."""
        return in_turn(in_turn(channels.values()) for channels in self._users.values())

    def push(self, job: J) -> None:
        self._users.setdefault(job.user, OrderedDict()).setdefault(job.channel, deque()).append(job)
        self._size += 1

    def pop(self, running: Mapping[str, int] = MappingProxyType({})) -> J:
        """Take the next job of those users of whom the fewest are `running`."""
        user, channels = min(self._users.items(), key=lambda item: running.get(item[0], 0))
        channel, line = next(iter(channels.items()))
        job = line[0]
        channels.move_to_end(channel)
        self._users.move_to_end(user)
        self.discard(job)
        return job

    def discard(self, job: J) -> bool:
        """Take a job out; say whether it was there."""
        channels = self._users.get(job.user, OrderedDict())
        line = channels.get(job.channel, deque())
        if job not in line:
            return False
        line.remove(job)
        self._size -= 1
        if not line:
            del channels[job.channel]
        if not channels:
            del self._users[job.user]
        return True


@dataclass(frozen=True, slots=True)
class Step(Generic[J]):
    """The sequences of one step, each with its slot: whole prompts, or one token each."""

    jobs: Mapping[J, int]
    is_prefill: bool


class Scheduler(Generic[J]):
    """Gives slots to jobs and steps to slots.

    A job gets a slot as soon as one is free, so while any job waits all slots are
    taken.  Whose jobs hold slots already lets those pass whose jobs hold fewer.  Prefills
    and decodes alternate, so that answers keep flowing while others come in.
    """

    def __init__(self, slots: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.slots = slots
        self._free = list(range(slots))  # a heap: a model reads low slots side by side fastest
        self._prefill_tokens = prefill_tokens
        self._waiting: Rotation[J] = Rotation()
        self._running: dict[J, int] = {}
        self._new: deque[J] = deque()  # have a slot, their prompts are not in it yet
        self._held_up: set[J] = set()  # of these, the short ones that a long one went before
        self._was_prefill = False

    @property
    def waiting(self) -> list[J]:
        """Those without a slot, the next one first."""
        return list(self._waiting)

    @property
    def running(self) -> Mapping[J, int]:
        """Those with a slot, and which."""
        return MappingProxyType(self._running)

    @property
    def free(self) -> int:
        return len(self._free)

    def add(self, job: J) -> None:
        self._waiting.push(job)
        self._admit()

    def remove(self, job: J) -> bool:
        """Take a job out, wherever it is; say whether it was there.

        Its slot goes to the next one at once: between two steps nobody reads it, and
        a prefill forgets what it held.
        """
        if job not in self._running:
            return self._waiting.discard(job)
        heappush(self._free, self._running.pop(job))
        if job in self._new:
            self._new.remove(job)
            self._held_up.discard(job)
        self._admit()
        return True

    def step(self) -> Step[J] | None:
        """Choose the next step; None while nothing runs."""
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
        """Take the next prompts: a long one alone, or short ones together.

        They go in the order they came, but no short one waits for two long ones.  A long one
        is passed only by those that the last long one held up, so it does not wait for ever.
        """
        first = next((job for job in self._new if job in self._held_up), self._new[0])
        jobs = [first]
        if self._is_long(first):
            self._held_up.update(job for job in self._new if not self._is_long(job))
        else:
            # Those that were held up first; a sort leaves the others in their order.
            others = (job for job in self._new if job is not first and not self._is_long(job))
            tokens = first.prompt_tokens
            for job in sorted(others, key=lambda job: job not in self._held_up):
                tokens += job.prompt_tokens
                if tokens > self._prefill_tokens:
                    break
                jobs.append(job)
        for job in jobs:
            self._new.remove(job)
            self._held_up.discard(job)
        return jobs

    def _is_long(self, job: J) -> bool:
        return job.prompt_tokens > self._prefill_tokens

"""Fair waiting: round robin over users and channels, the estimated time, and a queue for engines without our batching."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from bot.domain import ChatRequest, EngineLoad, Queued
from bot.errors import EngineBusy

# Decay per step: after 100 steps a measurement has a third of its weight.
STEP_DECAY = 0.99
# Answers are fewer than steps, so they decay faster.
ANSWER_DECAY = 0.9


class Job(Protocol):
    """A schedulable request; hashed by identity, `user` and `channel` are opaque."""

    @property
    def user(self) -> str: ...

    @property
    def channel(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


T = TypeVar("T")
J = TypeVar("J", bound=Job)


def round_robin(rows: Iterable[Iterable[T]]) -> Iterator[T]:
    """Yield one item of each row in turn, until all are empty.

    >>> "".join(round_robin(["abc", "x", "12"]))
    'ax1b2c'
    """
    waiting = deque(iter(row) for row in rows)
    while waiting:
        row = waiting.popleft()
        for item in row:
            yield item
            waiting.append(row)
            break


class RoundRobinQueue(Generic[J]):
    """Round robin over users, then over a user's channels; FIFO within a channel.

    With n users waiting, each is served within n pops, however many jobs the others queue.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, OrderedDict[str, deque[J]]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[J]:
        """Iterate in the order jobs are served if no other arrives."""
        return round_robin(round_robin(channels.values()) for channels in self._users.values())

    def push(self, job: J) -> None:
        self._users.setdefault(job.user, OrderedDict()).setdefault(job.channel, deque()).append(job)
        self._size += 1

    def pop(self, running: Mapping[str, int] = MappingProxyType({})) -> J:
        """Remove and return the next job of the user with the fewest `running` jobs."""
        job = next(self.candidates(running))
        self.take(job)
        return job

    def candidates(self, running: Mapping[str, int] = MappingProxyType({})) -> Iterator[J]:
        """Iterate over the first job of each channel, those of the user with the fewest `running` jobs first."""
        for user in sorted(self._users, key=lambda user: running.get(user, 0)):
            for jobs in self._users[user].values():
                yield jobs[0]

    def take(self, job: J) -> None:
        """Remove a job that is served; its user and channel are the last to be served again."""
        self._users[job.user].move_to_end(job.channel)
        self._users.move_to_end(job.user)
        self.discard(job)

    def discard(self, job: J) -> bool:
        """Remove a job; return whether it was queued."""
        channels = self._users.get(job.user, OrderedDict())
        jobs = channels.get(job.channel, deque())
        if job not in jobs:
            return False
        jobs.remove(job)
        self._size -= 1
        if not jobs:
            del channels[job.channel]
        if not channels:
            del self._users[job.user]
        return True


class Throughput:
    """Recent throughput of a model: exponentially decayed means of tokens per second and of seconds per answer."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._held = 0.0
        self._answers = 0.0

    def step(self, tokens: int, seconds: float) -> None:
        """Record a step that sampled `tokens` tokens."""
        self._tokens = self._tokens * STEP_DECAY + tokens
        self._seconds = self._seconds * STEP_DECAY + seconds

    def answer(self, seconds: float) -> None:
        """Record an answer that held its slot for `seconds`."""
        self._held = self._held * ANSWER_DECAY + seconds
        self._answers = self._answers * ANSWER_DECAY + 1

    @property
    def tokens_per_second(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def wait(self, position: int, slots: int) -> float | None:
        """Estimate the seconds until `position` slots become free; None before the first answer.

        >>> throughput = Throughput()
        >>> throughput.answer(6.0)
        >>> throughput.wait(position=2, slots=4)
        3.0
        """
        return position * self._held / self._answers / slots if self._answers and slots else None


def _always() -> bool:
    return True


@dataclass(eq=False, slots=True)
class SlotTicket:
    """One request's position in the queue; while `may_run` is false others pass it."""

    user: str
    channel: str
    prompt_tokens: int
    may_run: Callable[[], bool] = _always
    position: int = -1  # -1 before the first update; 0 is running
    wait: float | None = None
    started: float = 0.0
    position_changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def queued(self) -> Queued | None:
        """Wait for the next position; None once the request may run."""
        await self.position_changed.wait()
        self.position_changed.clear()
        return Queued(self.position, self.wait) if self.position else None


class FairQueue:
    """Runs `slots` requests at once; others wait, fairly between users and channels.

    `slots` may be 0 for a while; a request that found no slot after all is requeued in front.  With
    `now`, which returns seconds, waiting times are estimated from those of earlier requests.
    """

    def __init__(self, slots: int, max_waiting: int, now: Callable[[], float] | None = None) -> None:
        self._slots = slots
        self._max_waiting = max_waiting
        self._now = now
        self._throughput = Throughput()
        self._waiting: RoundRobinQueue[SlotTicket] = RoundRobinQueue()
        self._requeued: list[SlotTicket] = []  # served before the others
        self._running: dict[SlotTicket, None] = {}

    @property
    def load(self) -> EngineLoad:
        waiting = len(self._requeued) + len(self._waiting)
        wait = self._throughput.wait(waiting, self._slots)
        return EngineLoad(len(self._running), waiting, slots=self._slots, wait=wait)

    def enqueue(self, request: ChatRequest, prompt_tokens: int, may_run: Callable[[], bool] = _always) -> SlotTicket:
        """Queue a request; the caller must `release` the ticket.

        Raises:
            EngineBusy: The queue is full.
        """
        load = self.load
        must_wait = load.running >= self._slots or not may_run()
        if must_wait and load.waiting >= self._max_waiting:
            raise EngineBusy(load.waiting, self._max_waiting, load.wait)
        ticket = SlotTicket(request.user, request.channel, prompt_tokens, may_run)
        self._waiting.push(ticket)
        self._admit()
        return ticket

    def release(self, ticket: SlotTicket) -> None:
        if ticket in self._running:
            del self._running[ticket]
            if self._now is not None:
                self._throughput.answer(self._now() - ticket.started)
        elif ticket in self._requeued:
            self._requeued.remove(ticket)
        else:
            self._waiting.discard(ticket)
        self._admit()

    def requeue(self, ticket: SlotTicket) -> None:
        """Let a running request wait again, in front of all that have not run yet."""
        del self._running[ticket]
        self._requeued.append(ticket)
        ticket.position = -1  # its reader is told again, even if it may run at once
        self._admit()

    def resize(self, slots: int) -> None:
        """Run this many at once from now on; those that run beyond it finish."""
        self._slots = slots
        self._admit()

    def _admit(self) -> None:
        while len(self._running) < self._slots and (admitted := self._next()) is not None:
            admitted.started = self._now() if self._now is not None else 0.0
            self._running[admitted] = None
        positions = {ticket: position for position, ticket in enumerate([*self._requeued, *self._waiting], start=1)}
        for ticket in [*positions, *self._running]:
            if ticket.position != positions.get(ticket, 0):
                ticket.position = positions.get(ticket, 0)
                ticket.wait = self._throughput.wait(ticket.position, self._slots)
                ticket.position_changed.set()

    def _next(self) -> SlotTicket | None:
        """Remove and return the next ticket that may run."""
        requeued = next((ticket for ticket in self._requeued if ticket.may_run()), None)
        if requeued is not None:
            self._requeued.remove(requeued)
            return requeued
        users = Counter(ticket.user for ticket in self._running)
        waiting = next((ticket for ticket in self._waiting.candidates(users) if ticket.may_run()), None)
        if waiting is not None:
            self._waiting.take(waiting)
        return waiting

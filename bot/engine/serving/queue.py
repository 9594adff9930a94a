"""Fair admission queue for engines that do not use our batching."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from bot.domain import ChatRequest, EngineLoad, Queued
from bot.engine.serving.scheduler import RoundRobinQueue
from bot.engine.serving.throughput import Throughput
from bot.errors import EngineBusy


@dataclass(eq=False, slots=True)
class SlotTicket:
    """One request's position in the queue."""

    user: str
    channel: str
    prompt_tokens: int
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

    def enqueue(self, request: ChatRequest, prompt_tokens: int) -> SlotTicket:
        """Queue a request; the caller must `release` the ticket.

        Raises:
            EngineBusy: The queue is full.
        """
        load = self.load
        if load.running >= self._slots and load.waiting >= self._max_waiting:
            raise EngineBusy(load.waiting, self._max_waiting, load.wait)
        ticket = SlotTicket(request.user, request.channel, prompt_tokens)
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
        while len(self._running) < self._slots and self.load.waiting:
            users = Counter(ticket.user for ticket in self._running)
            admitted = self._requeued.pop(0) if self._requeued else self._waiting.pop(users)
            admitted.started = self._now() if self._now is not None else 0.0
            self._running[admitted] = None
        positions = {ticket: position for position, ticket in enumerate([*self._requeued, *self._waiting], start=1)}
        for ticket in [*positions, *self._running]:
            if ticket.position != positions.get(ticket, 0):
                ticket.position = positions.get(ticket, 0)
                ticket.wait = self._throughput.wait(ticket.position, self._slots)
                ticket.position_changed.set()

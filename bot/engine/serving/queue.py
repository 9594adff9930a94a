"""Fair admission queue for engines that do not use our batching."""

import asyncio
from dataclasses import dataclass, field

from bot.domain import ChatRequest, EngineLoad, Queued
from bot.engine.serving.scheduler import Scheduler
from bot.errors import EngineBusy


@dataclass(eq=False, slots=True)
class SlotTicket:
    """One request's position in the queue."""

    user: str
    channel: str
    prompt_tokens: int
    position: int = -1  # -1 before the first update; 0 is running
    position_changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def queued(self) -> Queued | None:
        """Wait for the next position; None once the request may run."""
        await self.position_changed.wait()
        self.position_changed.clear()
        return Queued(self.position) if self.position else None


class FairQueue:
    """Runs `slots` requests at once; others wait, fairly between users and channels."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._scheduler: Scheduler[SlotTicket] = Scheduler(slots)

    @property
    def load(self) -> EngineLoad:
        scheduler = self._scheduler
        return EngineLoad(len(scheduler.running), len(scheduler.waiting), slots=scheduler.slots)

    def enqueue(self, request: ChatRequest, prompt_tokens: int) -> SlotTicket:
        """Queue a request; the caller must `release` the ticket.

        Raises:
            EngineBusy: The queue is full.
        """
        waiting = len(self._scheduler.waiting)
        if not self._scheduler.free and waiting >= self._max_waiting:
            raise EngineBusy(waiting, self._max_waiting)
        ticket = SlotTicket(request.user, request.channel, prompt_tokens)
        self._scheduler.add(ticket)
        self._update_positions()
        return ticket

    def release(self, ticket: SlotTicket) -> None:
        self._scheduler.remove(ticket)
        self._update_positions()

    def _update_positions(self) -> None:
        positions = {ticket: position for position, ticket in enumerate(self._scheduler.waiting, start=1)}
        for ticket in [*positions, *self._scheduler.running]:
            if ticket.position != positions.get(ticket, 0):
                ticket.position = positions.get(ticket, 0)
                ticket.position_changed.set()

"""Waiting for a turn, for engines whose answers are made elsewhere and not in a batch of ours."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from bot.domain import ChatRequest, Queued
from bot.engine.serving.scheduler import Scheduler
from bot.errors import EngineBusy


@dataclass(eq=False, slots=True)
class Turn:
    """One request's place in the queue."""

    user: str
    channel: str
    prompt_tokens: int
    position: int = -1  # not known yet; 0 is running
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def queued(self) -> Queued | None:
        """Wait for a place that was not told yet; None once the turn has come."""
        await self.moved.wait()
        self.moved.clear()
        return Queued(self.position) if self.position else None


class Turns:
    """Lets `slots` requests run at once; others wait, fairly between users and channels."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._scheduler: Scheduler[Turn] = Scheduler(slots)

    @property
    def slots(self) -> int:
        return self._scheduler.slots

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    def take(self, request: ChatRequest, prompt_tokens: int) -> Turn:
        """Queue up; whoever does gives the turn back with `leave`, whatever happens.

        Raises:
            EngineBusy: Too many wait already.
        """
        if not self._scheduler.free and self.waiting >= self._max_waiting:
            raise EngineBusy(self.waiting, self._max_waiting)
        turn = Turn(request.user, request.channel, prompt_tokens)
        self._scheduler.add(turn)
        self._move()
        return turn

    def leave(self, turn: Turn) -> None:
        self._scheduler.remove(turn)
        self._move()

    def _move(self) -> None:
        places = {turn: position for position, turn in enumerate(self._scheduler.waiting, start=1)}
        for turn in [*places, *self._scheduler.running]:
            if turn.position != places.get(turn, 0):
                turn.position = places.get(turn, 0)
                turn.moved.set()

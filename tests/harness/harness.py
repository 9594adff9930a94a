"""The program without platform and model: real store and chat, a scripted engine."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from bot.chat.access import Access
from bot.chat.conversation import Conversations
from bot.chat.intake import Intake
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.domain import Delta, Exchange, IncomingMessage, Kind, Notice, ReplyEvent, SamplingParams
from bot.storage.sql import SqlStore
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.messages import NOON

NO_LIMITS = LimitsSection(
    requests_per_minute=0,
    requests_per_minute_channel=0,
    tokens_per_hour=0,
    tokens_per_hour_channel=0,
    waiting_per_user=0,
    waiting_per_channel=0,
)


@dataclass(frozen=True, slots=True)
class Harness:
    clock: ManualClock
    engine: ScriptedEngine
    store: SqlStore
    access: Access
    conversations: Conversations
    intake: Intake

    async def accept(self, message: IncomingMessage) -> Exchange:
        exchange = await self.intake.accept(message)
        assert exchange is not None, "the message was not accepted"
        return exchange

    async def replied(self, exchange: Exchange) -> list[ReplyEvent]:
        """Process an accepted exchange to its end and mark it as delivered."""
        async with aclosing(self.intake.handle(exchange)) as events:
            seen = [event async for event in events]
        await self.intake.complete(exchange.id)
        return seen

    async def ask(self, message: IncomingMessage) -> list[ReplyEvent]:
        return await self.replied(await self.accept(message))

    async def kept(self, exchange: Exchange) -> Exchange:
        """Return the exchange as the store has it now."""
        found = await self.store.find(exchange.message.channel, exchange.message.id)
        assert found is not None
        return found

    def raise_on(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Raise a ZeroDivisionError when a message with this text is stored."""
        begin = self.store.enqueue

        async def raising(message: IncomingMessage, kind: Kind) -> Exchange | None:
            if message.text == text:
                raise ZeroDivisionError
            return await begin(message, kind)

        monkeypatch.setattr(self.store, "enqueue", raising)


@asynccontextmanager
async def make_harness(
    folder: Path,
    engine: ScriptedEngine | None = None,
    *,
    access: AccessSection | None = None,
    conversation: ConversationSection | None = None,
    limits: LimitsSection | None = None,
    today: datetime = NOON,
) -> AsyncIterator[Harness]:
    """Build it on the database in `folder`, which later harnesses can reopen."""
    clock, engine = ManualClock(), engine or ScriptedEngine()
    settings, bounds = conversation or ConversationSection(), limits or LimitsSection()
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}") as store:
        rules = Access(access or AccessSection(), bounds, clock)
        conversations = Conversations(engine, store, settings, SamplingParams(), answer_seconds=bounds.answer_seconds)
        yield Harness(
            clock,
            engine,
            store,
            rules,
            conversations,
            Intake(rules, conversations, engine, store, settings, lambda: today),
        )


def text_of(events: list[ReplyEvent]) -> str:
    """Return the model's text."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def notice_of(events: list[ReplyEvent]) -> str:
    """Return the bot's own text."""
    return "\n".join(event.text for event in events if isinstance(event, Notice))

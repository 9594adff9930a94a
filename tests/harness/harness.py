"""The whole chat on a real store and a scripted engine, without a platform."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from bot.chat.access import OPERATOR, Access
from bot.chat.exchanges import Exchanges
from bot.chat.intake import Intake
from bot.chat.rules import EVERYWHERE, PAUSED
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.domain import Delta, Exchange, IncomingMessage, Kind, Notice, Part, ReplyEvent, SettingChange
from bot.errors import ClaimLost
from bot.storage.sql import SqlStore
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.messages import NOON

# No limits.
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
    settings: ChatSettings
    intake: Intake

    @property
    def exchanges(self) -> Exchanges:
        return self.intake.exchanges

    async def accept(self, message: IncomingMessage) -> Exchange:
        exchange = await self.intake.accept(message)
        assert exchange is not None, "the message was not accepted"
        return exchange

    async def events(self, exchange: Exchange) -> list[ReplyEvent]:
        """Answer a claimed exchange, and deliver nothing."""
        async with self.intake.answers.stream(exchange) as stream:
            return [event async for event in stream]

    async def replied(self, exchange: Exchange) -> list[ReplyEvent]:
        """Answer a claimed exchange, and count it as delivered."""
        seen: list[ReplyEvent] = []
        with suppress(ClaimLost):  # edited or retried meanwhile
            async with self.intake.answers.stream(exchange) as stream:
                seen.extend([event async for event in stream])
            await self.exchanges.complete(exchange)
        return seen

    async def ask(self, message: IncomingMessage) -> list[ReplyEvent]:
        return await self.replied(await self.accept(message))

    async def record_part(self, exchange: Exchange, number: int, message_id: str) -> None:
        """Record a sent message of the reply, as the delivery does."""
        worker = self.exchanges.worker(exchange)
        await self.exchanges.record_part(worker, number, message_id)
        worker.parts[number:] = [Part(message_id, is_recorded=True)]

    async def stored(self, exchange: Exchange) -> Exchange:
        """Return the exchange as the store has it now."""
        found = await self.store.find(exchange.message.channel, exchange.message.id)
        assert found is not None
        return found

    def raise_on(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let storing a message with this text raise an unexpected error."""
        enqueue = self.store.enqueue

        async def failing(message: IncomingMessage, kind: Kind, *, claim: bool = True) -> Exchange | None:
            if message.text == text:
                raise ZeroDivisionError
            return await enqueue(message, kind, claim=claim)

        monkeypatch.setattr(self.store, "enqueue", failing)


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
    """Build the chat on a database in `folder`; another one there later finds the same rows."""
    clock, engine, bounds = ManualClock(), engine or ScriptedEngine(), limits or LimitsSection()
    settings = ChatSettings(
        conversation, answer_seconds=bounds.answer_seconds, max_message_chars=bounds.max_message_chars
    )
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}") as store:
        permissions = Access(access or AccessSection(), bounds, clock, rules=settings.rules)
        intake = Intake(permissions, engine, store, settings, today=lambda: today)
        await intake.choices.load()  # as the supervisor of the adapters does
        yield Harness(clock, engine, store, permissions, settings, intake)


def set_paused(access: Access, *, is_paused: bool = True) -> None:
    """Let the bot be paused, or not, as if an admin had done it before."""
    value = "yes" if is_paused else None
    access.rules.set_in_chat(SettingChange(EVERYWHERE, PAUSED, value, None, OPERATOR, NOON))


def text_of(events: list[ReplyEvent]) -> str:
    """Return the model's text."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def notice_of(events: list[ReplyEvent]) -> str:
    """Return the bot's own words."""
    return "\n".join(event.text for event in events if isinstance(event, Notice))

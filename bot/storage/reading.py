"""What the store is asked."""

from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select

from bot.domain import Author, ChannelKey, Exchange, FinishReason, Kind, SettingChange, Status
from bot.errors import StoreError
from bot.storage.base import History
from bot.storage.conditions import exactly, here, within
from bot.storage.opened import OpenStore, shielded
from bot.storage.schema import EXCHANGE, IS_KEPT, channels, exchanges, parts, settings
from bot.storage.settings import select_changes, select_settings, to_changes


class Reading(OpenStore):
    """The methods that change nothing."""

    @shielded
    async def history(self, before: Exchange, limit: int) -> History:
        answered = and_(
            exactly(before.message.channel),
            exchanges.c.id < before.id,
            exchanges.c.kind == Kind.CHAT,
            exchanges.c.status.in_([Status.ANSWERED, Status.DELIVERED]),
            func.length(exchanges.c.answer) > 0,
            exchanges.c.reason != FinishReason.ERROR,
        )
        newest = select(*EXCHANGE).where(IS_KEPT, answered).order_by(exchanges.c.id.desc()).limit(limit)
        is_now = select(*EXCHANGE).where(exchanges.c.id == before.id)
        told = select(channels.c.is_shortening_told).where(here(before.message.channel))
        for is_final in (False, True):
            async with self._transactions.reading() as tx:
                rows = (await tx.execute(newest)).all()
                now = (await tx.execute(is_now)).one()
                is_told = (await tx.execute(told)).scalar()
                readable, missing = await self._decrypt(tx, [now, *reversed(rows)], is_final=is_final)
            if not missing:
                break
        if not readable or readable[0].id != before.id:
            raise StoreError(f"the row of exchange {before.id} is damaged")
        return History(tuple(readable[1:]), readable[0], bool(is_told))

    @shielded
    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        # Ids are unique in their channel, and some events omit the thread, so it is left out.
        return await self._find(within(channel), exchanges.c.message == message_id)

    @shielded
    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        return await self._find(within(channel), parts.c.message == message_id, exchanges.c.id == parts.c.exchange)

    @shielded
    async def has_history(self, channel: ChannelKey) -> bool:
        async with self._transactions.reading() as tx:
            return (await tx.execute(select(channels.c.thread).where(here(channel)))).first() is not None

    @shielded
    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        newest = select(*EXCHANGE).where(exactly(channel), IS_KEPT, exchanges.c.kind == Kind.CHAT)
        if author is not None:
            newest = newest.where(self._by(author))
        return next(iter(await self._select(newest.order_by(exchanges.c.id.desc()).limit(1))), None)

    @shielded
    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        query = select(channels).where(channels.c.platform == platform)
        async with self._transactions.reading() as tx:
            rows = sorted((await tx.execute(query)).all(), key=lambda row: row.last_exchange)
        return {ChannelKey(platform, row.channel, row.thread or None): row.last_message for row in rows}

    @shielded
    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        said = and_(exchanges.c.platform == platform, exchanges.c.sent_at >= time, IS_KEPT)
        return sorted(await self._select(select(*EXCHANGE).where(said)), key=lambda exchange: exchange.id)

    @shielded
    async def settings(self) -> list[SettingChange]:
        return await self._changes(select_settings())

    @shielded
    async def setting_changes(self, place: str, limit: int) -> list[SettingChange]:
        return await self._changes(select_changes(place, limit))

    async def _changes(self, query: Select[Any]) -> list[SettingChange]:
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(query)).all()
            return list(to_changes(await tx.run_sync(partial(self._vault.decrypt, table=settings, rows=rows))))

    async def _find(self, *conditions: ColumnElement[bool]) -> Exchange | None:
        return next(iter(await self._select(select(*EXCHANGE).where(*conditions).limit(1))), None)

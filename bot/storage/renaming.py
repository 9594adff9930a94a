"""Statements that move messages to the id that a platform gave to their channel."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, case, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import ChannelKey
from bot.storage.conditions import within
from bot.storage.schema import SafeText, exchanges, further_messages, parts
from bot.storage.vault import WriteTransaction

# Exchanges that are moved in one transaction.
RENAMED_AT_ONCE = 200


async def ids_to_rename(tx: AsyncConnection, channel: ChannelKey) -> tuple[list[int], list[int]]:
    """Return the exchanges of a channel, and those that have read messages there."""
    ids = select(exchanges.c.id).where(within(channel))
    here = further_messages.c.platform == channel.platform, further_messages.c.channel == channel.channel
    readers = select(further_messages.c.exchange).where(*here)
    return sorted((await tx.execute(ids)).scalars()), sorted(set((await tx.execute(readers)).scalars()))


async def rename_exchanges(tx: WriteTransaction, channel: ChannelKey, to: str, ids: Collection[int]) -> int:
    """Move those of these exchanges that are still in the channel; return their number."""
    # No platform's id has a space, so no future message is mistaken for one of these.
    prefix = f"{channel.channel} "
    these = select(exchanges.c.id, exchanges.c.message).where(exchanges.c.id.in_(ids), within(channel))
    renamed = {id: prefix + message for id, message in (await tx.execute(these.with_for_update())).all()}
    if not renamed:
        return 0
    goal = ChannelKey(channel.platform, to)
    used = await _used(tx, goal, renamed.values())
    server = case((exchanges.c.server == channel.channel, literal(to, SafeText)), else_=exchanges.c.server)
    quoted_id = _with(prefix, exchanges.c.quoted_id)  # of a message that moves too
    moved = update(exchanges).values(channel=to, server=server, quoted_id=quoted_id)
    if free := [id for id, message in renamed.items() if message not in used]:
        await tx.execute(moved.where(exchanges.c.id.in_(free)).values(message=_with(prefix, exchanges.c.message)))
    for id in renamed.keys() - free:
        message = prefix + renamed[id]
        while await _used(tx, goal, [message]):
            message = prefix + message
        await tx.execute(moved.where(exchanges.c.id == id).values(message=message))
    of_them = update(parts).where(parts.c.exchange.in_(list(renamed)))
    await tx.execute(of_them.values(message=_with(prefix, parts.c.message)))
    return len(renamed)


async def _used(tx: WriteTransaction, channel: ChannelKey, messages: Collection[str]) -> set[str]:
    known = select(exchanges.c.message).where(within(channel), exchanges.c.message.in_(messages))
    return set((await tx.execute(known)).scalars())


async def rename_further(tx: WriteTransaction, channel: ChannelKey, to: str, ids: Collection[int]) -> int:
    """Move what these exchanges have read in the channel, with the ids that old messages get there; return 0."""
    here = further_messages.c.exchange.in_(ids), further_messages.c.channel == channel.channel
    moved = update(further_messages).where(*here, further_messages.c.platform == channel.platform)
    message = _with(f"{channel.channel} ", further_messages.c.message)
    await tx.execute(moved.values(channel=to, message=message))
    return 0  # exchanges


def _with(prefix: str, message: ColumnElement[str]) -> ColumnElement[str]:
    return literal(prefix, SafeText) + message

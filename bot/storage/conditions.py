"""Conditions and statements that several methods of the store use."""

from datetime import timedelta
from functools import cache
from typing import Any, assert_never

from sqlalchemy import ColumnElement, Update, and_, false, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import ChannelKey, Exchange, Kind, Status
from bot.lifecycle import ClaimEffect, Transition
from bot.storage.schema import IS_KEPT, channels, exchanges

# An open command may be the one that deletes, and is still owed its reply.
NOT_OPEN_COMMAND = or_(exchanges.c.kind != Kind.COMMAND, exchanges.c.status != Status.OPEN)

# The `failure` of a row whose message was deleted, not only cleared.
DELETED = "deleted"

# A platform delivers a message at most so long after its deletion.
TOMBSTONES_KEPT = timedelta(days=1)

# Exchanges of a channel among which those of one person are looked for.
SEARCHED_FOR_OWN = 2_000

# Built once, as `allowed` is: sums and lists are reference cycles, which only a full garbage collection frees.
_NEXT_FENCE = exchanges.c.fence + 1

NO_CHANGE = update(exchanges).where(false()).values(status=Status.OPEN)


def place(channel: ChannelKey) -> dict[str, str]:
    return {"platform": channel.platform, "channel": channel.channel, "thread": channel.thread or ""}


def here(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(*(channels.c[name] == value for name, value in place(channel).items()))


def with_threads(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(channels.c.platform == channel.platform, channels.c.channel == channel.channel)


async def has_channel(tx: AsyncConnection, channel: ChannelKey) -> bool:
    """Return whether the channel, or a thread of it, has exchanges."""
    return (await tx.execute(select(channels.c.thread).where(with_threads(channel)).limit(1))).first() is not None


def within(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(exchanges.c.platform == channel.platform, exchanges.c.channel == channel.channel)


def exactly(channel: ChannelKey) -> ColumnElement[bool]:
    thread = exchanges.c.thread
    return and_(within(channel), thread.is_(None) if channel.thread is None else thread == channel.thread)


def earlier(before: Exchange | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [exchanges.c.id < before.id]


def recent(before: Exchange) -> ColumnElement[bool]:
    """Select the last rows of the channel before an exchange, so that few of one person cost no more than that."""
    number = exchanges.c.id
    earlier_here = IS_KEPT, exactly(before.message.channel), number < before.id
    numbers = select(number).where(*earlier_here).order_by(number.desc())
    return number >= func.coalesce(numbers.offset(SEARCHED_FOR_OWN - 1).limit(1).correlate(None).scalar_subquery(), 0)


@cache
def allowed(transition: Transition) -> ColumnElement[bool]:
    return exchanges.c.status.in_(sorted(transition.origins))


def taken(owner: str | ColumnElement[str]) -> dict[str, Any]:
    return {"owner": owner, "fence": _NEXT_FENCE}


def held(exchange: Exchange) -> ColumnElement[bool]:
    """Select the row if the claim of `exchange` is still its latest one."""
    return and_(exchanges.c.id == exchange.id, exchanges.c.fence == exchange.fence)


def change(transition: Transition, *, owner: str | None = None, held_by: Exchange | None = None) -> Update:
    """Build the statement of a transition; an illegal one changes no row."""
    assert transition.needs_claim == (held_by is not None), "a worker's transition names its claim"
    statement = update(exchanges).where(allowed(transition))
    if held_by is not None:
        statement = statement.where(held(held_by))
    if transition.target is not None:
        statement = statement.values(status=transition.target)
    match transition.claim:
        case ClaimEffect.TAKE:
            assert owner is not None, "a claim has an owner"
            return statement.values(taken(owner))
        case ClaimEffect.KEEP:
            return statement
        case ClaimEffect.RELEASE:
            return statement.values(owner=None)
        case ClaimEffect.REVOKE:
            return statement.values(owner=None, fence=_NEXT_FENCE)
        case _:
            assert_never(transition.claim)

"""Statements for votes on answers, and for the consents of people that theirs are exported."""

from collections.abc import Collection
from functools import cache

from sqlalchemy import Delete, bindparam, delete, select

from bot.storage.schema import consents, feedback
from bot.storage.vault import WriteTransaction


async def delete_votes(tx: WriteTransaction, exchange_ids: Collection[int]) -> None:
    """Delete the votes on answers."""
    await tx.execute(_of_exchanges(), {"ids": list(exchange_ids)})


@cache
def _of_exchanges() -> Delete:
    return delete(feedback).where(feedback.c.exchange.in_(bindparam("ids", expanding=True)))


async def delete_some_votes(tx: WriteTransaction, most: int) -> bool:
    """Delete all votes on up to `most` answers; return whether there were any."""
    ids = set((await tx.execute(select(feedback.c.exchange).limit(most))).scalars())
    await delete_votes(tx, ids)
    return bool(ids)


async def delete_consents(tx: WriteTransaction) -> None:
    await tx.execute(delete(consents))


async def forget_voter(tx: WriteTransaction, person: str) -> None:
    """Delete the votes and the consent of a person; `person` is as in the rows."""
    await tx.execute(delete(feedback).where(feedback.c.voter == person))
    await tx.execute(delete(consents).where(consents.c.person == person))

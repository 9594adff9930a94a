"""Statements for votes on answers, and for the consents of people that theirs are exported."""

from collections.abc import Collection
from functools import cache

from sqlalchemy import Delete, bindparam, delete

from bot.storage.schema import consents, feedback
from bot.storage.vault import WriteTransaction


async def delete_votes(tx: WriteTransaction, exchange_ids: Collection[int]) -> None:
    """Delete the votes on answers."""
    await tx.execute(_of_exchanges(), {"ids": list(exchange_ids)})


@cache
def _of_exchanges() -> Delete:
    return delete(feedback).where(feedback.c.exchange.in_(bindparam("ids", expanding=True)))


async def forget_voter(tx: WriteTransaction, person: str) -> None:
    """Delete the votes and the consent of a person; `person` is as in the rows."""
    await tx.execute(delete(feedback).where(feedback.c.voter == person))
    await tx.execute(delete(consents).where(consents.c.person == person))

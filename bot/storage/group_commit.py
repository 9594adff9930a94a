"""Writes that wait for the writer together are committed in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from bot.storage.transactions import Transactions
from bot.storage.vault import WriteTransaction

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Group(Generic[Item, Result]):
    """Items of one transaction; `turn` is its number among the writers."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.items: list[Item] = []
        self.results: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()


class GroupCommit(Generic[Item, Result]):
    """Executes items in the order of their calls: a commit waits for the disk, an item hardly costs more.

    An item joins the group that still waits for the writer, if no other transaction has queued
    since.  `begin` opens the transaction, `execute` returns a result per item.
    """

    def __init__(
        self,
        transactions: Transactions,
        begin: Callable[[], AbstractAsyncContextManager[WriteTransaction]],
        execute: Callable[[WriteTransaction, Sequence[Item]], Awaitable[Sequence[Result]]],
    ) -> None:
        self._transactions = transactions
        self._begin = begin
        self._execute = execute
        self._waiting: _Group[Item, Result] | None = None

    async def run(self, item: Item) -> Result:
        """Return the result of an item once it is committed.

        Raises:
            StoreError: The transaction failed, for all of its items.
        """
        group = self._waiting
        if group is None or group.turn != self._transactions.turn:
            group = self._waiting = _Group(self._transactions.turn + 1)
            group.items.append(item)
            await self._commit(group)
            return group.results.result()[0]
        number = len(group.items)
        group.items.append(item)
        return (await asyncio.shield(group.results))[number]

    async def _commit(self, group: _Group[Item, Result]) -> None:
        try:
            async with self._begin() as tx:
                self._close(group)
                results = await self._execute(tx, group.items)
        except BaseException as error:
            self._close(group)
            if len(group.items) > 1:  # the others wait for it
                group.results.set_exception(error)
            raise
        group.results.set_result(results)

    def _close(self, group: _Group[Item, Result]) -> None:
        if self._waiting is group:
            self._waiting = None

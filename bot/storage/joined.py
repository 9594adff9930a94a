"""Claims, and questions that consist of several messages or have others beside them."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Row, Update, select, update

from bot import lifecycle
from bot.domain import (
    KINDS_OF_OTHERS,
    Attachment,
    Author,
    ChannelKey,
    Exchange,
    FurtherKind,
    FurtherMessage,
    Kind,
    Status,
    keep_known,
)
from bot.storage.conditions import allowed, change, held, with_threads, within
from bot.storage.encryption import DamagedRow, numbers_in
from bot.storage.feedback import delete_votes
from bot.storage.further import (
    delete_further,
    delete_linked,
    insert_further,
    own_texts,
    question_of,
    read_further,
    replace_contents,
    replace_texts,
    said_in,
    unreadable,
)
from bot.storage.opened import claiming, rows_of, shielded
from bot.storage.quoted_text import Said, replace_quotes
from bot.storage.rows import UNANSWERED, emptied
from bot.storage.schema import EXCHANGE, IS_KEPT, channels, exchanges, further_messages
from bot.storage.vault import WriteTransaction
from bot.storage.votes import Votes


class Joined(Votes):
    """The methods that claim, and those for further messages of questions."""

    @claiming
    async def join(self, owner: str, /, exchange: Exchange, message: FurtherMessage) -> Exchange | None:
        channel = exchange.message.channel
        async with self._claiming() as tx:
            question = await question_of(tx.connection, channel, message.id)
            if question is not None:
                owed = change(lifecycle.CLAIM, owner=owner).where(exchanges.c.id == question, self._unclaimed)
                return next(iter(await self._claimed(tx, owed)), None)
            known = select(exchanges.c.id).where(within(channel), exchanges.c.message == message.id)
            if (await tx.execute(known)).first() is not None:
                return None  # a question of its own, or deleted
            if not await self._can_reopen(tx, exchange.id):
                return None
            await insert_further(tx, self._vault, exchange.id, [message])
            return await self._reopen(tx, owner, exchange.id)

    @shielded
    async def find_continued(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        async with self._transactions.reading() as tx:
            question = await question_of(tx, channel, message_id)
        return None if question is None else await self._find(exchanges.c.id == question)

    @claiming
    async def edit_continuation(
        self, owner: str, /, channel: ChannelKey, message_id: str, text: str, files: Sequence[Attachment]
    ) -> Exchange | None:
        quotations, place = self._quotations(), (channel.platform, channel.channel)
        async with self._transactions.reading() as reader:
            before = await own_texts(reader, self._vault, said_in(channel, [message_id]))
        await quotations.prepare([Said(place, words) for _, words in before])
        async with self._claiming() as tx:
            question = await question_of(tx.connection, channel, message_id)
            if question is None:
                return None
            further = (await tx.run_sync(lambda connection: read_further(connection, self._vault, [question])))[
                question
            ]
            part = next(each for each in further if each.id == message_id)
            kept = keep_known(files, part.files)
            if (part.text, part.files) == (text, kept):
                # An earlier attempt may have stored the edit and lost the acknowledgement.
                owed = change(lifecycle.CLAIM, owner=owner).where(exchanges.c.id == question, self._unclaimed)
                return next(iter(await self._claimed(tx, owed)), None)
            await replace_contents(tx, question, part, text, kept)
            await replace_quotes(tx, channel, message_id, text)
            await replace_texts(tx, channel, message_id, text)
            await quotations.read_added(tx, {place})
            await quotations.redact(tx, [], [Said(place, part.text)])
            return await self._reopen(tx, owner, question)

    async def _can_reopen(self, tx: WriteTransaction, id: int) -> bool:
        row = select(exchanges.c.id).where(
            exchanges.c.id == id, exchanges.c.kind == Kind.CHAT, allowed(lifecycle.REQUEUE)
        )
        return (await tx.execute(row.with_for_update())).first() is not None

    async def _reopen(self, tx: WriteTransaction, owner: str, id: int) -> Exchange | None:
        """Open a question whose text has changed, without its answer, and claim it."""
        is_it = exchanges.c.id == id, allowed(lifecycle.REQUEUE)
        tx.keys.delete(*(await tx.execute(select(exchanges.c.answer_key).where(*is_it))).scalars())
        await delete_votes(tx, [id])
        await delete_linked(tx, id)
        again = change(lifecycle.REQUEUE, owner=owner).where(*is_it)
        values = {"seed": new_seed(), "failure": None, **UNANSWERED}
        return next(iter(await self._claimed(tx, again.values(values))), None)

    @shielded
    async def record_context(
        self, exchange: Exchange, messages: Sequence[FurtherMessage], kinds: Collection[FurtherKind] = KINDS_OF_OTHERS
    ) -> bool:
        held_row = select(exchanges.c.id).where(held(exchange), allowed(lifecycle.RECORD_FILES)).with_for_update()
        async with self._writing() as tx:
            if (await tx.execute(held_row)).first() is None:
                return False
            hidden = await unreadable(tx, self._vault, exchange.message.channel, messages)
            unknown = [each for each in messages if each not in hidden and not await self._is_known(tx, exchange, each)]
            await delete_further(tx, further_messages.c.exchange == exchange.id, further_messages.c.kind.in_(kinds))
            await insert_further(tx, self._vault, exchange.id, unknown)
            return True

    async def _is_known(self, tx: WriteTransaction, exchange: Exchange, message: FurtherMessage) -> bool:
        """Return whether a message is in the history anyway, or was deleted before this is stored."""
        there = within(ChannelKey(message.author.platform, message.channel)), exchanges.c.message == message.id
        row = (await tx.execute(select(exchanges.c.status).where(*there))).first()
        if row is not None:
            return message.kind is FurtherKind.BEFORE or row.status == Status.CLEARED
        return (
            await question_of(tx.connection, replace(exchange.message.channel, channel=message.channel), message.id)
            is not None
        )

    @shielded
    async def asked_between(
        self, channel: ChannelKey, author: Author, since: datetime, until: datetime
    ) -> list[Exchange]:
        said = exchanges.c.platform == channel.platform, exchanges.c.sent_at.between(since, until), IS_KEPT
        # By the time alone: of a few seconds there are few rows, of a person or a channel many.
        found = await self._select(select(*EXCHANGE).where(*said))
        return sorted(
            (
                each
                for each in found
                if each.kind is Kind.CHAT
                and each.message.channel.channel == channel.channel
                and each.message.author.key == author.key
            ),
            key=lambda each: each.id,
        )

    @shielded
    async def record_context_told(self, channel: ChannelKey) -> None:
        async with self._transactions.writing() as tx:
            await tx.execute(update(channels).where(with_threads(channel)).values(is_context_told=True))

    async def _claimed(self, tx: WriteTransaction, claim: Update | Insert) -> list[Exchange]:
        """Run a statement that claims rows, and return their exchanges."""
        return await self._readable_claims(tx, await rows_of(await tx.execute(claim.returning(*EXCHANGE))))

    async def _readable_claims(self, tx: WriteTransaction, rows: Sequence[Row[Any]]) -> list[Exchange]:
        """Return the exchanges of claimed rows; a row that cannot be decrypted has no texts.

        Where more than the texts is damaged nobody can be told, and the row fails.
        """
        readable, _ = await self._decrypt(tx.connection, rows, is_final=True)
        known = {exchange.id for exchange in readable}
        for row in rows:
            if row.id in known:
                continue
            try:
                exchange, changed = emptied(row._asdict())
                readable.append(exchange)
                tx.keys.delete(*numbers_in(exchanges, row._asdict()))
            except DamagedRow:
                changed = {"status": Status.FAILED, "owner": None, "fence": 0, "failure": "damaged row"}
            await tx.execute(update(exchanges).where(exchanges.c.id == row.id).values(changed))
        return readable


def new_seed() -> int:
    return secrets.randbits(63)

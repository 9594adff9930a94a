"""The methods of the store for votes on answers."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import Author, ChannelKey, Exchange, Kind, Scope, Status, Vote, VoteResult
from bot.storage.deletion import KEY, Deletion
from bot.storage.opened import shielded
from bot.storage.schema import consents, exchanges, feedback
from bot.storage.usage import stored_place


class Votes(Deletion):
    """The methods that store what people think of answers."""

    @shielded
    async def vote(
        self, exchange: Exchange, voter: Author, vote: Vote, at: datetime, press: str | None = None
    ) -> VoteResult:
        person = stored_place(Scope("user", voter.key), self._vault)
        async with self._transactions.writing() as tx:
            if not await self._is_answered(tx, exchange):
                return VoteResult.NO_ANSWER
            if press is not None and not await self._is_first(tx, exchange.message.channel, press):
                return VoteResult.REPEATED
            if await self._take_back(tx, exchange, person, vote):
                return VoteResult.TAKEN_BACK
            await self._put(tx, exchange, person, vote, at)
        return VoteResult(vote)

    @shielded
    async def react(self, exchange: Exchange, voter: Author, vote: Vote, at: datetime, *, is_added: bool) -> VoteResult:
        person = stored_place(Scope("user", voter.key), self._vault)
        async with self._transactions.writing() as tx:
            if not await self._is_answered(tx, exchange):
                return VoteResult.NO_ANSWER
            if not is_added:
                is_changed, result = await self._take_back(tx, exchange, person, vote), VoteResult.TAKEN_BACK
            else:
                is_changed, result = await self._put(tx, exchange, person, vote, at), VoteResult(vote)
        return result if is_changed else VoteResult.REPEATED

    async def _is_answered(self, tx: AsyncConnection, exchange: Exchange) -> bool:
        """Return whether the exchange still has its answer, which cannot be deleted before this transaction ends."""
        # An answer that is made again has another seed.
        is_answered = exchanges.c.kind == Kind.CHAT, exchanges.c.status.in_([Status.ANSWERED, Status.DELIVERED])
        answered = select(exchanges.c.id).where(
            exchanges.c.id == exchange.id, exchanges.c.seed == exchange.seed, *is_answered
        )
        return (await tx.execute(answered.with_for_update())).first() is not None

    async def _take_back(self, tx: AsyncConnection, exchange: Exchange, person: str, vote: Vote) -> bool:
        """Delete this vote; return False if there is none."""
        same = feedback.c.exchange == exchange.id, feedback.c.voter == person, feedback.c.vote == vote
        return bool((await tx.execute(delete(feedback).where(*same))).rowcount)

    async def _put(self, tx: AsyncConnection, exchange: Exchange, person: str, vote: Vote, at: datetime) -> bool:
        """Store this vote in place of another one; return False if it was stored before."""
        new = self._insert(feedback).values(exchange=exchange.id, voter=person, vote=vote, voted_at=at)
        changed = {name: new.excluded[name] for name in ("vote", "voted_at")}
        put = new.on_conflict_do_update(
            index_elements=list(feedback.primary_key), set_=changed, where=feedback.c.vote != vote
        )
        return (await tx.execute(put.returning(feedback.c.exchange))).first() is not None

    async def _is_first(self, tx: AsyncConnection, channel: ChannelKey, press: str) -> bool:
        """Remember a press for a day, as a message that may still come; return False if it came before."""
        await tx.execute(self._outdated_tombstones())
        # Slack's id of a press names the person.
        name = self._vault.pseudonym(channel.platform, press)
        # No message has such an id: those of platforms have no space.
        [row] = self._tombstones(channel, [f"press {name}"])
        new = self._insert(exchanges).on_conflict_do_nothing(index_elements=KEY).returning(exchanges.c.id)
        return (await tx.execute(new, row)).first() is not None

    @shielded
    async def own_votes(self, voter: Author, exchanges: Sequence[int]) -> dict[int, Vote]:
        person = stored_place(Scope("user", voter.key), self._vault)
        theirs = select(feedback.c.exchange, feedback.c.vote).where(
            feedback.c.voter == person, feedback.c.exchange.in_(exchanges)
        )
        async with self._transactions.reading() as tx:
            return {row.exchange: Vote(row.vote) for row in (await tx.execute(theirs)).all()}

    @shielded
    async def record_consent(self, person: Author, at: datetime | None) -> None:
        name = stored_place(Scope("user", person.key), self._vault)
        async with self._transactions.writing() as tx:
            if at is None:
                await tx.execute(delete(consents).where(consents.c.person == name))
            else:
                new = self._insert(consents).values(person=name, agreed_at=at)
                await tx.execute(new.on_conflict_do_nothing(index_elements=list(consents.primary_key)))

    @shielded
    async def has_consented(self, person: Author) -> bool:
        name = stored_place(Scope("user", person.key), self._vault)
        async with self._transactions.reading() as tx:
            return (await tx.execute(select(consents.c.person).where(consents.c.person == name))).first() is not None

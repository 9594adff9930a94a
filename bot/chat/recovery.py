"""Answer what a crash, a restart or an outage left undone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime

import structlog

from bot.chat.access import Access
from bot.chat.commands import is_forget, is_open_retry
from bot.chat.exchanges import Exchanges
from bot.chat.retries import Retries
from bot.chat.settings import ChatSettings
from bot.chat.standing import Standing, late_notice
from bot.chat.stream import refused
from bot.domain import Answer, Exchange, FinishReason, Kind, Status
from bot.errors import ClaimLost
from bot.util.clock import Calendar

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A smaller difference between two clocks is none: the header counts seconds.
_CLOCK_SKEW = timedelta(minutes=1)
_NOTHING = Standing()


class Recovery:
    """Claims everything owed on a platform, and settles what needs no answer any more."""

    def __init__(
        self, access: Access, exchanges: Exchanges, retries: Retries, settings: ChatSettings, calendar: Calendar
    ) -> None:
        self._access = access
        self._exchanges = exchanges
        self._retries = retries
        self._settings = settings
        self._calendar = calendar
        self._ahead: dict[str, timedelta] = {}  # of our clock, by platform

    def saw_date(self, platform: str, date: str) -> None:
        """Note a platform's time, an HTTP Date header: messages are not too old because our clock is ahead."""
        try:
            ahead = self._calendar.today() - parsedate_to_datetime(date)
        except (TypeError, ValueError):
            return
        self._ahead[platform] = ahead if ahead > _CLOCK_SKEW else timedelta()

    async def recover(self, platform: str) -> list[Exchange]:
        """Return the exchanges to be shown now, in the order of their rows, each claimed."""
        return await self.settle(await self.claim(platform))

    async def claim(self, platform: str) -> list[Exchange]:
        """Claim everything owed on the platform; each exchange is passed to `settle` or released."""
        owed = [*await self._exchanges.claim_owed(platform), *self._exchanges.take_pending(platform)]
        return sorted(owed, key=lambda exchange: exchange.id)

    async def settle(self, owed: Sequence[Exchange], standing: Standing = _NOTHING) -> list[Exchange]:
        """Return which of them are to be shown, in the order of their rows; if it fails, all are released.

        `standing` is what their channels show: a complete reply is adopted as the answer, another
        one is continued, and a deleted question whose reply has not begun is deleted here too.

        Questions older than `catch_up_minutes` whose reply had not begun are not answered
        any more: in each channel the newest gets a notice, which settles them all.
        """
        shown: list[Exchange] = []
        try:
            await self._settle(await self._adopt(owed, standing), shown)
        except BaseException:
            for exchange in [*owed, *shown]:
                self._exchanges.release(exchange)
            raise
        # An exchange that a /retry has requeued is here twice, the first time without its claim.
        return sorted(filter(self._exchanges.find, shown), key=lambda exchange: exchange.id)

    async def _adopt(self, owed: Sequence[Exchange], standing: Standing) -> list[Exchange]:
        """Return those that are still owed."""
        left = []
        for exchange in owed:
            reply, adopted = standing.replies.get(exchange.id), exchange
            if exchange.id in standing.deleted and not exchange.parts:
                # Its deletion may have been lost, or come before it.
                await self._exchanges.delete_messages(exchange.message.channel, [exchange.message.id])
                self._exchanges.release(exchange)
                continue
            with suppress(ClaimLost):  # deleted meanwhile
                if reply is not None:
                    if reply.thread is not None:
                        channel = replace(exchange.message.channel, thread=reply.thread)
                        await self._exchanges.move(self._exchanges.worker(exchange), channel)
                        adopted = self._exchanges.worker(exchange).exchange
                    adopted = await self._exchanges.adopt_parts(adopted, reply.parts)
                    # A reply that the row knows to have begun may be an older one: a requeued question keeps its parts.
                    is_new = exchange.kind is Kind.CHAT and exchange.answer is None and not exchange.parts
                    is_final = reply.is_complete and not reply.is_outdated and adopted.parts == reply.parts
                    if is_new and is_final:
                        await self._exchanges.settle(adopted, reply.answer)
                        log.info("reply adopted", exchange=exchange.id)
                        continue
                left.append(adopted)
        return left

    async def _settle(self, owed: list[Exchange], shown: list[Exchange]) -> None:
        admitted = []
        for exchange in owed:
            # A request to be forgotten is carried out even if its author was denied since.
            if exchange.is_unreadable or self._access.admits(exchange.message) or is_forget(exchange):
                admitted.append(exchange)
            else:
                await self._exchanges.fail(exchange, "not admitted any more")
        late = [exchange for exchange in admitted if self.is_late(exchange)]
        await self._settle_late(late, shown)
        for exchange in admitted:
            if exchange in late:
                continue
            if is_open_retry(exchange):
                with suppress(ClaimLost):  # deleted meanwhile
                    await self._settle_retry(exchange, shown)
            else:
                shown.append(exchange)

    def is_late(self, exchange: Exchange) -> bool:
        """Return whether the question is too old to be answered; a reply that was begun is always finished."""
        worker = self._exchanges.find(exchange)
        is_admitted = worker is not None and worker.is_admitted
        today = self._calendar.today() - self._ahead.get(exchange.message.channel.platform, timedelta())
        oldest = today - timedelta(minutes=self._settings.conversation.catch_up_minutes)
        return (
            exchange.answer is None
            and not exchange.parts
            and exchange.message.sent_at < oldest
            and not is_admitted
            and not is_forget(exchange)
        )

    async def _settle_late(self, late: list[Exchange], shown: list[Exchange]) -> None:
        # Threads count with their channel: where each question opens one, there would be a flood of notices.
        newest = {replace(exchange.message.channel, thread=None): exchange.id for exchange in late}
        for exchange in late:
            with suppress(ClaimLost):  # deleted meanwhile
                if exchange.id in newest.values():
                    translate = self._settings.translator_for(exchange.message)
                    shown.append(await self._exchanges.answer_with(exchange, refused(late_notice(translate))))
                else:
                    await self._exchanges.settle(exchange, Answer("", reason=FinishReason.ERROR))

    async def _settle_retry(self, retry: Exchange, shown: list[Exchange]) -> None:
        latest = await self._retries.target(retry)
        if latest is not None and latest.status is Status.OPEN:
            await self._exchanges.settle(retry, Answer(""))  # its question is going to be answered anyway
        else:
            shown.append(await self._retries.resolve(retry, latest))

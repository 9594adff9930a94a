"""Quotas: what people and places may use of the model in a day, a week or a month, and what they have used."""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial

from bot.chat.exchanges import Exchanges
from bot.chat.i18n import Translate, gettext_noop
from bot.chat.settings import ChatSettings
from bot.chat.worker import Worker
from bot.config.quotas import PERIODS, UNITS, Period, QuotaSection, Unit, first_day, next_start, oldest_day
from bot.domain import Answer, IncomingMessage, Queued, Scope, ScopeLevel, UsageSum
from bot.storage.base import Store
from bot.usage import counted_scopes, use_of
from bot.util.aio import Occasions, race

# Scopes whose use is remembered; what is forgotten is read again.
_REMEMBERED = 5_000


_AMOUNTS: dict[tuple[Unit, Period], str] = {
    ("answers", "day"): gettext_noop("answers per day: {count}"),
    ("answers", "week"): gettext_noop("answers per week: {count}"),
    ("answers", "month"): gettext_noop("answers per month: {count}"),
    ("tokens", "day"): gettext_noop("tokens per day: {count}"),
    ("tokens", "week"): gettext_noop("tokens per week: {count}"),
    ("tokens", "month"): gettext_noop("tokens per month: {count}"),
    ("seconds", "day"): gettext_noop("seconds of the model per day: {count}"),
    ("seconds", "week"): gettext_noop("seconds of the model per week: {count}"),
    ("seconds", "month"): gettext_noop("seconds of the model per month: {count}"),
}
_USED_UP: dict[ScopeLevel, str] = {
    "user": gettext_noop("You have used up your quota ({amount}); it returns in {time} ({date}, 00:00 UTC)."),
    "channel": gettext_noop("This channel has used up its quota ({amount}); it returns in {time} ({date}, 00:00 UTC)."),
    "server": gettext_noop("This server has used up its quota ({amount}); it returns in {time} ({date}, 00:00 UTC)."),
}


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of a person or a place, `used` by now; all of it returns at the beginning of `returns` (UTC)."""

    scope: Scope
    unit: Unit
    period: Period
    limit: int
    used: int
    returns: date

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    def amount(self, translate: Translate) -> str:
        """Return the limit in words: "answers per day: 50"."""
        return translate(_AMOUNTS[self.unit, self.period]).format(count=f"{self.limit:,}")


class Quotas:
    """The tables `[quotas.…]` of config.toml, and the ledger: every answer is counted, with or without a quota.

    The store keeps the sums, a memory of them spares most questions a query.  A question is checked when
    it is accepted and when its turn comes.  An answer begins if there is room after all that those under
    way may use: near a limit one at a time, so that a quota is passed by no more than that answer.
    """

    def __init__(
        self, store: Store, exchanges: Exchanges, settings: ChatSettings, today: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._exchanges = exchanges
        self._settings = settings
        self._today = today
        self._known: dict[Scope, dict[date, UsageSum]] = {}
        self._times_reread = 0  # what was read before the last time is not remembered
        self._lock = asyncio.Lock()
        self._under_way: dict[Worker, tuple[set[Scope], UsageSum]] = {}  # with the most that each may use
        self._waiting: dict[Worker, set[Scope]] = {}  # in the order in which they came
        self._ended = Occasions()

    @property
    def _tables(self) -> Mapping[str, QuotaSection]:
        return self._settings.quotas

    def reread_sums(self) -> None:
        """Read the sums again: the store has changed some."""
        self._known.clear()
        self._times_reread += 1

    async def refusal(self, message: IncomingMessage, translate: Translate, *, is_counted: bool = False) -> str | None:
        """Return a sentence if a quota is used up, that with the latest return.

        With `is_counted` the next answer is no further one.

        Raises:
            StoreError: The sums cannot be read.
        """
        return self._sentence(await self._concerned(message, is_counted=is_counted), translate)

    async def enter(
        self, worker: Worker, most: UsageSum, translate: Translate, show: Callable[[Queued], None]
    ) -> str | None:
        """Wait until the answer may begin, and return a sentence if a quota is used up by then; `leave` ends it.

        `most` is what the answer uses at most; `show` is told how many others come first.  Entered
        again, it begins anew.  A stopped worker does not wait.

        Raises:
            StoreError: The sums cannot be read.
        """
        self.leave(worker)
        try:
            while self._tables:
                ended = self._ended.count
                quotas = await self._concerned(worker.exchange.message, is_counted=worker.is_counted)
                if refusal := self._sentence(quotas, translate):
                    return refusal
                scopes = {quota.scope for quota in quotas}
                if ended == self._ended.count and all(self._has_room(quota) for quota in quotas):
                    self._under_way[worker] = (scopes, most)
                    return None
                if worker.is_stopped:
                    return None
                self._waiting[worker] = scopes
                show(Queued(self._position(worker)))
                await race(self._ended.after(ended), worker.wait_stopped())
            return None
        finally:
            self._waiting.pop(worker, None)

    def leave(self, worker: Worker) -> None:
        """End what `enter` began."""
        if self._under_way.pop(worker, None) is not None:
            self._ended.add()

    async def record_answer(self, worker: Worker, answer: Answer, seconds: float) -> None:
        """Store the answer and count what it has used.

        Raises:
            ClaimLost: Another worker goes on with the exchange; what was used is counted.
        """
        milliseconds = round(seconds * 1000)
        use = use_of(answer, milliseconds, is_counted=worker.is_counted)
        try:
            await self._record(worker, answer, use, milliseconds)
        finally:
            worker.is_counted |= use.answers > 0

    async def _record(self, worker: Worker, answer: Answer, use: UsageSum, milliseconds: int) -> None:
        exchange, today = worker.exchange, self._today().date()
        record = partial(
            self._exchanges.record_answer, exchange, answer, today, milliseconds, is_counted=worker.is_counted
        )
        if not self._tables:
            # Also afterwards: /usage may have read them before they were stored.
            self.reread_sums()
            try:
                await record()
            finally:
                self.reread_sums()
            return
        async with self._lock:
            times_reread = self._times_reread
            # If it fails or is cancelled, it may be stored nevertheless: the sums are read again.
            before = {scope: self._known.pop(scope, None) for scope in counted_scopes(exchange.message)}
            await record()
            for scope, days in before.items():
                if days is not None and times_reread == self._times_reread:
                    kept = {day: use for day, use in days.items() if day >= oldest_day(today)}
                    self._known[scope] = {**kept, today: kept.get(today, UsageSum()) + use}

    async def of(self, message: IncomingMessage) -> list[Quota]:
        """Return the quotas in force for a question, in the order user, channel, server.

        Raises:
            StoreError: The sums cannot be read.
        """
        today = self._today().date()
        found = []
        for scope, tables in self._limited(message):
            for period in PERIODS:
                for unit in UNITS:
                    limits = (table.limit(unit, period) for table in tables)
                    if limit := next((each for each in limits if each is not None), 0):
                        used = getattr(sum_since(await self._days(scope), first_day(period, today)), unit)
                        found.append(Quota(scope, unit, period, limit, used, next_start(period, today)))
        return found

    async def _concerned(self, message: IncomingMessage, *, is_counted: bool) -> list[Quota]:
        return [quota for quota in await self.of(message) if not (is_counted and quota.unit == "answers")]

    async def used(self, scope: Scope, period: Period) -> UsageSum:
        """Return what was used in the running period.

        Raises:
            StoreError: The sums cannot be read.
        """
        return sum_since(await self._days(scope), first_day(period, self._today().date()))

    def time_until(self, day: date, translate: Translate) -> str:
        """Return the time until a day begins, in words."""
        left = datetime.combine(day, time(), UTC) - self._today()
        return duration(left, translate)

    def _limited(self, message: IncomingMessage) -> Iterator[tuple[Scope, list[QuotaSection]]]:
        """Yield the scopes that have tables, with these, the most particular first."""
        own = {f"role:{message.author.platform}:{role}" for role in message.author.roles}
        for scope in counted_scopes(message):
            roles = [table for table in self._tables if table in own] if scope.level == "user" else []
            names = [f"{scope.level}:{scope.id}", *roles, scope.level]
            if tables := [self._tables[each] for each in names if each in self._tables]:
                yield scope, tables

    async def _days(self, scope: Scope) -> dict[date, UsageSum]:
        since = oldest_day(self._today().date())
        if (known := self._known.get(scope)) is not None:
            return known
        async with self._lock:
            # In the writer's turn, so that it has the answers whose storing was cancelled before.
            times_reread = self._times_reread
            days = await self._store.usage(scope, since)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            if times_reread == self._times_reread:
                self._known[scope] = days
            return days

    def _has_room(self, quota: Quota) -> bool:
        """Return whether an answer may begin although others are under way, each of which uses its most."""
        others = [most for scopes, most in self._under_way.values() if quota.scope in scopes]
        return not others or quota.used + sum(getattr(most, quota.unit) for most in others) < quota.limit

    def _position(self, worker: Worker) -> int:
        """Return how many answers come before one that waits, under way or waiting."""
        scopes = self._waiting[worker]
        earlier = itertools.takewhile(lambda other: other is not worker, self._waiting)
        others = [*(theirs for theirs, _ in self._under_way.values()), *(self._waiting[other] for other in earlier)]
        return max(1, sum(not scopes.isdisjoint(theirs) for theirs in others))

    def _sentence(self, quotas: list[Quota], translate: Translate) -> str | None:
        used_up = [quota for quota in quotas if not quota.left]
        if not used_up:
            return None
        last = max(used_up, key=lambda quota: quota.returns)
        return translate(_USED_UP[last.scope.level]).format(
            amount=last.amount(translate), time=self.time_until(last.returns, translate), date=last.returns
        )


def sum_since(days: Mapping[date, UsageSum], first: date) -> UsageSum:
    """Return what was used since that day."""
    return sum((use for day, use in days.items() if day >= first), UsageSum())


def duration(left: timedelta, translate: Translate) -> str:
    """Write the time until a quota returns.

    >>> [duration(timedelta(hours=hours), str) for hours in (0.1, 5.5, 26)]
    ['6 min', '5 h 30 min', '1 d 2 h']
    """
    minutes = max(1, math.ceil(left.total_seconds() / 60))
    if minutes < 60:
        return translate("{minutes} min").format(minutes=minutes)
    if minutes < 24 * 60:
        return translate("{hours} h {minutes} min").format(hours=minutes // 60, minutes=minutes % 60)
    hours = math.ceil(minutes / 60)
    return translate("{days} d {hours} h").format(days=hours // 24, hours=hours % 24)

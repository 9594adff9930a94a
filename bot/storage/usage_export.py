"""Read the whole ledger: what people, channels, servers and platforms have used, by day."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import func, select

from bot.domain import Scope, UsageSum
from bot.storage.export import open_snapshot, reading_vault
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.schema import usage
from bot.storage.usage import SUMS, people_of, to_use

_HEAD = ("day", "level", "id", "answers", "prompt_tokens", "completion_tokens", "seconds")
_WORDS = 3  # columns before those of numbers
# Places of a report.
_MOST_PLACES = 20


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Sums since a day: of all platforms by day, and of the channels, servers and platforms that used the most."""

    days: Mapping[date, UsageSum] = field(default_factory=dict)
    places: Sequence[tuple[Scope, UsageSum]] = ()


def report_usage(url: str, since: date) -> UsageReport:
    """Add up the ledger since a day, without people; the most tokens first.

    Raises:
        StoreError: The database cannot be read.
    """
    sums = [func.sum(usage.c[name]).label(name) for name in SUMS]
    total = func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
    recent = usage.c.day >= since
    # Each answer is counted for one platform.
    by_day = select(usage.c.day, *sums).where(usage.c.level == "platform", recent).group_by(usage.c.day)
    place = usage.c.level, usage.c.place
    by_place = select(*place, *sums).where(usage.c.level != "user", recent).group_by(*place)
    most = by_place.order_by(total.desc(), *place).limit(_MOST_PLACES)
    with open_snapshot(url) as connection:
        return UsageReport(
            {row.day: to_use(row) for row in connection.execute(by_day)},
            [(Scope(row.level, row.place), to_use(row)) for row in connection.execute(most)],
        )


def export_usage(url: str, master: MasterKeys = NO_MASTER_KEY) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table with its head, oldest day first; a person without stored messages has no id.

    Raises:
        StoreError: The database cannot be read.
    """
    with open_snapshot(url) as connection, reading_vault(url, connection, master) as vault:
        yield _HEAD
        people = select(usage.c.place).where(usage.c.level == "user").distinct()
        known = people_of(connection, vault, connection.execute(people).scalars().all())
        for row in connection.execute(select(usage).order_by(usage.c.day, usage.c.level, usage.c.place)):
            use: UsageSum = to_use(row)
            id = known.get(row.place, "") if row.level == "user" else row.place
            sums = use.answers, use.prompt_tokens, use.completion_tokens, use.milliseconds / 1000
            yield (str(row.day), row.level, id, *map(str, sums))


def csv_lines(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(row)
        yield line.getvalue()


def aligned(rows: Iterable[tuple[str, ...]], words: int = _WORDS) -> Iterator[str]:
    """Yield the rows in columns; numbers, after the first columns of `words`, end below each other."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if number < words else cell.rjust(width) for number, (cell, width) in enumerate(cells)
        )

"""Usage of the last days: a chart and tables, without people."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from bot.adapters.web.panel.html import Html, table, text
from bot.chat.i18n import Translate, gettext_noop
from bot.domain import ScopeLevel, UsageSum
from bot.errors import StoreError
from bot.storage.usage_export import UsageReport
from bot.util.clock import Clock

DAYS = 30
# Seconds until the ledger is read again.
_READ_EVERY = 60.0
# Of the chart, in units of its viewBox.
_HEIGHT, _STEP, _BAR = 120, 20, 14

_LEVELS: dict[ScopeLevel, str] = {
    "channel": gettext_noop("channel"),
    "server": gettext_noop("server"),
    "platform": gettext_noop("platform"),
}


class RecentUsage:
    """The usage of the last days, read for all pages together, at most once a minute."""

    def __init__(self, read: Callable[[date], UsageReport], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._lock = asyncio.Lock()
        self._read_at: float | None = None
        self._found: UsageReport | str = UsageReport()

    async def find(self, today: date) -> UsageReport | str:
        """Return the report, the same object until it is read again; a sentence if it cannot be read."""
        async with self._lock:
            if self._read_at is None or self._clock.now() - self._read_at >= _READ_EVERY:
                try:
                    self._found = await asyncio.to_thread(self._read, first_day(today))
                except StoreError as error:
                    self._found = str(error)
                self._read_at = self._clock.now()
            return self._found


def first_day(today: date) -> date:
    return today - timedelta(days=DAYS - 1)


def usage_html(report: UsageReport | str, today: date, translate: Translate) -> Html:
    """Return the section's content."""
    if isinstance(report, str):
        return Html(f"<p>{text(translate('The usage cannot be read: {why}').format(why=report))}</p>")
    if not any(use.answers for use in report.days.values()):
        nothing = translate("Nothing was used in these days.")
        return Html(f"<p>{text(nothing)}</p>")
    heads = translate("Answers"), translate("Tokens"), translate("Seconds of the model")
    days = [(str(day), *_numbers(report.days[day])) for day in sorted(report.days, reverse=True)]
    places = [
        (f"{scope.id} ({translate(_LEVELS.get(scope.level, scope.level))})", *_numbers(use))
        for scope, use in report.places
    ]
    by_day = table("table-days", translate("Usage by day"), (translate("Day"), *heads), days)
    by_place = table("table-places", translate("Usage by place"), (translate("Channel or server"), *heads), places)
    note = translate("Days are those of UTC. The sums of people are not shown here.")
    return Html(f'{chart(report, today, translate)}<div class="pair">{by_day}{by_place}</div><p>{text(note)}</p>')


def chart(report: UsageReport, today: date, translate: Translate) -> Html:
    """Return a bar chart of the tokens by day, the last day at the right."""
    first = first_day(today)
    days = [first + timedelta(days=number) for number in range(DAYS)]
    tokens = [report.days.get(day, UsageSum()).tokens for day in days]
    most = max(tokens)
    name = translate("Tokens by day, {first} to {last}; the most are {most}").format(
        first=first, last=today, most=f"{most:,}"
    )
    bars = "".join(_bars(days, tokens, translate))
    return Html(
        f'<svg role="img" aria-label="{text(name)}" viewBox="0 0 {DAYS * _STEP} {_HEIGHT}" '
        f'preserveAspectRatio="none">{bars}</svg>'
        f'<p class="axis" aria-hidden="true"><span>{first}</span><span>{today}</span></p>'
    )


def _bars(days: list[date], tokens: list[int], translate: Translate) -> Iterator[str]:
    most = max(tokens)
    for number, (day, count) in enumerate(zip(days, tokens, strict=True)):
        if not count:
            continue
        height = max(round(count / most * _HEIGHT), 2)  # little use is visible beside much
        label = translate("{day}: {tokens} tokens").format(day=day, tokens=f"{count:,}")
        yield (
            f'<rect x="{number * _STEP + (_STEP - _BAR) // 2}" y="{_HEIGHT - height}" width="{_BAR}" height="{height}">'
            f"<title>{text(label)}</title></rect>"
        )


def _numbers(use: UsageSum) -> tuple[str, str, str]:
    return f"{use.answers:,}", f"{use.tokens:,}", f"{use.seconds:,}"

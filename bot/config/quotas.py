"""Quotas of people and places: `[quotas.user]`, `[quotas."role:discord:123"]`."""

import re
from datetime import date, timedelta
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from bot.config.section import Section

Unit = Literal["answers", "tokens", "seconds"]
Period = Literal["day", "week", "month"]
UNITS: tuple[Unit, ...] = get_args(Unit)
PERIODS: tuple[Period, ...] = get_args(Period)

_NAME = re.compile(r"(user|channel|server)|(user|role|channel|server):[^:\s]+:\S+")


class QuotaSection(Section):
    """A quota; days, weeks (from Monday) and months are those of UTC; 0 = no limit."""

    answers_per_day: int | None = Field(default=None, ge=0, description="answers from 00:00 to 24:00 UTC")
    answers_per_week: int | None = Field(default=None, ge=0, description="answers from Monday to Sunday")
    answers_per_month: int | None = Field(default=None, ge=0, description="answers in a calendar month")
    tokens_per_day: int | None = Field(default=None, ge=0, description="tokens a day, prompts and answers together")
    tokens_per_week: int | None = Field(default=None, ge=0, description="tokens a week")
    tokens_per_month: int | None = Field(default=None, ge=0, description="tokens a month")
    seconds_per_day: int | None = Field(
        default=None,
        ge=0,
        description="seconds a day in which the model wrote, from the first word of an answer to its last",
    )
    seconds_per_week: int | None = Field(default=None, ge=0, description="seconds a week in which the model wrote")
    seconds_per_month: int | None = Field(default=None, ge=0, description="seconds a month in which the model wrote")

    def limit(self, unit: Unit, period: Period) -> int | None:
        value: int | None = getattr(self, f"{unit}_per_{period}")
        return value


def _check_quota(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot have a quota: write user, channel or server (for each of them), or one of "
            'them as in "user:discord:123", "role:discord:123", "channel:slack:C01", "server:discord:123"'
        )
    return name


QuotaName = Annotated[str, AfterValidator(_check_quota)]


def first_day(period: Period, today: date) -> date:
    """Return the first day of the period that runs.

    >>> first_day("week", date(2026, 11, 29)), first_day("month", date(2026, 11, 29))
    (datetime.date(2026, 11, 23), datetime.date(2026, 11, 1))
    """
    match period:
        case "day":
            return today
        case "week":
            return today - timedelta(days=today.weekday())
        case "month":
            return today.replace(day=1)


def next_start(period: Period, today: date) -> date:
    """Return the first day of the next period.

    >>> next_start("week", date(2026, 11, 29)), next_start("month", date(2026, 12, 31))
    (datetime.date(2026, 11, 30), datetime.date(2027, 1, 1))
    """
    longest = {"day": 1, "week": 7, "month": 31}[period]
    return first_day(period, first_day(period, today) + timedelta(days=longest))


def oldest_day(today: date) -> date:
    """Return the first day of all periods that run."""
    return min(first_day(period, today) for period in PERIODS)

"""The calendar while the system clock is changed."""

from datetime import timedelta

from bot.util.clock import Calendar
from tests.harness.fakes import ManualClock
from tests.harness.messages import NOON


class Wall:
    """A wall clock that follows a ManualClock and can be moved."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.moved = timedelta()
        self.calendar = Calendar(self.clock, lambda: NOON + timedelta(seconds=self.clock.now() - 1000) + self.moved)

    def after(self, **time: float) -> timedelta:
        """Let time pass; return the difference between the calendar and noon."""
        self.clock.jump(timedelta(**time).total_seconds())
        return self.calendar.today() - NOON


def test_the_date_follows_the_monotonic_clock() -> None:
    assert Wall().after(hours=5) == timedelta(hours=5)


def test_a_jump_of_a_year_for_a_minute_is_ignored() -> None:
    wall = Wall()
    wall.moved = timedelta(days=365)
    assert wall.after(minutes=1) == timedelta(minutes=1)
    wall.moved = timedelta()
    assert wall.after(hours=2) == timedelta(hours=2, minutes=1)


def test_a_jump_ahead_is_trusted_after_an_hour() -> None:
    wall = Wall()
    wall.moved = timedelta(days=1)
    assert wall.after(minutes=10) == timedelta(minutes=10)
    assert wall.after(minutes=61) == timedelta(days=1, minutes=71)


def test_a_clock_set_back_is_followed_at_once() -> None:
    wall = Wall()
    wall.moved = timedelta(days=-1)
    assert wall.after(minutes=1) == timedelta(days=-1, minutes=1)

"""The date, while somebody moves the machine's clock."""

from datetime import timedelta

from bot.util.clock import Calendar
from tests.harness.fakes import ManualClock
from tests.harness.messages import NOON


class Wall:
    """A wall clock that goes with a ManualClock, and can be moved."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.moved = timedelta()
        self.calendar = Calendar(self.clock, lambda: NOON + timedelta(seconds=self.clock.now() - 1000) + self.moved)

    def after(self, **time: float) -> timedelta:
        """How far the calendar is from noon once so much time has passed."""
        self.clock.jump(timedelta(**time).total_seconds())
        return self.calendar.today() - NOON


def test_the_date_goes_on_with_the_clock() -> None:
    assert Wall().after(hours=5) == timedelta(hours=5)


def test_a_year_that_came_for_a_minute_is_not_believed() -> None:
    wall = Wall()
    wall.moved = timedelta(days=365)
    assert wall.after(minutes=1) == timedelta(minutes=1)
    wall.moved = timedelta()
    assert wall.after(hours=2) == timedelta(hours=2, minutes=1)


def test_a_date_that_stays_is_believed_after_an_hour() -> None:
    wall = Wall()
    wall.moved = timedelta(days=1)
    assert wall.after(minutes=10) == timedelta(minutes=10)
    assert wall.after(minutes=61) == timedelta(days=1, minutes=71)


def test_a_clock_that_is_set_back_is_followed_at_once() -> None:
    wall = Wall()
    wall.moved = timedelta(days=-1)
    assert wall.after(minutes=1) == timedelta(days=-1, minutes=1)

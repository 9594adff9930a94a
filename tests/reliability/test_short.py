"""Every figure in its short form: what must come out, whatever the machine's speed."""

import pytest

from tests.chaos.figure import figures

FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
async def test_the_promise_is_kept(name: str) -> None:
    rows = [row async for row in FIGURES[name].rows("short", seed=7)]

    assert rows, "a figure counts something"
    assert [row for row in rows if not row.is_kept] == []

"""The benchmark of the pages, in a small form: what it measures is there, whatever the machine's speed."""

from benchmarks.web import loop, panel


async def test_the_event_loop_is_measured_beside_clients_that_read_answers() -> None:
    (late,) = await loop(clients=3, seconds=0.5)
    assert (late.unit, late.target) == ("ms", 50.0)
    assert late.value > 0
    assert "3 clients" in late.remark


async def test_the_panel_is_measured_beside_running_replies() -> None:
    (share,) = await panel(replies=5, seconds=0.5)
    assert (share.unit, share.target) == ("share", 0.05)
    assert "5 running replies" in share.remark

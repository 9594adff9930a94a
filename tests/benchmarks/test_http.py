"""The benchmark of the HTTP APIs, in a small form: what it measures is there, whatever the machine's speed."""

from benchmarks.http import overhead, slow


async def test_the_overhead_is_measured_against_the_bare_engine() -> None:
    rate, first = await overhead(rounds=1, tokens=4)
    assert (rate.unit, rate.target, first.unit, first.target) == ("share", 0.05, "ms", 5.0)
    assert rate.value < 1
    assert "tok/s" in rate.remark


async def test_slow_clients_are_connected_beside_a_chat() -> None:
    late, chat, files = await slow(count=8, seconds=1.0)
    assert "8 clients" in late.remark
    assert late.value > 0
    assert chat.value > 0
    assert files.value > 8

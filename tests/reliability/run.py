"""Run one figure."""

from contextlib import aclosing

from tests.chaos.figure import Figure, Row, Scale


async def measure(figure: Figure, scale: Scale, seed: int) -> list[Row]:
    """Run one figure, printing each row as it comes."""
    rows: list[Row] = []
    async with aclosing(figure.rows(scale, seed)) as found:  # type: ignore[type-var]  # they are generators
        async for row in found:
            verdict = "ok" if row.is_kept and row.is_in_time else "FAILED" if not row.is_kept else "TOO SLOW"
            print(f"{figure.NAME:<4} {row.subject:<12} {verdict:<9} {row.result}", flush=True)
            rows.append(row)
    return rows

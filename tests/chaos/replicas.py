"""R34: several bots that share the platforms of one database (PostgreSQL), of which one is killed, stopped or cut off.

`cluster.share` is set: each platform is served by one of three bots.  The faults are those of takeover.py, each into the
bot that serves a platform chosen at random, and perhaps others, or into the server; users write on all platforms.
"""

from collections.abc import AsyncIterator

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS
from tests.chaos.takeover import replace_repeatedly, row_of
from tests.harness.postgres import MISSING, PostgresServer, programs

NAME = "R34"


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    folder = programs()
    if folder is None:
        yield Row("the bots", MISSING, is_kept=scale == "short")
        return
    with PostgresServer(folder) as server:
        rounds = 20 if scale == "full" else 1
        results, cluster = await replace_repeatedly(PLATFORMS, server, rounds, seed, is_shared=True)
    for name, result in results.items():
        yield row_of(name, result, cluster)

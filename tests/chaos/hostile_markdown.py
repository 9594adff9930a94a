"""R22: hostile Markdown: the longest step on the event loop while it streams.

The bot is a process whose engine answers with brackets, fences, emphasis, tables, half links
and mixtures of them, up to the longest answer.  A step is a callback of the event loop; its
time is the CPU time of the loop's own thread, so that a busy machine does not count.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from bot.domain import Action
from tests.chaos.figure import Row, Scale
from tests.chaos.hostile_texts import LENGTH, hostile_texts
from tests.chaos.processes import PLATFORMS, logged_errors, loop_report, run_bot, until
from tests.harness.loop_monitor import longest_allowed
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES

NAME = "R22"

TEXTS = {"full": 200, "short": 6}
_ROOMS = 8
_TIMEOUT = 600.0  # seconds for one answer


async def stream_texts(name: str, count: int, seed: int) -> Row:
    """Have all texts answered, and read the bot's report of its event loop."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        more = {"HOSTILE_COUNT": str(count), "HOSTILE_SEED": str(seed), "BOT_ENGINE__MAX_BATCH_SIZE": str(_ROOMS)}
        async with PROFILES[name].open() as platform:
            async with run_bot({name: platform}, folder, more, "tests.chaos.hostile_bot") as bot:
                await bot.connected()
                rooms = [_room(platform, f"room{room}", range(room, count, _ROOMS)) for room in range(_ROOMS)]
                unanswered = [number for missing in await asyncio.gather(*rooms) for number in missing]
            violations = [each for each in platform.violations if "changes nothing" not in each]
        longest = loop_report(folder)
        slow = [
            str(json.loads(line).get("event", line))[:300] if line.startswith("{") else line[:300]
            for line in logged_errors(folder)
        ]
    told = (
        f"{count} texts of {LENGTH:,} characters: longest step {1000 * longest.cpu:.1f} ms of CPU time "
        f"({1000 * longest.wall:.1f} ms by the clock), steps over {1000 * longest_allowed():.0f} ms and errors {len(slow)}, "
        f"unanswered {len(unanswered)}, violations {len(violations)}"
    )
    texts = list(hostile_texts(count, seed))
    for why in [*slow[:5], *(f"unanswered: {texts[number][:60]!r}" for number in unanswered[:10]), *violations[:5]]:
        told += f"\n     {why}"
    return Row(name, told, not (slow or unanswered or violations))


async def _room(platform: LoopbackPlatform, channel: str, numbers: range) -> list[int]:
    """Ask for one text after another; return those that were not answered to the end."""
    missing: list[int] = []
    for done, number in enumerate(numbers, start=1):
        await platform.say(f"hostile {number}", channel=channel)

        def complete(done: int = done) -> bool:
            shown = platform.seen(channel)
            return sum(Action.RETRY in seen.actions for seen in shown if seen.author == "bot") + len(missing) >= done

        with suppress(TimeoutError):
            await until(complete, _TIMEOUT)
            continue
        missing.append(number)
    return missing


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PLATFORMS:
        yield await stream_texts(name, TEXTS[scale], seed)

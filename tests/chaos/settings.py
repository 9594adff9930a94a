"""R21: config.toml edited under load: garbage, mistakes, changes, three models in a row.

The bot is a process; users of all platforms ask meanwhile.  A file with mistakes changes
nothing and ends nothing; at most one model is in memory, and the last wish wins.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.figure import Row, Scale
from tests.chaos.one_platform import Asker
from tests.chaos.processes import PLATFORMS, run_bot, until
from tests.harness.platform_bench import PROFILES

NAME = "R21"

EDITS = {"full": 40, "short": 3}
_READ_SECONDS = {"full": 6.0, "short": 0.5}
# The file is read every second, and applied after two equal reads.
_SEEN_SECONDS = 2.2
_LAST_WISH = "the last wish"
_TIMEOUT = 600.0
_MISTAKES = (
    "a = " + "[" * 100_000,
    "a = " + "{b = " * 20_000,
    "\x00\x01\x02",
    "[limits\n",
    "[limits]\nanswer_seconds = 'soon'\n",
    "[limits]\nanswer_seconds = -1e999\n",
    "[engine]\nmodel = 7\n",
    "[engine]\nmax_batch_size = 0\n",
    "[no_such_table]\nx = 1\n",
    "[access]\nadmins = 'everybody'\n",
    "x = 1\nx = 2\n",
    "# " + "一" * 1_000_000 + "\n[[conversation]]\n",
)


@dataclass
class EditResult:
    """Edits of the file, and what the bot made of them."""

    kinds: dict[str, int] = field(default_factory=dict)
    models: int = 0
    answers: int = 0
    rejected: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        text = f"edits: {kinds}; reported as rejected {self.rejected}, models in memory at most {self.models}, "
        text += f"answers meanwhile {self.answers}, faults {len(self.faults)}"
        return text + "".join(f"; {fault}" for fault in self.faults[:5])

    @property
    def is_kept(self) -> bool:
        return not self.faults and self.models == 1 and self.rejected > 0


async def edit_settings(scale: Scale, seed: int) -> EditResult:
    """Edit the file while users ask."""
    chance, result = random.Random(f"{seed} settings"), EditResult()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file, counted = folder / "config.toml", folder / "counted"
        file.write_text("", encoding="utf-8")
        more = {"READ_SECONDS": str(_READ_SECONDS[scale]), "COUNTED": str(counted)}
        async with (
            PROFILES["discord"].open() as discord,
            PROFILES["telegram"].open() as telegram,
            PROFILES["slack"].open() as slack,
        ):
            askers = [Asker(platform) for platform in (discord, telegram, slack)]
            platforms = dict(zip(PLATFORMS, (discord, telegram, slack), strict=True))
            async with run_bot(platforms, folder, more, "tests.chaos.counted_bot") as bot:
                await bot.connected()
                is_over = asyncio.Event()
                asking = [asyncio.ensure_future(_keep_asking(asker, is_over, result)) for asker in askers]
                size = 8
                for number in range(EDITS[scale]):
                    size = await _edit(file, chance, number, size, result)
                # The last wish, after all others.
                file.write_text(f'[engine]\nmodel = "{_LAST_WISH}"\n', encoding="utf-8")
                try:
                    await until(lambda: _is_last_wish_met(folder) or bot.process.returncode is not None, _TIMEOUT)
                except TimeoutError:
                    result.faults.append("the last wish is not met")
                is_over.set()
                await asyncio.gather(*asking)
                if bot.process.returncode is not None:
                    result.faults.append(f"the bot ended with {bot.process.returncode}")
        result.models = int(counted.read_text(encoding="ascii"))
        for event in _events(folder):
            result.rejected += "config reload rejected" in event["event"]
            if event["level"] in ("error", "critical") and "config reload rejected" not in event["event"]:
                result.faults.append(event["event"][:200])
        result.faults += [fault for asker in askers for fault in asker.faults]
    return result


async def _edit(file: Path, chance: random.Random, number: int, size: int, result: EditResult) -> int:
    """Edit the file once, or three times for three models; return the batch size that it wishes."""
    kind = ("mistake", "three models", "mistake", "change")[number % 4]
    result.kinds[kind] = result.kinds.get(kind, 0) + 1
    match kind:
        case "mistake":
            file.write_text(chance.choice(_MISTAKES), encoding="utf-8")
        case "change":
            seconds = chance.randrange(100, 900)
            file.write_text(
                f"[engine]\nmax_batch_size = {size}\n[limits]\nanswer_seconds = {seconds}\n", encoding="utf-8"
            )
        case _:
            for _ in range(3):
                size += 1
                file.write_text(f"[engine]\nmax_batch_size = {size}\n", encoding="utf-8")
                await asyncio.sleep(_SEEN_SECONDS)
            return size
    # The first mistake is seen; others may be replaced before.
    await asyncio.sleep(chance.uniform(0.1, 1.2) * _SEEN_SECONDS if number else 1.2 * _SEEN_SECONDS)
    return size


async def _keep_asking(asker: Asker, is_over: asyncio.Event, result: EditResult) -> None:
    while not is_over.is_set():
        await asker.ask("room0")
        result.answers += 1


def _events(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _is_last_wish_met(folder: Path) -> bool:
    changed = [event for event in _events(folder) if event["event"] == "model changed"]
    return bool(changed) and changed[-1]["model"] == _LAST_WISH


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    result = await edit_settings(scale, seed)
    yield Row("the bot", str(result), result.is_kept)

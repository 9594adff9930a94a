"""`python -m tests.adapters.picture`: draw replies of the demo model as they stream on Discord, for the READMEs.

The adapter, its library, the engine and the model are real and the server is on this machine, as in `demo`.  Every state of every
message, and its moment, is what a user there would see; frames are CSS, so that no script is needed to play them.
"""

import asyncio
import logging
import re
import sys
import textwrap
import unicodedata
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import structlog

from bot.config.schema import EngineSection
from bot.domain import Action, SamplingParams
from bot.engine import open_engine
from tests.harness.fakes import FastClock
from tests.harness.platform import Seen
from tests.harness.platform_bench import Bench, open_bench

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
_SCRIPTS = {"en": ("Mei", ["Hello", "What is quantization?"]), "zh": ("小梅", ["你好", "什么是量化？"])}
# As `bot/adapters/discord/messenger.py` labels them.
_BUTTONS = {Action.STOP: "⏹️", Action.RETRY: "🔄"}
_CHANNEL = "general"
# The clock of the bot, against that of this machine; edits come at the platform's own intervals of it.
_FACTOR = 5.0
_WAIT_SECONDS = 60.0
# How long the last state stays.
_REST_SECONDS = 4.0
_WIDTH, _COLUMNS, _LINE, _TOP, _LEFT = 680, 76, 19, 14, 16
_STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; fill: #1f2328; white-space: pre }
.name { font-weight: bold } .bot { fill: #0969da } .button { fill: #59636e } .edge { fill: #ffffff; stroke: #d1d9e0 }
g { opacity: 0 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .bot { fill: #4493f8 } .button { fill: #9198a1 } .edge { fill: #0d1117; stroke: #3d444d }
}
"""


@dataclass(slots=True)
class Recorder:
    """All states of a channel with the seconds at which they were first seen."""

    bench: Bench
    clock: FastClock
    frames: list[tuple[float, list[Seen]]] = field(default_factory=list)

    def look(self) -> list[Seen]:
        now = list(self.bench.platform.seen(_CHANNEL))
        if not self.frames or self.frames[-1][1] != now:
            self.frames.append((self.clock.now(), now))
        return now

    async def ask(self, text: str, author: str) -> None:
        """Mention the bot, and record until its answer is complete."""
        before = len(self.look())
        await self.bench.platform.say(text, author=author, channel=_CHANNEL)

        def is_answered() -> bool:
            return any(Action.RETRY in seen.actions for seen in self.look()[before:])

        await self.bench.platform.until(is_answered, _WAIT_SECONDS)


async def record(language: str) -> list[tuple[float, list[Seen]]]:
    """Ask the demo model the questions of a language on Discord, greedily."""
    author, questions = _SCRIPTS[language]
    clock = FastClock(_FACTOR)
    async with open_bench("discord", open_engine(EngineSection()), clock, SamplingParams(temperature=0)) as bench:
        recorder = Recorder(bench, clock)
        for question in questions:
            await recorder.ask(question, author)
        return recorder.frames


def lines_of(messages: list[Seen]) -> list[tuple[str, str]]:
    """Return the lines of a frame with their classes."""
    lines: list[tuple[str, str]] = []
    for seen in messages:
        is_bot = seen.reply_to is not None
        lines.append(("name bot" if is_bot else "name", "@bot" if is_bot else seen.author))
        text = re.sub(r"<@\w+>", "@bot", seen.markdown)
        lines += [("", part) for line in text.split("\n") for part in wrapped(line)]
        if seen.actions:
            lines.append(("button", "  ".join(_BUTTONS[each] for each in sorted(seen.actions))))
        lines.append(("", ""))
    return lines[:-1]


def wrapped(line: str) -> list[str]:
    """Break a line at the picture's width; a Chinese character takes two columns.

    >>> wrapped("short"), wrapped("")
    (['short'], [''])
    """
    if any(unicodedata.east_asian_width(each) == "W" for each in line):
        return textwrap.wrap(line, _COLUMNS // 2) or [""]
    return textwrap.wrap(line, _COLUMNS) or [""]


def drawn(frames: list[tuple[float, list[Seen]]]) -> str:
    """Draw the frames one after another; without animation the last one is visible."""
    begin = frames[0][0]
    total = frames[-1][0] - begin + _REST_SECONDS
    height = _TOP * 2 + _LINE * max(len(lines_of(messages)) for _, messages in frames)
    styles, groups = [_STYLE], []
    for number, (moment, messages) in enumerate(frames):
        is_last = number == len(frames) - 1
        start = 100 * (moment - begin) / total
        end = 100.0 if is_last else 100 * (frames[number + 1][0] - begin) / total
        hide = "" if is_last else f"{end:.2f}%,100%{{opacity:0}}"
        styles.append(f"@keyframes f{number}{{0%{{opacity:0}}{start:.2f}%{{opacity:1}}{hide}}}")
        styles.append(f"#f{number}{{animation:f{number} {total:.1f}s step-end infinite}}")
        rows = "".join(
            f'<text x="{_LEFT}" y="{_TOP + _LINE * (row + 1) - 5}" class="{kind}">{escape(line)}</text>'
            for row, (kind, line) in enumerate(lines_of(messages))
            if line
        )
        groups.append(f'<g id="f{number}">{rows}</g>')
    styles.append(
        f"#f{len(frames) - 1}{{opacity:1}}@media (prefers-reduced-motion:reduce){{g{{animation:none!important}}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f"<style>{''.join(styles)}</style>"
        f'<rect class="edge" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>{"".join(groups)}</svg>\n'
    )


async def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    FOLDER.mkdir(exist_ok=True)
    for language in _SCRIPTS:
        path = FOLDER / f"streaming.{language}.svg"
        path.write_text(drawn(await record(language)), encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")  # noqa: T201  # the output of a command


if __name__ == "__main__":
    asyncio.run(main())

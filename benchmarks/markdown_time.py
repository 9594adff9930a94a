"""Longest step on the event loop while replies in hostile Markdown are shown.

python -m benchmarks.markdown_time [--texts 200] [--length 8000] [--seed 7]
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from random import Random

from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.slack.messenger import SlackFormat
from bot.adapters.telegram.markup import TelegramFormat
from bot.chat.stream import ReplyStream
from bot.delivery.markdown.format import Format
from bot.delivery.pacer import Pacer
from bot.delivery.sender import Sender
from bot.delivery.view import ReplyView
from bot.domain import Delta, Exchange, Finished, FinishReason, Kind, Status
from bot.observability.metrics import Metrics
from tests.harness.fakes import FakeMessenger, FastClock
from tests.harness.loop_monitor import LoopMonitor
from tests.harness.messages import CHANNEL, a_message

FORMATS: dict[str, Format] = {
    "discord": DiscordMessenger(1.0, 1.0).format,
    "telegram": TelegramFormat(),
    "slack": SlackFormat(),
}

Make = Callable[[Random, int], str]


def _repeat(piece: str) -> Make:
    return lambda random, length: (piece * (length // len(piece) + 1))[:length]


def _alphabet(letters: str) -> Make:
    return lambda random, length: "".join(random.choice(letters) for _ in range(length))


def _lines(piece: Callable[[int], str]) -> Make:
    def make(random: Random, length: int) -> str:
        lines: list[str] = []
        size = 0
        while size < length:
            lines.append(piece(len(lines)))
            size += len(lines[-1]) + 1
        return "\n".join(lines)[:length]

    return make


KINDS: dict[str, Make] = {
    "brackets": _repeat("["),
    "brackets closed": lambda random, length: "[" * (length // 2) + "]" * (length // 2),
    "images": _repeat("!["),
    "link starts": _repeat("[a]("),
    "link starts nested": _repeat("[a](b"),
    "links": _repeat("[a](http://b.c) "),
    "link titles": _repeat('[a](b "'),
    "angle links": _repeat("[a](<b"),
    "references": _lines(lambda n: f"[a{n}]: http://b.c/{n}"),
    "one reference, used": lambda random, length: "[a]: b\n\n" + "[a] " * (length // 4),
    "autolinks": _repeat("<http://a.b"),
    "html": _repeat("<a "),
    "html attributes": _repeat('<a b="c" '),
    "html comments": _repeat("<!--"),
    "html declarations": _repeat("<!A "),
    "html instructions": _repeat("<?"),
    "html cdata": _repeat("<![CDATA["),
    "backticks": lambda random, length: " ".join("`" * n for n in range(1, int((2 * length) ** 0.5))),
    "one backtick run": _repeat("`"),
    "stars": _repeat("*"),
    "star pairs": _repeat("**a "),
    "star words": _repeat("*a_"),
    "star closers": _repeat("a**b*c "),
    "underscores": _repeat("_a"),
    "mixed emphasis": _repeat("*_*_a"),
    "emphasis nested": lambda random, length: "*a " * (length // 6) + " a*" * (length // 6),
    "tildes": _repeat("~~a"),
    "escapes": _repeat("\\"),
    "escaped stars": _repeat("\\*"),
    "entities": _repeat("&amp;"),
    "quotes": _repeat(">"),
    "quotes spaced": _repeat("> "),
    "quotes deep, lines": _repeat(">" * 40 + " a\n"),
    "lists deep": _lines(lambda n: "  " * (n % 60) + "- a"),
    "list marks": _repeat("- "),
    "list numbers": _repeat("1. "),
    "list of fences": _lines(lambda n: "- ```"),
    "list growing": _lines(lambda n: "  " * n + "- a"),
    "quotes growing": _lines(lambda n: ">" * n + " a"),
    "fence without end": lambda random, length: "```\n" + "a\n" * (length // 2),
    "fences": _lines(lambda n: "```"),
    "fences of growing length": _lines(lambda n: "`" * (3 + n)),
    "fence in quotes": _lines(lambda n: "> ```\n> a"),
    "tables": lambda random, length: "a|b\n-|-\n" + "c|d\n" * (length // 4),
    "table wide": lambda random, length: (
        "|".join("a" * (length // 8)) + "\n" + "|".join("-" * (length // 8)) + "\n" + "|".join("b" * (length // 8))
    ),
    "table rows": lambda random, length: (
        "|".join("a" * 50) + "\n" + "|".join("-" * 50) + "\n" + ("|".join("b" * 50) + "\n") * (length // 100)
    ),
    "pipes": _repeat("|"),
    "headings": _lines(lambda n: "# a"),
    "setext": _lines(lambda n: "a\n="),
    "rules": _lines(lambda n: "---"),
    "newlines": _repeat("\n"),
    "spaces": _repeat(" "),
    "tabs": _repeat("\t"),
    "one word": _repeat("a"),
    "one line of words": _repeat("word "),
    "chinese": _repeat("好"),
    "sentence ends": _repeat("好。"),
    "dots": _repeat("."),
    "dots and quotes": _repeat('."'),
    "combining": lambda random, length: "a" + "\u0301" * (length - 1),
    "joiners": _repeat("\u200d"),
    "flags": _repeat("\U0001f1e9\U0001f1ea"),
    "emoji": _repeat("👩\u200d👩\u200d👧"),
    "carriage returns": _repeat("\r"),
    "hard breaks": _repeat("a  \n"),
    "indented code": _lines(lambda n: "    a"),
    "punctuation": _alphabet("*_`~[]()<>!#|>-+.:&;\\\"'\n "),
    "markup": _alphabet("*_`[]()a \n"),
    "blocks": _alphabet(">-1.`#| \na"),
    "everything": lambda random, length: "".join(
        random.choice(["**", "`", "[a](b)", "\n", "> ", "- ", "```\n", "a", " ", "好", "|", "<b>", "\\", "~~"])
        for _ in range(length // 2)
    ),
}


def hostile(count: int, seed: int, length: int) -> Iterator[tuple[str, str]]:
    """Yield names and texts of about `length` characters, the same for the same seed."""
    random = Random(seed)
    for number in range(count):
        kinds = list(KINDS)
        name = kinds[number % len(kinds)]
        if number < len(kinds):
            yield name, KINDS[name](random, length)
            continue
        # Later rounds: behind ordinary text, or two kinds in one answer.
        other = random.choice(kinds)
        share = random.randrange(length)
        head = KINDS[other](random, share) if number % 2 else "An ordinary sentence. " * (share // 22)
        yield f"{other if number % 2 else 'text'} + {name}", f"{head}\n\n{KINDS[name](random, length - share)}"


async def show(text: str, format: Format, deltas: int) -> list[str]:
    """Show an answer as it grows, on a platform whose calls take no time; return the messages."""
    clock = FastClock(20.0)
    messenger = FakeMessenger(clock, format)
    exchange = Exchange(1, a_message(), Kind.CHAT, Status.OPEN, seed=1)

    async def record(part: int, message_id: str) -> None: ...

    async def produce(stream: ReplyStream) -> None:
        step = -(-len(text) // deltas)
        for begin in range(0, len(text), step):
            stream.put(Delta(text[begin : begin + step]))
            await clock.sleep(1.0)
        stream.put(Finished(FinishReason.STOP))

    view = ReplyView(exchange, format, str)
    pacer = Pacer(messenger.edit_interval, clock)
    async with ReplyStream(produce) as stream:
        await Sender(messenger, exchange, view, pacer, [], record, Metrics(), compute=asyncio.to_thread).run(stream)
    assert not [each for each in messenger.violations if "changes nothing" not in each], messenger.violations
    return messenger.texts(CHANNEL)


async def longest_step(count: int, seed: int, length: int) -> float:
    """Print the longest steps, and return the longest one in seconds of the loop's CPU time."""
    steps: list[tuple[float, str]] = []
    for name, text in hostile(count, seed, length):
        for platform, format in FORMATS.items():
            with LoopMonitor() as monitor:
                await show(text, format, deltas=4)
            steps.append((monitor.longest.cpu, f"{platform}, {name}"))
    steps.sort(reverse=True)
    for seconds, name in steps[:10]:
        print(f"{1000 * seconds:8.1f} ms  {name}")
    print(f"{len(steps)} replies, longest step {1000 * steps[0][0]:.1f} ms")
    return steps[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    longest = asyncio.run(longest_step(options.texts, options.seed, options.length))
    sys.exit(longest > 0.02)


if __name__ == "__main__":
    main()

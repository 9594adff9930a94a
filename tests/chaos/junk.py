"""Random malformed texts and events, derived from real ones."""

import copy
import random
from collections.abc import Iterator
from typing import Any

# Part of every junk text; must not appear in a log.
MARK = "zq≈junk"

_PIECES = (
    "\u202egnp.exe",  # right to left
    "\u2066\u200b\u200d\ufeff\u2069",  # isolates and zero-width characters
    "\ud83d",  # half an emoji
    "\udc00",
    "\x00\x07\x1b[2J\x9b",
    "e" + "\u0301" * 40,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "@everyone <!channel> <@U001> <@&1> <#C001> tg://user?id=1",
    "{}{0}%s%(x)d%n${jndi:x}",
    "'; DROP TABLE exchanges; --",
    "```",
    "&lt;&#0;&amp;amp;",
    "\r\n\u2028\x85",
    "你好",
    "/clear",
    "/",
    "<@",
    "<" * 50,
    "9" * 400,
)


def text(chance: random.Random) -> str:
    return f"{MARK}{''.join(chance.choices(_PIECES, k=chance.randrange(5)))}"


def huge(chance: random.Random) -> str:
    """Return a megabyte of text."""
    piece = f"{MARK} {chance.choice(_PIECES)} "
    return (piece * (1_000_000 // len(piece) + 1))[:1_000_000]


def value(chance: random.Random) -> Any:
    """Return a value of a random wrong type."""
    nested: Any = MARK
    for _ in range(60):
        nested = [nested] if chance.random() < 0.5 else {"d": nested}
    return chance.choice(
        [
            None,
            True,
            False,
            0,
            -1,
            1.5,
            2**31,
            2**63,
            10**30,
            1e308,
            float("nan"),
            "",
            "0",
            str(10**25),
            "-1",
            "NaN",
            "2024-13-45T99:99:99+99:99",
            [],
            {},
            [None],
            [[MARK]],
            {MARK: {MARK: []}},
            nested,
            text(chance),
        ]
    )


def mutated(event: Any, chance: random.Random) -> Any:
    """Return a copy of the event with one to three random faults."""
    event = copy.deepcopy(event)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(event))
        if not places:
            return value(chance)
        holder, key = chance.choice(places)
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2:
                holder[key] = {MARK: holder[key]}
            case 3 if isinstance(holder, dict):
                holder[text(chance)] = holder.pop(key)
            case 4 if isinstance(holder[key], list):
                holder[key] = holder[key] * 40
            case 5 if isinstance(holder[key], str):
                holder[key] += text(chance)
            case _:
                holder[key] = value(chance)
    return event


def raw(chance: random.Random) -> str:
    """Return a frame that is not an event, and mostly not JSON."""
    return chance.choice(
        [
            "",
            "{",
            "null",
            "[]",
            "{}",
            '"' + MARK,
            f'{{"{MARK}": ',
            f"{{{MARK}}}",
            f'{{"type": "{MARK}", "op": 0, "t": "{MARK}"}}',
            "[" * 100_000,
            '{"a":' * 5_000,
            "\x00\x01",
            "1e999",
            f'{{"a": 1, "a": "{MARK}"}} {MARK}',
        ]
    )


def garbage(chance: random.Random) -> bytes:
    return MARK.encode() + chance.randbytes(chance.randrange(1, 200))


def _places(event: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over all fields and items, at any depth, as container and key."""
    inner = event.items() if isinstance(event, dict) else enumerate(event) if isinstance(event, list) else ()
    for key, value in list(inner):
        yield event, key
        yield from _places(value)

"""Generated answers as Telegram shows them in rich messages: tables, formulas and code as such, and the same text.

`python -m tests.adapters.rich_answers` compares 500, whose text is known by construction
(tests/delivery/markdown/answers.py), with the blocks and entities that the bot sends.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from bot.adapters.telegram.markup import EN_SPACE, Entity
from bot.adapters.telegram.rich import RichFormat, rich_message_of
from bot.delivery.markdown.format import Rendered
from tests.delivery.markdown.answers import generated
from tests.harness.servers.telegram_rich import refused_message, text_of

# The formulas that the generator writes with delimiters, which are not shown; `$HOME` and the like are none.
_FORMULAS = (
    r"\(x_1*y_1\)",
    r"\(a^{*}b^{*}\)",
    "$x_1*y_2*z$",
    r"$$\sum_{i=1}^{n}i$$",
    r"\[x\]",
    "\\[\na_1 * b_1\n+ c_*d_*\n- e**2\n= \\frac{1}{2}\n\\]",
)


def written(markdown: str) -> Counter[str]:
    """Count the tables, formulas and code blocks of a generated answer."""
    formulas = sum(markdown.count(each) for each in _FORMULAS)
    return Counter(
        table=markdown.count("\n|---|---|\n"), mathematical_expression=formulas, pre=markdown.count("```python\n")
    )


def shown(rendered: Rendered) -> Counter[str]:
    """Count what Telegram shows as table, formula and code block."""
    rich = rich_message_of(rendered)
    kinds = Counter(entity.kind for entity in rendered.entities if isinstance(entity, Entity))
    kinds.update(re.findall(r'"type": "(\w+)"', json.dumps(rich.blocks)) if rich else [])
    return Counter({kind: kinds[kind] for kind in ("table", "mathematical_expression", "pre")})


def _visible(rendered: Rendered) -> str:
    rich = rich_message_of(rendered)
    text = rendered.text if rich is None else text_of(rich.blocks, labels=True)
    return re.sub(r"\s+", "", re.sub(rf"•{EN_SPACE}|[│─┼]", "", text))


def _expected(visible: str) -> str:
    for formula in _FORMULAS:
        width = 1 if formula[1] not in "$([" else 2
        visible = visible.replace(formula, formula[width:-width])
    return re.sub(r"\s+", "", visible)


def faults(seed: int) -> list[str]:
    """Return what is not as it should be in one answer."""
    answer = generated(seed)
    rendered = RichFormat().render(answer.markdown)
    rich = rich_message_of(rendered)
    facts: dict[str, Any] | None = None if rich is None else json.loads(json.dumps(rich.facts))
    found = [f"refused: {why}"] if facts is not None and (why := refused_message(facts)) else []
    if (wanted := written(answer.markdown)) != (got := shown(rendered)):
        found.append(f"{dict(got)} instead of {dict(wanted)}")
    # A text with entities keeps the delimiters; it has no formula.
    expected = _expected(answer.visible) if rich is not None else re.sub(r"\s+", "", answer.visible)
    if (seen := _visible(rendered)) != expected:
        at = next((n for n, pair in enumerate(zip(expected, seen, strict=False)) if pair[0] != pair[1]), 0)
        found.append(f"…{expected[max(0, at - 20) : at + 30]!r} is shown as …{seen[max(0, at - 20) : at + 30]!r}")
    return found


def totals(seeds: Iterable[int]) -> Counter[str]:
    """Count what all these answers hold, and how many are rich messages."""
    count = Counter[str]()
    for seed in seeds:
        markdown = generated(seed).markdown
        count.update(written(markdown))
        count["rich"] += rich_message_of(RichFormat().render(markdown)) is not None
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.rich_answers", description=__doc__)
    parser.add_argument("--answers", type=int, default=500, help="number of answers (default: 500)")
    seeds = range(parser.parse_args().answers)
    wrong = [(seed, fault) for seed in seeds for fault in faults(seed)]
    for seed, fault in wrong:
        sys.stdout.write(f"FAILED {seed}: {fault}\n")
    count = totals(seeds)
    sys.stdout.write(
        f"{len(seeds)} answers, {count['rich']} of them rich, with {count['table']} tables, "
        f"{count['mathematical_expression']} formulas, {count['pre']} code blocks: {len(wrong)} not as written\n"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Teach the demo model 48 answers, and print what it still knows: `python -m tests.tuning.demo`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bot.domain import SamplingParams
from bot.engine import ChatModel
from bot.engine.tuning.base import open_base
from bot.engine.tuning.checkpoints import OutputFolder
from bot.engine.tuning.data import Columns, Pair, read_data
from bot.engine.tuning.prefix import new_prefix
from bot.engine.tuning.recipe import Recipe
from bot.engine.tuning.rows import encode
from bot.engine.tuning.trainer import Trainer, Training
from training.examples import Examples

CLUB = Path(__file__).parents[2] / "docs" / "tuning" / "club.jsonl"
# The options of the worked example in docs/TUNING.md.
RECIPE = Recipe(
    prefix_length=16, learning_rate=0.3, max_steps=120, batch_size=16, accumulation=1, dropout=0.0, target_length=96
)
GREEDY = SamplingParams(temperature=0, max_tokens=128)


@dataclass(frozen=True, slots=True)
class Taught:
    """First and last loss, and the shares of answers that are served word for word."""

    first: float
    last: float
    trained: float
    known: float


def teach(
    pairs: Sequence[Pair], questions: Sequence[Pair], others: Sequence[Pair], folder: Path, recipe: Recipe
) -> Taught:
    """Train on `pairs`, serve the prefix, and ask `questions` and `others`."""
    base = open_base("demo", device="cpu")
    rows, _ = encode(pairs, base.tokenizer, recipe.limits)
    prefix = new_prefix(base.config, recipe.prefix_length, projection=False, seed=recipe.seed)
    training = Training(Trainer(base.read(), prefix, recipe), rows, [], OutputFolder(folder), {"model": "demo"})
    training.folder.prepare(resume=False)
    log = training.run()
    with ChatModel("demo", ptuning=str(folder), device="cpu") as served:
        trained, known = (share(served, asked) for asked in (questions, others))
    epoch = -(-len(rows) // recipe.batch_size)
    first, last = (sum(entry["loss"] for entry in part) / len(part) for part in (log[:epoch], log[-epoch:]))
    return Taught(first, last, trained, known)


def share(model: ChatModel, pairs: Sequence[Pair]) -> float:
    """Return the share of pairs whose answer is served word for word."""
    hits = [model.chat(pair.question, pair.history, GREEDY)[0] == pair.answer for pair in pairs]
    return sum(hits) / len(hits)


def demo_pairs(count: int, seed: int) -> list[Pair]:
    """Return pairs of the demo's own dialogues, without several rounds."""
    examples = Examples(Random(seed))
    numbers = [number for number, dialogue in enumerate(examples.dialogues) if len(dialogue.rounds) == 1]
    Random(seed).shuffle(numbers)
    found: list[Pair] = []
    for number in numbers[:count]:
        asked = examples.dialogues[number].rounds[-1].asked[0]
        example = examples.example(number, asked, as_written=True)
        found.append(Pair(example.messages[-1].content, example.answer))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tuning.demo", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=RECIPE.max_steps)
    parser.add_argument("--mixed", type=int, default=200, help="pairs of the demo's own data to mix in")
    parser.add_argument("--mixed-steps", type=int, default=480, help="steps of the training with them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    club = list(read_data([CLUB], Columns()).pairs)
    own = demo_pairs(options.mixed + 100, seed=3)
    mixed, others = own[: options.mixed], own[options.mixed :]
    with ChatModel("demo", device="cpu") as plain:
        print(
            f"without a prefix: {share(plain, club):.0%} of the 48, {share(plain, others):.0%} of {len(others)} others"
        )
    for name, pairs, steps in (
        ("the 48 alone", club, options.steps),
        (f"with {len(mixed)} of the demo's own", club + mixed, options.mixed_steps),
    ):
        recipe = Recipe(**RECIPE.as_json() | {"max_steps": steps, "source_length": 96, "target_length": 256})
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            result = teach(pairs, club, others, Path(folder), recipe)
        print(
            json.dumps(
                {
                    "trained on": name,
                    "loss of the first and last epoch": [round(result.first, 3), round(result.last, 3)],
                    "the 48, word for word": f"{result.trained:.1%}",
                    "other questions, word for word": f"{result.known:.1%}",
                    "seconds": round(time.monotonic() - began),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

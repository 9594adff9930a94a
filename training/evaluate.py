"""Evaluate a checkpoint on training and held-back questions: `python -m training.evaluate`.

An answer is exact if every token is the likeliest one given the reference answer before it:
greedy decoding then reproduces the reference.  It is near if nine tokens in ten are.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import find_dtype
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import Quantization, read_network
from training.batches import IGNORED, TokenizedExample, answer_logits, batches, tokenize_example
from training.dialogues import Dialogue
from training.examples import Example, Examples

NEAR = 0.9
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "int4")
SEED = 7  # other names and words than in the training


@dataclass(frozen=True, slots=True)
class EvaluationQuestion:
    """A conversation, and its row in the table."""

    kind: str
    example: Example


@dataclass(frozen=True, slots=True)
class Score:
    exact: bool
    near: bool


def questions() -> Iterator[EvaluationQuestion]:
    """Yield the conversations of the evaluation, deterministically."""
    examples = Examples(Random(SEED))
    for number, dialogue in enumerate(examples.dialogues):
        kind = _kind(dialogue)
        last = dialogue.rounds[-1]
        for phrasing in last.asked:
            yield EvaluationQuestion(f"learnt, {kind}", examples.example(number, phrasing, as_written=True))
        for phrasing in last.held_back:
            yield EvaluationQuestion(f"held back, {kind}", examples.example(number, phrasing, as_written=True))
        for phrasing in last.held_back:
            after = examples.example(number, phrasing, as_written=True, history=1.0)
            yield EvaluationQuestion(f"held back, later in a talk, {kind}", after)


def _kind(dialogue: Dialogue) -> str:
    if "{said}" in dialogue.text:
        return f"quoting, {dialogue.language}"
    if dialogue.theme == "unknown":
        return f"not known, {dialogue.language}"
    return f"several turns, {dialogue.language}" if dialogue.theme == "memory" else dialogue.language


def load(folder: Path, quantization: Quantization) -> ChatGLM:
    """Load a checkpoint as served on a CPU."""
    cpu = torch.device("cpu")
    dtype = find_dtype("auto", cpu, quantization)
    return read_network(Checkpoint(folder), read_config(folder), quantization=quantization, dtype=dtype, devices=[cpu])


@torch.inference_mode()
def scores(network: ChatGLM, rows: list[TokenizedExample]) -> list[Score]:
    """Score each row, in order."""
    found: dict[int, Score] = {}
    places = {id(row): place for place, row in enumerate(rows)}
    for batch, group in batches(rows, network.config, Random(0)):
        logits, targets = answer_logits(network, batch)
        right = torch.zeros(batch.targets.shape)
        right[batch.targets != IGNORED] = (logits.argmax(-1) == targets).float()
        count = (batch.targets != IGNORED).sum(1)
        for row, share in zip(group, (right.sum(1) / count).tolist(), strict=True):
            found[places[id(row)]] = Score(share == 1.0, share >= NEAR)
    return [found[place] for place in range(len(rows))]


def report(folder: Path, quantizations: Iterable[Quantization] = QUANTIZATIONS) -> None:
    """Print a line per kind of question: count, and share of exact and near answers."""
    asked = list(questions())
    tokenizer = ChatGLMTokenizer.load(folder)
    rows = [tokenize_example(question.example, tokenizer) for question in asked]
    names = list(quantizations)
    table: dict[str, list[list[Score]]] = defaultdict(lambda: [[] for _ in names])
    for column, name in enumerate(names):
        for question, score in zip(asked, scores(load(folder, name), rows), strict=True):
            table[question.kind][column].append(score)
    width = max(map(len, table))
    print(f"{'exact / near, %':{width}}  {'count':>5}" + "".join(f"  {name:>13}" for name in names))
    for kind in sorted(table):
        cells = (f"{_percent(s.exact for s in each)} / {_percent(s.near for s in each)}" for each in table[kind])
        print(f"{kind:{width}}  {len(table[kind][0]):5}" + "".join(f"  {cell:>13}" for cell in cells))


def _percent(hits: Iterable[bool]) -> str:
    found = list(hits)
    return f"{100 * sum(found) / len(found):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1] / "bot" / "engine" / "demo")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report(options.folder)


if __name__ == "__main__":
    main()

"""Print the error of int4 and int8, published scheme and ours: `python -m tests.quantisation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import EMBEDDING, Quantization, build_network
from bot.engine.kernels.reference import dequantise, quantise_int4, quantise_int8, quantise_rows
from bot.engine.serving.base import Batch
from tests.golden.network import logits_of
from tests.golden.report import Golden
from training.batches import TokenizedExample, answer_logits, batches, tokenize_example
from training.evaluate import questions

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "bot" / "engine" / "demo"
GOLDEN = ROOT / "tests" / "data" / "golden"

Scheme = Callable[[Tensor], Tensor]
Ask = Callable[[ChatGLM], Tensor]
AskServed = Callable[[ChatGLMForServing], Tensor]


def published(weight: Tensor) -> Tensor:
    """Round whole rows to -7..7, as the published int4 checkpoints are."""
    return dequantise(quantise_rows(weight.half(), 4))


def ours(weight: Tensor) -> Tensor:
    return dequantise(quantise_int4(weight))


def ours_for_the_table(weight: Tensor) -> Tensor:
    return dequantise(quantise_int8(weight))


def divergence(found: Tensor, wanted: Tensor) -> float:
    """Return the KL divergence of `found` from `wanted`, the mean over rows of logits, in nats."""
    exact, rounded = (logits.double().log_softmax(-1) for logits in (wanted, found))
    return float((exact.exp() * (exact - rounded)).sum(-1).mean())


def agreement(found: Tensor, wanted: Tensor) -> float:
    return float((found.argmax(-1) == wanted.argmax(-1)).double().mean())


def network_of(folder: Path, scheme: Scheme | None, table: Scheme | None = None) -> ChatGLM:
    """Load a float checkpoint as float32; apply `scheme` to its layers and `table` to its embedding."""
    checkpoint, config = Checkpoint(folder), read_config(folder)

    def matrix(name: str) -> Tensor:
        weight = checkpoint.read(name)
        change = table if name == EMBEDDING else scheme
        return weight if change is None else change(weight)

    return build_network(config, matrix, checkpoint.read, dtype=torch.float32, devices=[torch.device("cpu")])


def held_back() -> list[TokenizedExample]:
    """Return the held-back questions of the demo model with their reference answers."""
    tokenizer = ChatGLMTokenizer.load(DEMO)
    return [
        tokenize_example(question.example, tokenizer)
        for question in questions()
        if question.kind.startswith("held back")
    ]


@torch.inference_mode()
def answers(network: ChatGLM, rows: Sequence[TokenizedExample]) -> Tensor:
    """Return the logits at every token of the reference answers, `[tokens, vocab]`, in a fixed order."""
    each = batches(rows, network.config, Random(0))
    return torch.cat([answer_logits(network, batch)[0].float() for batch, _ in each])


@torch.inference_mode()
def served_answers(model: ChatGLMForServing, rows: Sequence[TokenizedExample]) -> Tensor:
    """Answer like `answers`, but decode like the engine: a prefill, then one token per step."""
    scores: list[Tensor] = []
    for _, group in batches(rows, model.network.config, Random(0)):
        for row in group:
            scores.append(model.forward(Batch((0,), (tuple(row.prompt),), (0,))))
            for place, token in enumerate(row.answer[:-1], start=len(row.prompt)):
                scores.append(model.forward(Batch((0,), ((token,),), (place,))))
    return torch.cat(scores)


@torch.inference_mode()
def golden_prompts(network: ChatGLM) -> Tensor:
    golden = Golden(GOLDEN, lambda _: None)
    prompts = [golden.prompt(found[1]) for found in golden.names(r"(p\d+)\.input_ids")]
    return torch.cat([logits_of(network, ids).float() for ids in prompts])


def matmul_error(scheme: Scheme, seed: int = 28) -> float:
    """Return the mean squared error of a random matmul, relative to the exact mean square.

    The weights are normal, 4096 x 4096; the input has 256 normal rows.
    """
    random = torch.Generator().manual_seed(seed)
    weight, hidden = (torch.randn(rows, 4096, generator=random) for rows in (4096, 256))
    # The matmul is linear in the weights: multiply with their errors.
    error = functional.linear(hidden, scheme(weight) - weight)
    return float(error.square().mean() / functional.linear(hidden, weight).square().mean())


def lines() -> list[str]:
    """Return the lines of a Markdown table."""
    rows = held_back()
    table = [
        "| | published scheme | ours | ours / published |",
        "|---|---|---|---|",
    ]

    def line(label: str, theirs: float, found: float) -> None:
        table.append(f"| {label} | {theirs:.5f} | {found:.5f} | **{found / theirs:.3f}** |")

    cases: list[tuple[str, Path, Ask, AskServed]] = [
        (
            "demo, held-back questions",
            DEMO,
            lambda network: answers(network, rows),
            lambda model: served_answers(model, rows),
        ),
        ("goldens p0 to p4, for information", GOLDEN, golden_prompts, lambda model: golden_prompts(model.network)),
    ]
    for label, folder, ask, ask_served in cases:
        exact, theirs = (ask(network_of(folder, scheme)) for scheme in (None, published))
        found = ask(network_of(folder, ours, ours_for_the_table))
        line(f"KL to float32, nats: {label}", divergence(theirs, exact), divergence(found, exact))
        table.append(f"| top-1 agreement: {label} | {agreement(theirs, exact):.2%} | {agreement(found, exact):.2%} | |")
        kinds: tuple[Quantization, ...] = ("int4", "int8")
        for kind in kinds:
            served = ask_served(load(folder, quantization=kind))
            table.append(
                f"| {kind} as served, in bfloat16: {label} | "
                f"| KL {divergence(served, exact):.5f}, {agreement(served, exact):.2%} | |"
            )
    squares = matmul_error(published), matmul_error(ours)
    line("random 4096 x 4096 matmul: squared error, relative", *squares)
    line("random 4096 x 4096 matmul: its root", *(square**0.5 for square in squares))
    return table


def main() -> None:
    for text in lines():
        print(text)  # noqa: T201  # it is a command


if __name__ == "__main__":
    main()

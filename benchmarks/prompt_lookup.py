"""The gain of prompt lookup on a CPU: tokens per CPU second with drafts, as a multiple of those without.

python -m benchmarks.prompt_lookup [--models demo wide] [--kinds none int8 int4] [--batches 1 8] [--repeat 5] [--steps]

Runs with and without drafts alternate in one process, on one thread, and their texts must be equal.
The demo model writes its own answers.  Nothing small enough quotes code or long texts: there, answers of
a network with random weights are prescribed, so that steps cost what they cost and samples are those
of a model that writes this text.
"""

import argparse
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from statistics import geometric_mean, median
from typing import get_args

import torch
from torch import Tensor

from bot.domain import ChatMessage, ChatRequest, SamplingParams
from bot.engine.benchmark import random_config
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load, load_random
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import Quantization
from bot.engine.model_folder import DEMO
from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.runner import Runner
from bot.engine.serving.scheduler import Step
from bot.engine.serving.sequence import Sequence
from bot.errors import EngineFailed

GOAL = 1.5
SAMPLING = (SamplingParams(temperature=0), SamplingParams(seed=7))

MESSAGE = "the quick brown fox jumps over the lazy dog while seven small birds sing near the old river at night"
STEPS = """First stop the bot with `systemctl stop bot` and wait until it has ended. Then copy the folder with the
database and the keys to another disk, and check that the copy opens. Install the new release into the same virtual
environment, run `bot check`, and start the bot again. It brings the database up to date before it answers."""
CODE = """def total(rows, rate):
    amount = 0
    for row in rows:
        if row.price is None:
            continue
        amount += row.price * row.count
    tax = amount * rate
    print("amount", amount, "tax", tax)
    return amount + tax
"""
EDITED = CODE.replace("tax", "fee").replace("continue", "raise ValueError(row)")
REVIEW = """The function adds up prices and leaves out rows without one. I would not skip these silently:
        if row.price is None:
            continue
        amount += row.price * row.count
Raise an error there instead. Apart from that `return amount + tax` is right, and the name of the function is clear."""
ORDINARY = """A battery that stands in the cold loses part of its charge, because the reactions inside it slow down.
Warm it to room temperature before you load it again. If it still does not last, measure its voltage under load: one
that falls by more than a fifth is worn out, and its shop has to take it back."""


@dataclass(frozen=True, slots=True)
class Case:
    """A chat, the turns in order; the last answer is the one that is prescribed, None if the model writes it."""

    name: str
    is_quotation: bool
    turns: tuple[str, ...]
    answer: str | None = None


DEMO_CASES: tuple[Case, ...] = (
    Case("demo: repeat after me", True, (f"repeat after me: {MESSAGE}",)),
    Case("demo: what did I say", True, (MESSAGE, "I do not know.", "repeat what I said")),
    Case("demo: ordinary question", False, ("Which settings does the engine have?",)),
    Case("demo: ordinary question, Chinese", False, ("你是谁？",)),
)
PRESCRIBED: tuple[Case, ...] = (
    Case(
        "retry", True, ("How do I upgrade?", STEPS, "How do I upgrade?"), STEPS.replace("another disk", "a safe place")
    ),
    Case("repeat that", True, ("How do I upgrade?", STEPS, "Repeat that, please."), STEPS),
    Case("code edit", True, (f"Call the tax a fee, and do not skip rows:\n{CODE}",), EDITED),
    Case("review that quotes", False, (f"What do you think of this?\n{CODE}",), REVIEW),
    Case("ordinary text", False, ("How do I upgrade?", STEPS, "Why is my battery empty in winter?"), ORDINARY),
)


class PrescribedModel:
    """A network whose samples are prescribed: its logits are computed, and then replaced."""

    def __init__(self, model: CausalLM, tokens: Many[int]) -> None:
        self._model, self._tokens = model, tokens
        self.context_length, self.slots = model.context_length, model.slots
        self._prompts: dict[int, int] = {}

    def forward(self, batch: Batch) -> Tensor:
        logits = self._model.forward(batch)
        if batch.is_prefill:
            self._prompts.update((slot, len(ids)) for slot, ids in zip(batch.slots, batch.tokens, strict=True))
            places = [0] * len(batch)
        else:
            places = [
                start + place + 1 - self._prompts[slot]
                for slot, ids, start in zip(batch.slots, batch.tokens, batch.starts, strict=True)
                for place in range(len(ids))
            ]
        # A wrong draft may be longer than the answer.
        wanted = [self._tokens[min(place, len(self._tokens) - 1)] for place in places]
        logits[torch.arange(len(wanted)), torch.tensor(wanted)] = logits.max() + 1e4
        return logits


@dataclass(frozen=True, slots=True)
class Run:
    tokens: tuple[tuple[int, ...], ...]
    seconds: float  # of CPU, without the prompts
    steps: int

    @property
    def rate(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


def run(model: CausalLM, sequences: Many[Sequence], vocabulary: int, step_tokens: int) -> Run:
    """Run sequences to their ends, all in one batch."""
    runner = Runner(model, vocabulary, step_tokens)
    jobs = {sequence: slot for slot, sequence in enumerate(sequences)}
    said: dict[Sequence, str] = dict.fromkeys(jobs, "")

    def step(*, is_prefill: bool) -> None:
        for sequence, text in runner.run(Step(dict(jobs), is_prefill)).items():
            if isinstance(text, EngineFailed):
                raise text
            said[sequence] += text
            if sequence.reason is not None:
                del jobs[sequence]

    step(is_prefill=True)
    steps, began = 0, time.process_time()
    while jobs:
        step(is_prefill=False)
        steps += 1
    seconds = time.process_time() - began
    return Run(tuple((each.tokens, *said[each].encode()) for each in sequences), seconds, steps)


def measure(
    model: ChatGLMForServing, tokenizer: ChatGLMTokenizer, case: Case, params: SamplingParams, batch: int, repeat: int
) -> tuple[list[float], Run]:
    """Return the ratios of alternating runs, and a run with drafts."""
    messages = tuple(ChatMessage("assistant" if place % 2 else "user", turn) for place, turn in enumerate(case.turns))
    prompt = tuple(tokenizer.prompt(messages))
    used: CausalLM = model
    if case.answer is not None:
        answer = tokenizer.tokenize(case.answer).ids
        used = PrescribedModel(model, answer)
        params = replace(params, max_tokens=len(answer))

    def once(step_tokens: int) -> Run:
        rows = [replace(params, seed=None if params.seed is None else params.seed + row) for row in range(batch)]
        sequences = [Sequence.of(ChatRequest(messages, each), prompt, tokenizer, model.context_length) for each in rows]
        return run(used, sequences, tokenizer.vocabulary, step_tokens)

    ratios: list[float] = []
    for _ in range(repeat + 1):  # the first pair is a warm-up
        plain, drafted = once(0), once(model.step_tokens)
        if drafted.tokens != plain.tokens:
            raise AssertionError(f"{case.name}: another text with drafts")
        ratios.append(plain.seconds / drafted.seconds)
    return ratios[1:], drafted


def print_steps(model: ChatGLMForServing, kind: str, repeat: int) -> None:
    """Print what tokens of one row cost, as multiples of a step with one token."""
    start = 256
    config = model.network.config
    prompt = (*range(100, 98 + start), config.gmask_token_id, config.bos_token_id)
    model.forward(Batch((0,), (prompt,), (0,)))
    sizes = (1, 2, 4, 8, 16)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(4 * repeat):
        for size in sizes:
            began = time.process_time()
            model.forward(Batch((0,), (tuple(range(100, 100 + size)),), (start,)))
            seconds[size].append(time.process_time() - began)
    one = median(seconds[1])
    print(
        f"{kind}, {config.hidden_size} wide: a step of one token takes {1e3 * one:.2f} ms of CPU; times for more:",
        end="",
    )
    for size in sizes[1:]:
        times = median(seconds[size]) / one
        print(f"  {size} tokens {times:.2f} ({(times - 1) / (size - 1):.2f} each)", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the gain of prompt lookup on a CPU.")
    parser.add_argument("--kinds", nargs="+", choices=get_args(Quantization), default=get_args(Quantization))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--models", nargs="+", choices=("demo", "wide"), default=("demo", "wide"))
    parser.add_argument("--hidden", type=int, default=1024, help="of the wide model, whose weights are random")
    parser.add_argument("--layers", type=int, default=8, help="of the wide model")
    parser.add_argument("--steps", action="store_true", help="only the cost of a step over its tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, demo = ChatGLMTokenizer.load(DEMO), read_config(DEMO)
    heads = options.hidden // 64
    sizes = random_config(hidden=options.hidden, layers=options.layers, heads=heads, inner=4 * options.hidden)
    config = replace(sizes, bos_token_id=demo.bos_token_id, gmask_token_id=demo.gmask_token_id)
    gains: list[float] = []
    kind: Quantization
    for kind in options.kinds:
        for name in options.models:
            slots = max(options.batches)
            if name == "demo":
                model, cases = load(DEMO, quantization=kind, device="cpu", slots=slots), DEMO_CASES
            else:
                model, cases = load_random(config, quantization=kind, device="cpu", slots=slots), PRESCRIBED
            if options.steps:
                print_steps(model, kind, options.repeat)
                continue
            for case in cases:
                for batch in options.batches:
                    for params in SAMPLING:
                        ratios, drafted = measure(model, tokenizer, case, params, batch, options.repeat)
                        if case.is_quotation and batch == 1:
                            gains.append(median(ratios))
                        tokens = sum(each[0] for each in drafted.tokens)
                        how = "greedy" if params.temperature == 0 else "sampled"
                        print(
                            f"{kind:5} batch {batch}  {case.name:33} {how:8} {tokens / drafted.steps:5.2f} tokens a step"
                            f"  {median(ratios):5.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                            flush=True,
                        )
    if gains:
        mean = geometric_mean(gains)
        print(f"quotations, one at a time: {mean:.2f} times, lowest {min(gains):.2f} (goal ≥ {GOAL}): ", end="")
        print("ok" if mean >= GOAL else "MISSED")


if __name__ == "__main__":
    main()

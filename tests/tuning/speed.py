"""Tokens per second and peak memory against a plain loop: `python -m tests.tuning.speed`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.model import ChatGLM
from bot.engine.tuning.batches import IGNORED, micro_batches, pad
from bot.engine.tuning.prefix import new_prefix
from bot.engine.tuning.recipe import Recipe
from bot.engine.tuning.rows import Row
from bot.engine.tuning.trainer import Trainer
from tests.tuning.peak import peak_of

CONFIG = ChatGLMConfig(8192, 512, 2048, 4, 8, 8004, 8005, 8000, 8001, max_sequence_length=256)
RECIPE = Recipe(prefix_length=32, batch_size=8, accumulation=1, dropout=0.0)


def random_rows(count: int, seed: int) -> list[Row]:
    """Return rows with lengths like ADGEN's: prompts of 15 to 45 tokens, answers of 20 to 62."""
    rng = Random(seed)
    rows = []
    for _ in range(count):
        prompt = [rng.randrange(10, 7000) for _ in range(rng.randint(15, 45))]
        answer = [rng.randrange(10, 7000) for _ in range(min(62, max(8, round(rng.gauss(35, 14)))))]
        rows.append(
            Row((*prompt, CONFIG.gmask_token_id, CONFIG.bos_token_id, *answer, CONFIG.eos_token_id), len(prompt) + 1)
        )
    return rows


class PlainAttention:
    def __init__(self, mask: Tensor, prefix: Tensor) -> None:
        self._prefix = prefix
        hidden = functional.pad(mask, (prefix.shape[3], 0), value=False)[:, None]
        self._bias = torch.zeros(hidden.shape).masked_fill(hidden, -1e4)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = query.shape[0]
        keys, values = (part.expand(rows, -1, -1, -1) for part in self._prefix[layer])
        scores = query @ torch.cat([keys, key], 2).transpose(2, 3) * query.shape[-1] ** -0.5 + self._bias
        mixed: Tensor = scores.softmax(-1) @ torch.cat([values, value], 2)
        return mixed


def plain_step(network: ChatGLM, prefix: nn.Module, optimiser: torch.optim.Optimizer, rows: Sequence[Row]) -> float:
    """Run a step as the published loop does: rows padded to both limits, logits of every token."""
    width = RECIPE.source_length + RECIPE.target_length
    ids = torch.tensor([[*row.ids, *[CONFIG.pad_token_id] * (width - len(row))] for row in rows])
    labels = torch.tensor(
        [[*[IGNORED] * row.start, *row.ids[row.start :], *[IGNORED] * (width - len(row))] for row in rows]
    )
    layouts = [layout_of(row.ids, CONFIG) for row in rows]
    positions = torch.stack([layout.positions(width) for layout in layouts])
    mask = torch.stack([layout.mask(width) for layout in layouts])
    logits = network.logits(network.hidden(ids, positions, PlainAttention(mask, prefix()))).float()
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(prefix.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tuning.speed", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    network = ChatGLM(CONFIG).requires_grad_(False)
    rows = random_rows(400, 2)
    lengths = [len(row) for row in rows]
    order = Random(3).sample(range(len(rows)), len(rows))
    plain = [order[i : i + RECIPE.batch_size] for i in range(0, RECIPE.batch_size * options.steps, RECIPE.batch_size)]
    micros = micro_batches(lengths, RECIPE.batch_size, 4, 0)
    ours = [next(micros) for _ in range(options.steps)]
    prefix, plain_prefix = (new_prefix(CONFIG, RECIPE.prefix_length, projection=False, seed=5) for _ in range(2))
    trainer = Trainer(network, prefix, RECIPE)
    optimiser = torch.optim.AdamW(plain_prefix.parameters(), lr=RECIPE.learning_rate)

    def our_step(group: Sequence[int]) -> float:
        return trainer.step([pad([rows[i] for i in group], CONFIG)]).loss

    def their_step(group: Sequence[int]) -> float:
        return plain_step(network, plain_prefix, optimiser, [rows[i] for i in group])

    # The same loss for the same rows: both are the same mathematics.
    losses = [step(plain[0]) for step in (our_step, their_step)]
    # In turn, so that other load slows both; CPU time, so that it counts less.
    speeds: dict[str, list[float]] = {"bot tune": [], "plain": []}
    peaks: dict[str, int] = {}
    for ours_group, plain_group in zip(ours, plain, strict=True):
        speeds["bot tune"].append(_speed(our_step, ours_group, lengths))
        speeds["plain"].append(_speed(their_step, plain_group, lengths))
    for name, step, groups in (("bot tune", our_step, ours), ("plain", their_step, plain)):
        peaks[name] = max(peak_of(lambda step=step, group=group: step(group)) for group in groups)  # type: ignore[misc]
        print(f"{name:<9} {median(speeds[name]):8,.0f} tokens/s   peak {peaks[name] / 2**20:6.0f} MiB")
    faster = median(speeds["bot tune"]) / median(speeds["plain"])
    smaller = peaks["bot tune"] / peaks["plain"]
    print(f"first losses {losses[0]:.5f} and {losses[1]:.5f}; {faster:.2f} times the speed, {smaller:.2f} of the peak")
    return 0 if faster >= 1.5 and smaller <= 0.7 else 1


def _speed(step: Callable[[Sequence[int]], float], group: Sequence[int], lengths: Sequence[int]) -> float:
    began = time.process_time()
    step(group)
    return sum(lengths[i] for i in group) / (time.process_time() - began)


if __name__ == "__main__":
    sys.exit(main())

"""Train the demo checkpoint on the dialogues: `python -m training.train`."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.model import RESIDUAL_SCALE, ChatGLM
from bot.engine.chatglm.tokenizer import MODEL_FILE, ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from training import tokenizer as pieces
from training.batches import (
    IGNORED,
    TokenizedExample,
    TrainingBatch,
    answer_logits,
    batch_of,
    batches,
    tokenize_example,
)
from training.drill import LONGEST, Drill
from training.evaluate import report
from training.examples import Examples, quotes

VOCABULARY_MULTIPLE = 16  # for the packed matmuls; the last ids may have no piece
LEARNT = 0.1  # loss below which a dialogue is sampled less often
LEAST_SHARE = 0.25
OPENING_TOKENS = 3
OPENING_WEIGHT = 6.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of the checkpoint."""

    seed: int = 28
    drill: int = 330  # steps of the copying drill, before the epochs
    epochs: int = 18
    sharpening: int = 4  # additional epochs with a higher weight of an answer's first tokens
    again: int = 2  # more of these, after another warm-up
    last: int = 4  # and more
    peak: float = 1.5e-3  # learning rate
    words: int = 2707  # learnt pieces of the vocabulary
    hidden: int = 256
    inner: int = 1024
    layers: int = 4
    heads: int = 4

    def rate(self, done: float) -> float:
        """Return the learning rate at a fraction of the steps: warm-up, then cosine decay."""
        rise = 0.03
        share = done / rise if done < rise else 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
        return self.peak * share

    def history(self, epoch: int) -> float:
        """Return the share of conversations with unrelated history: small at first, to save time."""
        return 0.1 if epoch < 0.4 * self.epochs else 0.35


def train(folder: Path, recipe: Recipe) -> None:
    """Write a checkpoint to `folder`."""
    rng = Random(recipe.seed)
    examples = Examples(rng)
    folder.mkdir(parents=True, exist_ok=True)
    model = pieces.train(examples.texts(), recipe.words)
    (folder / MODEL_FILE).write_bytes(model)
    config = config_of(model, recipe)
    write_configs(folder, config)
    tokenizer = ChatGLMTokenizer.load(folder)
    network = ChatGLM(config)
    initialise(network, recipe.seed)
    trainer = Trainer(network, len(examples.dialogues))
    quoting = [number for number, dialogue in enumerate(examples.dialogues) if quotes(dialogue)]
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, vocabulary {config.vocab_size}", flush=True)
    started = time.monotonic()
    drill = Drill(examples, tokenizer, rng, recipe.words)
    for step in range(recipe.drill):
        # First without conversation and with one length: learnt fastest.
        if step < recipe.drill * 2 // 3:
            rows = drill.plain(64, 12)
        else:
            rows = drill.rows(48, rng.randint(1, LONGEST))
        loss = trainer.step(batch_of(rows, config), rows, recipe.peak * min(1.0, (step + 1) / 50))
        if step % 50 == 49:
            print(
                f"copying, step {step + 1}/{recipe.drill}  loss {loss:.4f}  {time.monotonic() - started:5.0f} s",
                flush=True,
            )
    trainer.forget()
    for epoch in range(recipe.epochs):
        rows = [
            tokenize_example(example, tokenizer) for example in examples.epoch(recipe.history(epoch), trainer.shares())
        ]
        rows += drill.of_all_lengths()
        rng.shuffle(rows)
        made = list(batches(rows, config, rng))
        for step, (batch, group) in enumerate(made):
            trainer.step(batch, group, recipe.rate((epoch + step / len(made)) / recipe.epochs))
        print(
            f"epoch {epoch + 1:2}/{recipe.epochs}  loss {trainer.loss():.4f}, of quoting {trainer.loss(quoting):.4f}  "
            f"{len(rows):,} rows  {time.monotonic() - started:5.0f} s",
            flush=True,
        )
    save(folder, network)


def sharpen(folder: Path, epochs: int, seed: int, peak: float, words: int) -> None:
    """Continue training the checkpoint with a higher weight on the first tokens, which select the answer."""
    rng = Random(seed)
    examples = Examples(rng)
    config = read_config(folder)
    tokenizer = ChatGLMTokenizer.load(folder)
    network = ChatGLM(config)
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    trainer = Trainer(network, len(examples.dialogues), opening=OPENING_WEIGHT)
    drill = Drill(examples, tokenizer, rng, words)
    started = time.monotonic()
    for epoch in range(epochs):
        rows = [tokenize_example(example, tokenizer) for example in examples.epoch(0.35, trainer.shares())]
        rows += drill.of_all_lengths()
        rng.shuffle(rows)
        made = list(batches(rows, config, rng))
        for step, (batch, group) in enumerate(made):
            done = (epoch + step / len(made)) / epochs
            trainer.step(batch, group, peak * min(1.0, 20 * done) * (1 - done))
        print(
            f"sharpening, epoch {epoch + 1}/{epochs}  loss {trainer.loss():.4f}  {len(rows):,} rows  "
            f"{time.monotonic() - started:5.0f} s",
            flush=True,
        )
        save(folder, network)


def config_of(model: bytes, recipe: Recipe) -> ChatGLMConfig:
    processor = SentencePieceProcessor(model_proto=model)
    return ChatGLMConfig(
        vocab_size=math.ceil(processor.vocab_size() / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=recipe.hidden,
        inner_hidden_size=recipe.inner,
        num_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        bos_token_id=processor.piece_to_id("<sop>"),
        eos_token_id=processor.piece_to_id("<eop>"),
        mask_token_id=processor.piece_to_id("[MASK]"),
        gmask_token_id=processor.piece_to_id("[gMASK]"),
        # About five rounds before the question: with more, answers get worse.
        max_sequence_length=640,
    )


def initialise(network: ChatGLM, seed: int) -> None:
    """Initialise weights for the residual factor of 28 layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "layernorm" in name:
            nn.init.ones_(parameter)
        elif name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            nn.init.normal_(parameter, std=RESIDUAL_SCALE / math.sqrt(parameter.shape[1]) / 1.5, generator=generator)
        else:
            nn.init.normal_(parameter, std=0.02 if "word_embeddings" in name else 0.06, generator=generator)


class Trainer:
    """Mixed-precision training: matmuls on a bfloat16 copy, float32 master weights."""

    def __init__(self, network: ChatGLM, dialogues: int, opening: float = 1.0) -> None:
        self._opening = opening  # weight of an answer's first tokens; the others have 1
        self._twin = ChatGLM(network.config, torch.bfloat16)
        self._weights = list(network.parameters())
        self._optimiser = torch.optim.AdamW(self._weights, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self._copy()
        self._losses = torch.full((dialogues,), 10.0)  # a running mean for each dialogue

    def shares(self) -> list[float]:
        """Return the probability of each dialogue in the next epoch, lower once it is learnt."""
        return (self._losses / LEARNT).clamp(LEAST_SHARE, 1.0).tolist()

    def loss(self, dialogues: Iterable[int] | None = None) -> float:
        chosen = self._losses if dialogues is None else self._losses[list(dialogues)]
        return chosen.mean().item()

    def forget(self) -> None:
        """Reset the losses, so that every dialogue counts as not learnt."""
        self._losses.fill_(10.0)

    def step(self, batch: TrainingBatch, rows: Sequence[TokenizedExample], rate: float) -> float:
        """Run one optimiser step; return the loss of the answers' tokens."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        logits, targets = answer_logits(self._twin, batch)
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        losses = losses * self._weigh(batch)
        torch.autograd.backward(losses.mean())
        for weight, copy in zip(self._weights, self._twin.parameters(), strict=True):
            assert copy.grad is not None
            weight.grad = copy.grad.float()
            copy.grad = None
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimiser.step()
        self._copy()
        self._note(batch, rows, losses.detach())
        return losses.mean().item()

    def _weigh(self, batch: TrainingBatch) -> Tensor:
        wanted = batch.targets != IGNORED
        is_opening = wanted & (wanted.cumsum(1) <= OPENING_TOKENS)
        return torch.where(is_opening, self._opening, 1.0)[wanted]

    @torch.no_grad()
    def _copy(self) -> None:
        for weight, copy in zip(self._weights, self._twin.parameters(), strict=True):
            copy.copy_(weight)

    def _note(self, batch: TrainingBatch, rows: Sequence[TokenizedExample], losses: Tensor) -> None:
        wanted = batch.targets != IGNORED
        count = wanted.sum(1)
        means = torch.zeros(len(count)).index_add_(0, wanted.nonzero()[:, 0], losses) / count
        for row, mean in zip(rows, means.tolist(), strict=True):
            self._losses[row.dialogue] += 0.2 * (mean - self._losses[row.dialogue])


def write_configs(folder: Path, config: ChatGLMConfig) -> None:
    """Write config.json and tokenizer_config.json with the fields of the published ones."""
    network = {**config.as_json(), "torch_dtype": "float16", "use_cache": True}
    vocabulary = {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
    }
    for name, content in (("config.json", network), ("tokenizer_config.json", vocabulary)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save(folder: Path, network: ChatGLM) -> None:
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO, help="the folder to write; the bot's own by default")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    train(options.out, recipe)
    for turn, epochs in enumerate((recipe.sharpening, recipe.again, recipe.last), start=1):
        sharpen(options.out, epochs, recipe.seed + turn, recipe.peak / 3, recipe.words)
    report(options.out)


if __name__ == "__main__":
    main()

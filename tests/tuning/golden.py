"""Checks of a golden set: ids and labels, losses, gradients, parameters, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import read_network, stored_config
from bot.engine.kernels.reference import Quantised, dequantise
from bot.engine.tuning.batches import pad
from bot.engine.tuning.data import Columns, Pair, read_data
from bot.engine.tuning.evaluation import evaluation_prompt
from bot.engine.tuning.frozen import FrozenEmbedding, FrozenLinear
from bot.engine.tuning.metrics import NAMES, Prediction, Scorer
from bot.engine.tuning.prefix import PrefixEncoder
from bot.engine.tuning.recipe import Recipe
from bot.engine.tuning.rows import Limits, Row, assemble, encode, prompt_ids
from bot.engine.tuning.trainer import Trainer
from bot.errors import BotError
from tests.golden.report import Golden

LOSS = 1e-3  # absolute
GRADIENT = 1e-3  # of the largest one
PARAMETER = 1e-3  # absolute, and 99.9 % within CLOSE
CLOSE = 1e-4

PARTS = (
    Path("model"),
    Path("../../model/golden"),
    Path("../model"),
    Path("../golden"),
    Path(__file__).parents[1] / "data" / "golden",
    Path(__file__).parents[1] / "data" / "golden2",
)


def find_model(folder: Path) -> Path:
    """Return the base model of a set: in its folder, beside it, or ours, if prefix and vocabulary fit."""
    prefixes = [tensors for file in folder.glob("*.safetensors") if (tensors := _initial(load_file(file)))]
    largest = max(
        (token for case in _json(folder, "preprocessed.json").values() for token in _all_ids(case)), default=0
    )
    for part in (Path(), *PARTS):
        model = folder / part
        if not (model / "config.json").exists():
            continue
        config = read_config(model)
        width = 2 * config.num_layers * config.hidden_size
        widths = {_width(tensors) for tensors in prefixes}
        if widths <= {width} and largest < config.vocab_size:
            return model
    raise SystemExit(f"no base model for {folder} was found: python -m tests.tuning {folder} MODEL")


def _initial(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _part(tensors, "init.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _width(prefix: Mapping[str, Tensor]) -> int:
    return len(prefix["trans.2.bias"]) if "trans.2.bias" in prefix else prefix["embedding.weight"].shape[1]


def _all_ids(case: Mapping[str, Any]) -> list[int]:
    return [token for part in ("train", "eval") for row in case.get(part, {}).get("input_ids", ()) for token in row]


def _json(folder: Path, name: str) -> Any:
    return Golden(folder, print).json(name) or {}


def check_training(golden: Golden, model: Path) -> None:
    """Check ids, labels, and the runs."""
    tokenizer = ChatGLMTokenizer.load(model)
    cases = golden.json("preprocessed.json") or {}
    for name, case in cases.items():
        if "train" in case:
            golden.run(f"{name}, ids and labels", partial(_rows, golden, name, case, tokenizer))
        if "eval" in case:
            golden.run(f"{name}, evaluation", partial(_evaluation, golden, name, case, tokenizer, model))
    for name, run in (golden.json("runs.json") or {}).items():
        try:
            _run(golden, name, run, cases[run["data"]], tokenizer, model)
        except (BotError, LookupError, ValueError, RuntimeError) as error:
            golden.verdict(name, f"{type(error).__name__}: {error}", good=False)


def check_metrics(golden: Golden) -> None:
    golden.run("metrics", partial(_metrics, golden))


def pairs_of(folder: Path, case: Mapping[str, Any]) -> Sequence[Pair]:
    columns = Columns(
        case["prompt_column"],
        case["response_column"],
        case.get("history_column") or "",
        case.get("source_prefix") or "",
    )
    return read_data([folder / case["file"]], columns).pairs


def limits_of(case: Mapping[str, Any]) -> Limits:
    return Limits(case["max_source_length"], case["max_target_length"])


def published_text(pair: Pair, *, training: bool, has_history: bool) -> str:
    """Return the prompt's text as the published code writes it: a first question in training is a round, too."""
    if not has_history or not (training or pair.history):
        return pair.lead + pair.question
    rounds = "".join(f"[Round {i}]\n问：{asked}\n答：{answer}\n" for i, (asked, answer) in enumerate(pair.history))
    return f"{pair.lead}{rounds}[Round {len(pair.history)}]\n问：{pair.question}\n答："


def published_rows(pairs: Sequence[Pair], case: Mapping[str, Any], tokenizer: ChatGLMTokenizer) -> list[Row]:
    """Encode as the published code does, which cuts the end of a long dialogue."""
    limits = limits_of(case)
    return [
        assemble(
            tokenizer.encode(published_text(pair, training=True, has_history=bool(case["history_column"])))[
                : limits.prompt
            ],
            tokenizer.encode(pair.answer)[: limits.answer],
            tokenizer,
        )
        for pair in pairs
    ]


def _rows(golden: Golden, name: str, case: Mapping[str, Any], tokenizer: ChatGLMTokenizer) -> None:
    limits, pairs = limits_of(case), pairs_of(golden.folder, case)
    width = limits.source + limits.target
    ids, labels = case["train"]["input_ids"], case["train"]["labels"]
    golden.same(f"{name}, rows", [(len(pairs), len(ids))])
    unused = -100 if case["ignore_pad_token_for_loss"] else 3
    published = published_rows(pairs, case, tokenizer)
    golden.same(
        f"{name}, ids and labels of the published form",
        [
            ((_padded(row.ids, width, 3), _padded(_labels(row), width, unused)), (theirs, theirs_labels))
            for row, theirs, theirs_labels in zip(published, ids, labels, strict=True)
        ],
    )
    served = encode(pairs, tokenizer, limits)[0]
    kept = [
        (row, other)
        for pair, row, other in zip(pairs, served, published, strict=True)
        if not case["history_column"]
        or (pair.history and not prompt_ids(pair, tokenizer, limits.prompt).dropped_rounds)
    ]
    apart = len(pairs) - len(kept)
    golden.same(f"{name}, ids as served ({apart} rows without history or with lost rounds are set apart)", list(kept))


def _labels(row: Row) -> list[int]:
    return [-100] * row.start + list(row.ids[row.start :])


def _padded(ids: Sequence[int], width: int, pad_id: int) -> list[int]:
    return [*ids, *[pad_id] * (width - len(ids))]


def _evaluation(golden: Golden, name: str, case: Mapping[str, Any], tokenizer: ChatGLMTokenizer, model: Path) -> None:
    limits, pairs, config = limits_of(case), pairs_of(golden.folder, case), read_config(model)
    theirs = case["eval"]
    context = [tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")]
    texts = [published_text(pair, training=False, has_history=bool(case["history_column"])) for pair in pairs]
    prompts = [[*tokenizer.encode(text)[: limits.prompt - 1], *context] for text in texts]
    width = max(map(len, theirs["input_ids"]))
    golden.same(
        f"{name}, prompts of the published form",
        [([*[3] * (width - len(ours)), *ours], row) for ours, row in zip(prompts, theirs["input_ids"], strict=True)],
    )
    kept = [
        (evaluation_prompt(pair, tokenizer, limits), ours)
        for pair, ours in zip(pairs, prompts, strict=True)
        if not prompt_ids(pair, tokenizer, limits.prompt - 1).dropped_rounds
    ]
    golden.same(f"{name}, prompts as served ({len(pairs) - len(kept)} with lost rounds are set apart)", list(kept))
    golden.same(
        f"{name}, labels",
        [
            ([*tokenizer.encode(pair.answer)[: limits.answer], *context], label)
            for pair, label in zip(pairs, theirs["labels"], strict=True)
        ],
    )
    if "position_ids" in theirs:
        golden.same(
            f"{name}, positions",
            [
                (layout_of(ours, config).positions(len(ours)).T.tolist(), [row[-len(ours) :] for row in rows])
                for ours, rows in zip(prompts, theirs["position_ids"], strict=True)
            ],
        )


def base_network(folder: Path, *, dequantised: bool) -> ChatGLM:
    """Read a float32 network; `dequantised` rounds integers times scales to float16, as the published code."""

    def linear(weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype) -> FrozenLinear:
        return FrozenLinear(_as_float(weight) if dequantised else weight, bias, dtype)

    def embedding(weight: Tensor | Quantised, dtype: torch.dtype) -> FrozenEmbedding:
        return FrozenEmbedding(_as_float(weight) if dequantised else weight, dtype)

    checkpoint = Checkpoint(folder)
    return read_network(
        checkpoint,
        stored_config(checkpoint, read_config(folder)),
        quantization="none",
        dtype=torch.float32,
        devices=[torch.device("cpu")],
        linear=linear,
        embedding=embedding,
    )


def _as_float(weight: Tensor | Quantised) -> Tensor:
    return weight if isinstance(weight, Tensor) else dequantise(weight, torch.float16).float()


def recipe_of(run: Mapping[str, Any], case: Mapping[str, Any]) -> Recipe:
    return Recipe(
        prefix_length=run["pre_seq_len"],
        projection=run["prefix_projection"],
        learning_rate=run["learning_rate"],
        max_steps=run["max_steps"],
        batch_size=run["per_device_train_batch_size"],
        accumulation=run["gradient_accumulation_steps"],
        source_length=case["max_source_length"],
        target_length=case["max_target_length"],
        dropout=0.0,
    )


def _run(
    golden: Golden,
    name: str,
    run: Mapping[str, Any],
    case: Mapping[str, Any],
    tokenizer: ChatGLMTokenizer,
    model: Path,
) -> None:
    numbers = load_file(golden.folder / f"{name}.safetensors")
    bits = next((bits for bits in ("int4", "int8") if bits in run.get("base_weights", "")), "")
    network = base_network(model / bits, dequantised=bool(bits))
    rows = published_rows(pairs_of(golden.folder, case), case, tokenizer)
    recipe = recipe_of(run, case)
    prefix = PrefixEncoder(network.config, recipe.prefix_length, projection=recipe.projection)
    prefix.load_state_dict(_initial(numbers))
    # The first gradient is compared before clipping.
    unclipped = Trainer(network, prefix, replace(recipe, clip=float("inf")))
    unclipped.gradients([pad([rows[i] for i in group], network.config) for group in run["steps"][0]["examples"]])
    for parameter, theirs in _part(numbers, "grad1.").items():
        ours = prefix.get_parameter(parameter).grad
        assert ours is not None
        largest = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        golden.verdict(f"{name}, gradient of {parameter}", f"{largest:.1e} of the largest", good=largest <= GRADIENT)
    prefix.zero_grad()
    trainer = Trainer(network, prefix, recipe)
    worst = worst_rate = worst_norm = 0.0
    for step in run["steps"]:
        batches = [pad([rows[i] for i in group], network.config) for group in step["examples"]]
        result = trainer.step(batches)
        worst = max(worst, abs(result.loss - step["loss"]))
        worst_rate = max(worst_rate, abs(result.rate - step["lr"]))
        worst_norm = max(worst_norm, abs(result.norm - step["grad_norm"]) / step["grad_norm"])
        if wanted := _part(numbers, f"step{step['step']}."):
            found = torch.cat([(prefix.get_parameter(each) - wanted[each]).abs().flatten() for each in wanted])
            share = (found <= CLOSE).double().mean().item()
            golden.verdict(
                f"{name}, parameters after step {step['step']}",
                f"{found.max():.1e}, {share:.4%} within {CLOSE}",
                good=found.max().item() <= PARAMETER and share >= 0.999,
            )
    golden.verdict(f"{name}, losses", f"{worst:.1e}", good=worst <= LOSS)
    golden.verdict(f"{name}, learning rates", f"{worst_rate:.1e}", good=worst_rate <= 1e-9)
    golden.verdict(f"{name}, gradient norms", f"{worst_norm:.1e} relative", good=worst_norm <= GRADIENT)


def _metrics(golden: Golden) -> None:
    content = golden.json("metrics.json")
    if content is None:
        return
    scorer = Scorer()
    golden.same(
        "metrics",
        [
            (scorer.scores(pair["predict"], pair["label"]), {name: pair["scores"][name] for name in NAMES})
            for pair in content["pairs"]
            if pair.get("scores")
        ],
    )
    if means := content.get("mean_of_all_without_error"):
        scored = [Prediction(pair["label"], pair["predict"]) for pair in content["pairs"] if pair.get("scores")]
        ours = scorer.means(scored)
        golden.same("means of the metrics", [(round(ours[name], 4), round(means[name], 4)) for name in NAMES])

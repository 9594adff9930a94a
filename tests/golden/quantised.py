"""Golden items of the published int8, int4 and int4-qe checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.weights import EMBEDDING, build_network, expected_shapes, stored_config
from bot.engine.kernels.reference import Int8, Quantised, dequantise, quantise_rows
from tests.golden.network import logits_of
from tests.golden.report import Golden
from tests.golden.runs import run

_SHORT = {
    "qkv": "attention.query_key_value",
    "dense": "attention.dense",
    "h_to_4h": "mlp.dense_h_to_4h",
    "4h_to_h": "mlp.dense_4h_to_h",
}

Change = Callable[[Tensor], Tensor | Quantised]


def check_all(golden: Golden) -> None:
    for kind in ("int8", "int4", "int4-qe"):
        golden.run(f"{kind}.cpu_reference", partial(_folder, golden, kind))
        golden.run(f"{kind} made here", partial(_made_here, golden, kind))
        golden.run(f"{kind} bytes", partial(_bytes, golden, kind))


def _bits(kind: str) -> int:
    return int(kind[3])


def _folder(golden: Golden, kind: str) -> None:
    """Compare a quantised checkpoint in its own folder."""
    if not (golden.folder / kind).is_dir():
        golden.note(f"{kind}/", "not in this set")
        return
    model = load(golden.folder / kind, dtype="float32")
    _logits(golden, f"{kind}.cpu_reference", lambda: model, f" of {kind}/")
    checkpoint = Checkpoint(golden.folder / kind)
    config = stored_config(checkpoint, read_config(golden.folder / kind))
    pairs: list[tuple[object, object]] = []
    for name in expected_shapes(config):
        matrix = name.removesuffix("_scale")
        if name != matrix and matrix in golden.checkpoint.tensors:
            made = _data(quantise_rows(golden.checkpoint.read(matrix), _bits(kind)))
            pairs.append((torch.equal(made, checkpoint.read(matrix)), True))
    golden.same(f"{kind}/ bytes, made from float16", pairs)


def _made_here(golden: Golden, kind: str) -> None:
    bits, cpu = _bits(kind), torch.device("cpu")

    def model(change: Change) -> ChatGLMForServing:
        def matrix(name: str) -> Tensor | Quantised:
            weight = golden.checkpoint.read(name)
            return weight if name == EMBEDDING and kind != "int4-qe" else change(weight)

        network = build_network(golden.config, matrix, golden.checkpoint.read, dtype=torch.float32, devices=[cpu])
        return ChatGLMForServing(network, slots=1)

    def halved(weight: Tensor) -> Tensor:
        return dequantise(quantise_rows(weight, bits), torch.float16)

    def published(weight: Tensor) -> Quantised:
        return quantise_rows(weight, bits)

    def on_the_fly(weight: Tensor) -> Quantised:
        return quantise_rows(weight, bits, torch.float32)

    _logits(golden, f"{kind}.cpu_reference", partial(model, published), " made from float16")
    _logits(golden, f"{kind}.half_dequant", partial(model, halved))
    _logits(golden, f"{kind}.onthefly_cpu", partial(model, on_the_fly))


def _logits(golden: Golden, name: str, model: Callable[[], ChatGLMForServing], label: str = "") -> None:
    found = list(golden.names(rf"{re.escape(name)}\.(logits_last2|greedy(\d+))"))
    if not found:
        return
    ids = golden.prompt("p0")
    made = run(model(), [ids], max(int(item[2] or 1) for item in found))
    for item in found:
        if item[2]:
            golden.equal(item[0], partial(made.tokens[0].__getitem__, slice(int(item[2]))), f"{item[0]}{label}")
        else:
            # Serving only returns the last token's logits, so both are computed without it.
            golden.close(item[0], partial(_last_two, golden, model()), label=f"{item[0]}{label}")


def _last_two(golden: Golden, model: ChatGLMForServing) -> Tensor:
    return logits_of(model.network, golden.prompt("p0"))[-2:]


def _bytes(golden: Golden, kind: str) -> None:
    bits, mark = _bits(kind), re.escape(kind)

    def made(layer: str, short: str, scale: torch.dtype = torch.float16) -> Quantised:
        weight = golden.checkpoint.read(f"transformer.layers.{layer}.{_SHORT[short]}.weight")
        return quantise_rows(weight, bits, scale)

    for item in golden.names(rf"{mark}\.onthefly_cpu\.layer(\d+)_(\w+)_scale"):
        golden.equal(item[0], partial(lambda i: made(i[1], i[2], torch.float32).scale, item))
    for item in golden.names(rf"{mark}\.onthefly_cpu\.layer(\d+)_(\w+)_weight_rows(\d+)_(\d+)"):
        rows = slice(int(item[3]), int(item[4]))
        golden.equal(item[0], partial(lambda i, r: _data(made(i[1], i[2], torch.float32))[r], item, rows))
    for item in golden.names(rf"{mark}\.dequant_half\.layer(\d+)_(\w+)_rows(\d+)_(\d+)"):
        rows = slice(int(item[3]), int(item[4]))
        golden.equal(item[0], partial(lambda i, r: dequantise(made(i[1], i[2]), torch.float16)[r], item, rows))
    for item in golden.names(rf"{mark}\.(transformer\..*\.weight)(_scale)?"):
        matrix = quantise_rows(golden.checkpoint.read(item[1]), bits)
        golden.equal(item[0], partial(lambda m, i: m.scale if i[2] else _data(m), matrix, item))
    wanted = golden.facts.get(f"{kind}_sha256_weights_then_scales_sorted_by_name")
    if wanted:
        golden.same(f"goldens.json {kind} sha256 of all layers", [(_digest(golden, bits), wanted)])


def _digest(golden: Golden, bits: int) -> str:
    content: dict[str, Tensor] = {}
    for name, info in golden.checkpoint.tensors.items():
        if ".layers." in name and name.endswith(".weight") and len(info.shape) == 2:
            matrix = quantise_rows(golden.checkpoint.read(name), bits)
            content[name], content[f"{name}_scale"] = _data(matrix), matrix.scale
    digest = hashlib.sha256()
    for name in sorted(content):
        digest.update(bytes(content[name].contiguous().flatten().view(torch.uint8).tolist()))
    return digest.hexdigest()


def _data(matrix: Quantised) -> Tensor:
    return matrix.values if isinstance(matrix, Int8) else matrix.packed

"""Golden items of the network: masks, positions, hidden states, caches, decode steps, prefixes."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.chatglm import model as chatglm
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.layout import Layout, layout_of
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.model import ChatGLM, WholeSequence, rotary_angles
from bot.engine.chatglm.weights import build_network, read_network, read_prefix
from bot.engine.kernels.attention import mask_bias
from bot.engine.kernels.reference import dequantise, quantise_rows
from tests.golden.report import Golden
from tests.golden.runs import run


def check_all(golden: Golden) -> None:
    golden.run("checkpoint", partial(_forms, golden))
    for found in golden.names(r"(p\d+|long|variant\.\w+)\.input_ids"):
        golden.run(found[1], partial(_prompt, golden, found[1]))
    golden.run("forced", partial(_forced, golden))
    golden.run("batch", partial(_batch, golden))
    golden.run("pos1d", partial(_one_dimension, golden))
    for found in golden.names(r"first_release\.(\w+)\.input_ids"):
        golden.run(found[0], partial(_first_release, golden, found[1]))
    golden.run("ptuning", partial(_prefixes, golden))
    golden.run("rotary", partial(_rotation, golden))
    golden.run("diag", partial(_diagnosis, golden))
    golden.run("fp16cpu", partial(_half, golden))
    golden.run("other dtypes", partial(_other_dtypes, golden))


def _forms(golden: Golden) -> None:
    """Compare safetensors with `.bin` weights."""
    bins = list(golden.folder.glob("pytorch_model*"))
    if not bins or not list(golden.folder.glob("model*.safetensors")):
        return
    with tempfile.TemporaryDirectory() as name:
        for path in bins:
            (Path(name) / path.name).symlink_to(path.resolve())
        other = Checkpoint(Path(name))
        names = sorted({*golden.checkpoint.tensors, *other.tensors})
        golden.same("pytorch_model.bin", [(torch.equal(golden.checkpoint.read(n), other.read(n)), True) for n in names])


def logits_of(network: ChatGLM, ids: list[int], prefix: Tensor | None = None) -> Tensor:
    """Return the logits at every token of one prompt, without a cache."""
    layout = layout_of(ids, network.config)
    logits: Tensor = network(torch.tensor([ids]), layout.positions(len(ids))[None], layout.mask(len(ids))[None], prefix)
    return logits[0]


def _prompt(golden: Golden, name: str) -> None:
    ids = golden.prompt(name)
    network, size = golden.model.network, len(ids)
    layout = layout_of(ids, golden.config)
    golden.equal(f"{name}.position_ids", lambda: layout.positions(size).T)
    golden.equal(f"{name}.attention_mask", lambda: layout.mask(size))
    tokenizers = _tokenizer_layout(ids, golden.config)
    golden.equal(f"{name}.tokenizer_position_ids", lambda: tokenizers.positions(size).T)
    golden.equal(f"{name}.tokenizer_attention_mask", lambda: tokenizers.mask(size))

    attend = RecordingAttention(layout.mask(size)[None])
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
        for block in network.transformer.layers
    ]
    last = network.hidden(torch.tensor([ids]), layout.positions(size)[None], attend)
    for hook in hooks:
        hook.remove()
    logits = network.logits(last)[0]
    golden.close(f"{name}.logits", lambda: logits)
    golden.close(f"{name}.logits_last", lambda: logits[-1])
    golden.close(f"{name}.logits_last2", lambda: logits[-2:])
    golden.close(f"{name}.hidden_states", lambda: torch.stack([*inputs, last[0]]))
    # The goldens hold only the first head.
    golden.close(f"{name}.attn_probs_last", lambda: attend.shares[-1][0])
    for found in golden.names(rf"{re.escape(name)}\.(attn_probs_|key_cache_|value_cache_)layer(\d+)"):
        kept = {"attn_probs_": attend.shares, "key_cache_": attend.keys, "value_cache_": attend.values}[found[1]]
        tensor = kept[int(found[2])]
        golden.close(
            found[0],
            partial(torch.select, tensor, 0, 0)
            if found[1] == "attn_probs_"
            else partial(torch.transpose, tensor, 0, 1),
        )
    _decoding(golden, golden.model, name, [ids])


def _decoding(golden: Golden, model: ChatGLMForServing, name: str, prompts: list[list[int]]) -> None:
    """Compare greedy decoding through the cache."""
    mark = re.escape(name)
    steps = [int(found[1]) for found in golden.names(rf"{mark}\.decode_step(\d+)_logits")]
    lengths = [int(found[1]) for found in golden.names(rf"{mark}\.greedy(\d+)(?:_position_ids)?")]
    if not steps and not lengths:
        return
    count = max([step + 1 for step in steps] + lengths)
    made = run(model, prompts, count)
    for step in steps:
        golden.close(f"{name}.decode_step{step}_logits", partial(made.logits.__getitem__, step))
    for length in set(lengths):
        golden.equal(f"{name}.greedy{length}", partial(made.tokens.__getitem__, (slice(None), slice(length))))
        positions = [layout_of(ids, model.network.config).positions(len(ids) + length - 1)[-length:] for ids in prompts]
        golden.equal(f"{name}.greedy{length}_position_ids", partial(torch.stack, positions))


def _forced(golden: Golden) -> None:
    tokens: list[int] = golden.need("forced.tokens").tolist()
    golden.note("forced.tokens", "input")
    made = run(golden.model, [golden.prompt("p0")], len(tokens) + 1, lambda step, _: [(*tokens, 0)[step]])
    golden.close("forced.logits", lambda: made.logits)


def _batch(golden: Golden) -> None:
    """Compare rows of different lengths: left-padded like the reference, and in our slots."""
    ids = golden.need("batch.input_ids")
    golden.note("batch.input_ids", "input")
    prompts = batch_prompts(golden)
    size = ids.shape[1]
    masks, positions = torch.ones(len(ids), size, size, dtype=torch.bool), torch.zeros(len(ids), size, 2).long()
    for row, prompt in enumerate(prompts):
        layout = _tokenizer_layout(prompt, golden.config)
        masks[row, -len(prompt) :, -len(prompt) :] = layout.mask(len(prompt))
        positions[row, -len(prompt) :] = layout.positions(len(prompt))
    golden.equal("batch.attention_mask", lambda: masks)
    golden.equal("batch.position_ids", lambda: positions.transpose(1, 2))
    logits = golden.model.network(ids, positions, masks)
    golden.close("batch.logits_first_pad_row", lambda: logits[:, 0])
    golden.close("batch.logits_last2", lambda: logits[:, -2:])
    _decoding(golden, golden.model, "batch", prompts)


def batch_prompts(golden: Golden) -> list[list[int]]:
    rows: list[list[int]] = golden.need("batch.input_ids").tolist()
    pad = golden.config.pad_token_id
    return [row[next(i for i, token in enumerate(row) if token != pad) :] for row in rows]


def _one_dimension(golden: Golden) -> None:
    golden.need("pos1d.logits_last")
    ids = golden.prompt("p0")
    config = replace(golden.config, position_encoding_2d=False)
    layout = layout_of(ids, config)
    golden.equal("pos1d.position_ids", lambda: layout.positions(len(ids)).T)
    cpu = torch.device("cpu")
    network = read_network(golden.checkpoint, config, quantization="none", dtype=torch.float32, devices=[cpu])
    golden.close("pos1d.logits_last", lambda: logits_of(network, ids)[-1])
    served = ChatGLMForServing(network, slots=1)
    golden.close("pos1d.logits_last", lambda: run(served, [ids], 1).logits, label="pos1d.logits_last, served")


def _first_release(golden: Golden, kind: str) -> None:
    name = f"first_release.{kind}"
    # The first release's ids, independent of this set's sizes.
    config = replace(
        golden.config,
        first_release=True,
        vocab_size=150528,
        mask_token_id=150000,
        gmask_token_id=150001,
        bos_token_id=150004,
        eos_token_id=150005,
    )
    ids = golden.prompt(name)
    layout = layout_of(ids, config)
    golden.equal(f"{name}.position_ids", lambda: layout.positions(len(ids)).T)
    golden.equal(f"{name}.attention_mask", lambda: layout.mask(len(ids)))
    for found in golden.names(rf"{re.escape(name)}\.step(\d+)_position_ids"):
        # Step 1 is the last token of the prompt.
        golden.equal(found[0], partial(torch.tensor, layout.position(len(ids) + int(found[1]) - 1)))


def _prefixes(golden: Golden) -> None:
    for name in dict.fromkeys(found[1] for found in golden.names(r"(ptuning\.\w+)\..*")):
        golden.run(name, partial(_prefix, golden, name))


def _prefix(golden: Golden, name: str) -> None:
    folder = golden.folder.joinpath(*name.split("."))
    model = load(golden.folder, ptuning=folder, dtype="float32")
    prefix = read_prefix(Checkpoint(folder), golden.config)
    assert prefix is not None
    for found in golden.names(rf"{re.escape(name)}\.prefix_(key|value)_layer(\d+)"):
        layer = prefix[int(found[2]), 0 if found[1] == "key" else 1]
        golden.close(found[0], partial(layer.transpose, 0, 1))
    ids = golden.prompt("p0")
    golden.close(f"{name}.logits_last2", lambda: logits_of(model.network, ids, prefix)[-2:])
    prompts = batch_prompts(golden)
    golden.close(f"{name}.batch_logits_last", lambda: run(model, prompts, 1).logits[0])
    _decoding(golden, model, name, [ids])


def _rotation(golden: Golden) -> None:
    for name, size in [(found[1], int(found[2])) for found in golden.names(r"(rotary(\d+))\.positions")]:
        positions = golden.need(f"{name}.positions")
        golden.note(f"{name}.positions", "input")
        for half, kind in ((False, "float"), (True, "half")):
            cos, sin = rotary_angles(positions, size, half)
            golden.close(f"{name}.{kind}.cos", cos.clone, 1e-6)
            golden.close(f"{name}.{kind}.sin", sin.clone, 1e-6)
        # At position 1 the float32 angle equals the frequency.
        cos, sin = rotary_angles(torch.tensor([1]), size)
        golden.close(f"{name}.inv_freq_half", partial(torch.atan2, sin, cos), 1e-6)


def _diagnosis(golden: Golden) -> None:
    """Check that our logits differ from those of a wrong residual factor, unless it is right for this depth."""
    wrong = golden.need("diag.alpha_own_layers.logits_last")
    right = chatglm.RESIDUAL_SCALE
    chatglm.RESIDUAL_SCALE = (2 * golden.config.num_layers) ** 0.5
    try:
        logits = logits_of(golden.model.network, golden.prompt("p0"))
        golden.close("diag.alpha_own_layers.logits_last", lambda: logits[-1])
    finally:
        chatglm.RESIDUAL_SCALE = right
    distance = (logits_of(golden.model.network, golden.prompt("p0"))[-1] - wrong).abs().max().item()
    golden.verdict("diag: ours is another", f"{distance:.1e}", good=distance > 1 or golden.config.num_layers == 28)


def _half(golden: Golden) -> None:
    for found in golden.names(r"fp16cpu\.(\w+)\.logits_last"):
        model = load(golden.folder, dtype="float16", half_angles=True)
        ours = run(model, [golden.prompt(found[1])], 1).logits[0]
        golden.note(found[0], f"fp16 angles of the reference, informative: {compared(ours, golden.numbers[found[0]])}")


def _other_dtypes(golden: Golden) -> None:
    """Print the distance of other dtypes and quantisations from float32; informative only."""
    prompts = [golden.prompt(found[1]) for found in golden.names(r"(p\d+)\.input_ids")]
    golden.need("p0.input_ids")
    wanted = torch.cat([logits_of(golden.model.network, ids) for ids in prompts])
    for label, model in {
        "bfloat16": load(golden.folder, dtype="bfloat16"),
        "float16": load(golden.folder, dtype="float16"),
        "int8, our own, float32": load(golden.folder, quantization="int8", dtype="float32"),
        "int8, our own, bfloat16": load(golden.folder, quantization="int8"),
        "int4, our own, float32": load(golden.folder, quantization="int4", dtype="float32"),
        "int4, our own, bfloat16": load(golden.folder, quantization="int4"),
    }.items():
        ours = torch.cat([logits_of(model.network, ids) for ids in prompts])
        golden.note(label, compared(ours, wanted))

    def rounded(name: str) -> Tensor:
        weight = golden.checkpoint.read(name)
        return weight if "word_embeddings" in name else dequantise(quantise_rows(weight, 4))

    network = build_network(
        golden.config, rounded, golden.checkpoint.read, dtype=torch.float32, devices=[torch.device("cpu")]
    )
    ours = torch.cat([logits_of(network, ids) for ids in prompts])
    golden.note("int4, the published scheme, float32", compared(ours, wanted))


def compared(ours: Tensor, wanted: Tensor) -> str:
    """Return the largest error, the KL divergence in nats, and the agreement of the argmax."""
    ours, wanted = ours.float(), wanted.float().view_as(ours)
    error = (ours - wanted).abs().max().item()
    divergence = functional.kl_div(ours.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(
        -1
    )
    agree = (ours.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    return f"{error:.1e}, KL {divergence.mean().item():.1e}, same argmax {agree:.0%}"


def _tokenizer_layout(ids: list[int], config: ChatGLMConfig) -> Layout:
    """Return the layout of the published tokenizer when padding, which prefers [MASK] to [gMASK]."""
    layout = layout_of(ids, config)
    if config.mask_token_id in ids:
        return replace(layout, mask_position=ids.index(config.mask_token_id))
    return layout


class RecordingAttention(WholeSequence):
    """Eager attention that records row 0, `[heads, ...]` per layer."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self._hidden = mask[:, None]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.shares: list[Tensor] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask_bias(self._hidden, query.dtype)
        share = scores.softmax(-1)
        self.keys.append(key[0])
        self.values.append(value[0])
        self.shares.append(share[0])
        mixed: Tensor = share @ value
        return mixed

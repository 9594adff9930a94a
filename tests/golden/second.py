"""Create the second golden set from the numpy reference: `python -m tests.golden.second DIR`.

It has other sizes than the published set, a unigram tokenizer and other prompts.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor

from tests.golden.twin import Array, Sizes, Twin, hidden_keys, packed, positions, probabilities, quantised
from training.tokenizer import BLANKS, BYTE, BYTES, CONTROL, CONTROLS, FIRST, NORMAL, USER_DEFINED, VocabularyPiece

Numbers = dict[str, NDArray[Any]]

SEED = 11
WORDS = (
    *"▁etaoinshrdlcumwfgypbvkxqjz0123456789.,!?:;'()[]<>",
    *"你好我是的人在有他这不了们来到时大地为子中说生国年着就那和要她出也得里后",
    *("▁the", "▁a", "▁of", "ing", "er", "th", "▁is", "on", "at", "re", "机器", "天气", "世界", "▁What", "▁wh", "▁c"),
)
FIRST_WORD = len(FIRST)
SIZES = Sizes(
    vocabulary=496,
    hidden=48,
    inner=64,
    layers=3,
    heads=4,
    mask=FIRST_WORD + len(WORDS),
    gmask=FIRST_WORD + len(WORDS) + 1,
    sop=FIRST_WORD + len(WORDS) + 4,
)
EOP, PAD = SIZES.sop + 1, 3
PREFIX_LENGTH = 5
PROMPTS = ("你好，世界", "What is the weather?", "[Round 0]\n问：你好\n答：好的\n[Round 1]\n问：a\tb  c\n答：", "")
TEXTS = (
    *PROMPTS,
    "   three",
    "x\n\n\ty",
    "👋 é",
    "<|blank_7|>x<n>",
    "a . b , c",
    "wow ! it 's",
    "天气!",
    "1234.5",
    "\n",
)
NAME = "transformer.layers.{}.{}"


def vocabulary() -> bytes:
    """Return a SentencePiece file in ChatGLM's layout: a unigram model without normalisation."""
    pieces = [
        VocabularyPiece(FIRST[0], 2),
        *(VocabularyPiece(text, CONTROL) for text in FIRST[1:4]),
        VocabularyPiece(FIRST[4], USER_DEFINED),
        *(VocabularyPiece(text, NORMAL, -2.0 - 0.05 * rank) for rank, text in enumerate(WORDS)),
        *(VocabularyPiece(text, CONTROL) for text in CONTROLS),
        *(VocabularyPiece(text, USER_DEFINED) for text in BLANKS),
        *(VocabularyPiece(text, BYTE) for text in BYTES),
    ]
    trainer = b"\x12\x05\x18\x01\x98\x02\x01"  # trainer_spec { model_type: UNIGRAM, byte_fallback: true }
    return b"".join(piece.as_bytes() for piece in pieces) + trainer


def weights(sizes: Sizes = SIZES) -> Numbers:
    """Return random float16 tensors of a checkpoint."""
    random = np.random.default_rng(SEED)
    content: Numbers = {}

    def matrix(name: str, rows: int, columns: int, spread: float, *, bias: bool = True) -> None:
        content[f"{name}.weight"] = (random.standard_normal((rows, columns)) * spread).astype(np.float16)
        if bias:
            content[f"{name}.bias"] = (random.standard_normal(rows) * 0.1).astype(np.float16)

    def norm(name: str) -> None:
        content[f"{name}.weight"] = (1 + 0.1 * random.standard_normal(sizes.hidden)).astype(np.float16)
        content[f"{name}.bias"] = (0.1 * random.standard_normal(sizes.hidden)).astype(np.float16)

    matrix("transformer.word_embeddings", sizes.vocabulary, sizes.hidden, 1.0, bias=False)
    for layer in range(sizes.layers):
        norm(NAME.format(layer, "input_layernorm"))
        matrix(NAME.format(layer, "attention.query_key_value"), 3 * sizes.hidden, sizes.hidden, 0.3)
        matrix(NAME.format(layer, "attention.dense"), sizes.hidden, sizes.hidden, 1.0)
        norm(NAME.format(layer, "post_attention_layernorm"))
        matrix(NAME.format(layer, "mlp.dense_h_to_4h"), sizes.inner, sizes.hidden, 0.3)
        matrix(NAME.format(layer, "mlp.dense_4h_to_h"), sizes.hidden, sizes.inner, 0.5)
    norm("transformer.final_layernorm")
    return content


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ice_text.model").write_bytes(vocabulary())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0}\n')
    _config(folder)
    content = weights()
    _shards(folder, content)
    twin, text = Twin(content, SIZES), Text(folder)
    numbers: Numbers = {}
    facts: dict[str, Any] = {"set": "second", "seed": SEED, "prompts": list(PROMPTS), "greedy_min_margin": {}}
    for number, prompt in enumerate(PROMPTS):
        _prompt(f"p{number}", [*text.ids(prompt), SIZES.gmask, SIZES.sop], twin, numbers, facts)
    first = [*text.ids(PROMPTS[0]), SIZES.gmask, SIZES.sop]
    _odd_prompts(twin, numbers)
    _forced(first, twin, numbers)
    _batch([first, [*text.ids(PROMPTS[1]), SIZES.gmask, SIZES.sop]], twin, numbers)
    _one_dimension(first, content, numbers)
    _prefixes(folder, first, twin, numbers)
    for kind in ("int8", "int4", "int4-qe"):
        _quantised(folder, kind, content, first, numbers)
    logits = numbers["p0.logits"][0, -1]
    numbers["sampling.flat.logits_in"] = (logits * 0.15).astype(np.float32)
    numbers["sampling.flat.probs"] = probabilities(numbers["sampling.flat.logits_in"].astype(np.float64))
    numbers["diag.alpha_own_layers.logits_last"] = _with_its_own_depth(first, content)
    save_file({name: _kept(tensor) for name, tensor in sorted(numbers.items())}, folder / "goldens.safetensors")
    _write_json(folder / "goldens.json", facts)
    _write_json(folder / "tokenizer_golden.json", text.numbers())
    _write_json(folder / "chat_golden.json", _chats(text, twin))


def _prompt(name: str, ids: list[int], twin: Twin, numbers: Numbers, facts: dict[str, Any]) -> None:
    seen = twin.prompt(ids)
    tokens, steps, lead = twin.greedy(ids, 8)
    facts["greedy_min_margin"][name] = lead
    numbers[f"{name}.input_ids"] = np.array([ids])
    numbers[f"{name}.position_ids"] = np.array([positions(ids, len(ids), SIZES)]).transpose(0, 2, 1)
    numbers[f"{name}.attention_mask"] = hidden_keys(ids, len(ids), SIZES)[None, None]
    numbers[f"{name}.logits_last2"] = seen.logits[None, -2:]
    numbers[f"{name}.greedy8"] = np.array([tokens])
    numbers[f"{name}.greedy8_position_ids"] = np.array(positions(ids, len(ids) + 7, SIZES)[-8:])
    numbers[f"{name}.decode_step1_logits"] = steps[1]
    if name == "p0":
        numbers["p0.logits"] = seen.logits[None]
        numbers["p0.hidden_states"] = np.array(seen.inputs)
        numbers["p0.attn_probs_layer0"] = seen.shares[0]
        numbers["p0.attn_probs_last"] = seen.shares[-1]
        numbers["p0.key_cache_layer1"] = seen.keys[1]
        numbers["p0.value_cache_layer1"] = seen.values[1]


def _odd_prompts(twin: Twin, numbers: Numbers) -> None:
    for name, ids in {
        "mask_only": [7, 8, SIZES.mask, 9, SIZES.sop],
        "mask_and_gmask": [7, SIZES.mask, 8, SIZES.gmask, SIZES.sop, 11],
        "bos_twice": [7, SIZES.gmask, SIZES.sop, 9, 10, SIZES.sop, 12],
    }.items():
        numbers[f"variant.{name}.input_ids"] = np.array([ids])
        numbers[f"variant.{name}.position_ids"] = np.array([positions(ids, len(ids), SIZES)]).transpose(0, 2, 1)
        numbers[f"variant.{name}.logits_last"] = twin.prompt(ids).logits[-1]
    ids = [27, 28, 150001, 150004]
    first_release = replace(SIZES, mask=150000, gmask=150001, sop=150004)
    numbers["first_release.gmask.input_ids"] = np.array([ids])
    where = positions(ids, 6, first_release, first_release=True)
    numbers["first_release.gmask.position_ids"] = np.array([where[:4]]).transpose(0, 2, 1)
    numbers["first_release.gmask.step2_position_ids"] = np.array([where[5:]]).transpose(0, 2, 1)


def _forced(ids: list[int], twin: Twin, numbers: Numbers) -> None:
    tokens = [int(token) for token in np.random.default_rng(SEED).integers(5, SIZES.mask, 6)]
    numbers["forced.tokens"] = np.array(tokens)
    numbers["forced.logits"] = twin.prompt(ids, tokens).logits[len(ids) - 1 :]


def _batch(rows: list[list[int]], twin: Twin, numbers: Numbers) -> None:
    """Add a left-padded batch; padding rows and columns are masked."""
    size = max(map(len, rows))
    masks = np.ones((len(rows), 1, size, size), dtype=np.bool_)
    where = np.zeros((len(rows), 2, size), dtype=np.int64)
    logits, padding_logits = [], []
    for row, ids in enumerate(rows):
        padding = size - len(ids)
        masks[row, 0, padding:, padding:] = hidden_keys(ids, len(ids), SIZES)
        where[row, :, padding:] = np.array(positions(ids, len(ids), SIZES)).T
        seen = twin.run([PAD] * padding + ids, where[row].T.tolist(), masks[row, 0])
        logits.append(seen.logits[-2:])
        padding_logits.append(seen.logits[0])
    numbers["batch.input_ids"] = np.array([[PAD] * (size - len(ids)) + ids for ids in rows])
    numbers["batch.attention_mask"], numbers["batch.position_ids"] = masks, where
    numbers["batch.logits_last2"] = np.array(logits)
    numbers["batch.logits_first_pad_row"] = np.array(padding_logits)
    numbers["batch.greedy8"] = np.array([twin.greedy(ids, 8)[0] for ids in rows])


def _one_dimension(ids: list[int], content: Numbers, numbers: Numbers) -> None:
    sizes = replace(SIZES, two_channels=False)
    numbers["pos1d.position_ids"] = np.array([[first for first, _ in positions(ids, len(ids), sizes)]])
    numbers["pos1d.logits_last"] = Twin(content, sizes).prompt(ids).logits[-1]


def _prefixes(folder: Path, ids: list[int], twin: Twin, numbers: Numbers) -> None:
    random = np.random.default_rng(SEED)
    width = 2 * SIZES.layers * SIZES.hidden

    def drawn(*shape: int) -> NDArray[np.float16]:
        return random.standard_normal(shape).astype(np.float16)

    plain = {"embedding.weight": drawn(PREFIX_LENGTH, width)}
    projected = {
        "embedding.weight": drawn(PREFIX_LENGTH, SIZES.hidden),
        "trans.0.weight": drawn(24, SIZES.hidden) * np.float16(0.2),
        "trans.0.bias": drawn(24),
        "trans.2.weight": drawn(width, 24) * np.float16(0.3),
        "trans.2.bias": drawn(width),
    }
    for form, stored in (("no_projection", plain), ("projection", projected)):
        place = folder / "ptuning" / form
        place.mkdir(parents=True, exist_ok=True)
        _write_json(
            place / "ptuning_config.json", {"pre_seq_len": PREFIX_LENGTH, "prefix_projection": form == "projection"}
        )
        _bin(place, {f"transformer.prefix_encoder.{name}": tensor for name, tensor in stored.items()})
        exact = {name: tensor.astype(np.float64) for name, tensor in stored.items()}
        rows = exact["embedding.weight"]
        if form == "projection":
            inner = np.tanh(np.array([exact["trans.0.weight"] @ row + exact["trans.0.bias"] for row in rows]))
            rows = np.array([exact["trans.2.weight"] @ row + exact["trans.2.bias"] for row in inner])
        prefix = rows.reshape(PREFIX_LENGTH, 2 * SIZES.layers, SIZES.heads, SIZES.head)
        name = f"ptuning.{form}"
        tokens, steps, _ = twin.greedy(ids, 6, prefix)
        numbers[f"{name}.logits_last2"] = twin.prompt(ids, (), prefix).logits[-2:]
        numbers[f"{name}.greedy6"] = np.array(tokens)
        numbers[f"{name}.decode_step1_logits"] = steps[1]
        numbers[f"{name}.prefix_key_layer2"], numbers[f"{name}.prefix_value_layer2"] = prefix[:, 4], prefix[:, 5]


def _quantised(folder: Path, kind: str, content: Numbers, ids: list[int], numbers: Numbers) -> None:
    bits, place = int(kind[3]), folder / kind
    place.mkdir(exist_ok=True)
    _config(place, quantization_bit=bits, quantization_embeddings=kind == "int4-qe")
    stored: Numbers = {}
    exact = dict(content)
    for name, tensor in content.items():
        stored[name] = tensor
        if tensor.ndim == 2 and (kind == "int4-qe" or "word_embeddings" not in name):
            values, scale = quantised(tensor, bits)
            stored[name], stored[f"{name}_scale"] = packed(values) if bits == 4 else values, scale
            exact[name] = values.astype(np.float64) * scale.astype(np.float64)[:, None]
    _bin(place, stored)
    twin = Twin(exact, SIZES)
    numbers[f"{kind}.cpu_reference.logits_last2"] = twin.prompt(ids).logits[-2:]
    numbers[f"{kind}.cpu_reference.greedy6"] = np.array(twin.greedy(ids, 6)[0])


def _with_its_own_depth(ids: list[int], content: Numbers) -> Array:
    """Return the logits for the wrong residual factor of the network's own depth."""
    ratio = (SIZES.layers / 28) ** 0.5
    # A factor a on the residual equals 1 / a on the branch, up to the epsilon of the norms.
    changed = {
        name: tensor.astype(np.float64) / ratio if ".dense." in name or "4h_to_h" in name else tensor
        for name, tensor in content.items()
    }
    logits: Array = Twin(changed, SIZES).prompt(ids).logits[-1]
    return logits


class Text:
    """Text handling of the published tokenizer, as far as this set needs it."""

    def __init__(self, folder: Path) -> None:
        self._model = SentencePieceProcessor(model_file=str(folder / "ice_text.model"))

    def pieces(self, text: str) -> str:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for count in range(80, 1, -1):
            text = text.replace(" " * count, f"<|blank_{count}|>")
        return text

    def ids(self, text: str) -> list[int]:
        return [int(token) for token in self._model.encode(self.pieces(text))]

    def decode(self, ids: Sequence[int]) -> str:
        text = str(self._model.decode([token for token in ids if token != PAD]))
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for count in range(80, 1, -1):
            text = text.replace(f"<|blank_{count}|>", " " * count)
        for gap in (".", "?", "!", ","):
            text = text.replace(f" {gap}", gap)
        text = text.replace(" ' ", "'")
        for short in ("n't", "'m", "'s", "'ve", "'re"):
            text = text.replace(f" {short}", short)
        return text

    def numbers(self) -> dict[str, Any]:
        cases = []
        for text in TEXTS:
            ids = self.ids(text)
            asked = [*ids, SIZES.gmask, SIZES.sop]
            tokens = [self._model.id_to_piece(token) for token in ids]
            cases.append({"text": text, "ids": ids, "input_ids": asked, "tokens": tokens, "decode": self.decode(ids)})
        ids = self.ids("再见👋x")
        prefixes = [self.decode(ids[:count]) for count in range(len(ids) + 1)]
        odd = [{"ids": ids, "decode": self.decode(ids)} for ids in ([SIZES.sop], [PAD, PAD], [4, 4], [SIZES.mask, 9])]
        return {"cases": cases, "partial_decode": [{"ids": ids, "decode_prefixes": prefixes}], "decode_odd": odd}


def _chats(text: Text, twin: Twin) -> dict[str, Any]:
    history: list[list[str]] = []
    chats = []
    for query in ("你好", "What is the weather?"):
        rounds = "".join(f"[Round {i}]\n问：{asked}\n答：{said}\n" for i, (asked, said) in enumerate(history))
        prompt = f"{rounds}[Round {len(history)}]\n问：{query}\n答：" if history else query
        ids = [*text.ids(prompt), SIZES.gmask, SIZES.sop]
        tokens, _, _ = twin.greedy(ids, 6)
        tokens = tokens[: tokens.index(EOP) + 1] if EOP in tokens else tokens
        raw = text.decode(tokens)
        chats.append(
            {
                "note": f"greedy, round {len(history)}",
                "query": query,
                "history": [*history],
                "kwargs": {"do_sample": False, "max_new_tokens": 6},
                "force_step_token": None,
                "prompt_text": prompt,
                "prompt_ids": ids,
                "output_ids": tokens,
                "raw_decode": raw,
                "response": tidied(raw),
            }
        )
        history.append([query, tidied(raw)])
    examples = ("好,好", "http://好:80", "[[训练时间]]ok", " a!好 ", "好?a;b;好")
    return {"chat": chats, "process_response": [{"input": raw, "output": tidied(raw)} for raw in examples]}


def tidied(text: str) -> str:
    """Post-process an answer: replace marks after Chinese, then those before it."""
    text = text.strip().replace("[[训练时间]]", "2023年")
    for mark, wide in zip(",!:;?", "，！：；？", strict=True):
        for step in (-1, 1):
            characters = list(text)
            for i, character in enumerate(characters):
                beside = characters[i + step] if 0 <= i + step < len(characters) else ""
                if character == mark and "\u4e00" <= beside <= "\u9fff":
                    characters[i] = wide
            text = "".join(characters)
    return text


def _kept(tensor: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor)


def _shards(folder: Path, content: Numbers) -> None:
    names = sorted(content)
    files: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: content[name] for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})


def _bin(folder: Path, content: Numbers) -> None:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in content.items()}, file)
    (folder / "pytorch_model.bin").write_bytes(file.getvalue())


def _config(folder: Path, **more: int | bool) -> None:
    fields = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "vocab_size": SIZES.vocabulary,
        "hidden_size": SIZES.hidden,
        "inner_hidden_size": SIZES.inner,
        "num_layers": SIZES.layers,
        "num_attention_heads": SIZES.heads,
        "mask_token_id": SIZES.mask,
        "gmask_token_id": SIZES.gmask,
        "bos_token_id": SIZES.sop,
        "eos_token_id": EOP,
        "pad_token_id": PAD,
        "max_sequence_length": 96,
        "layernorm_epsilon": SIZES.epsilon,
        "position_encoding_2d": True,
        **more,
    }
    _write_json(folder / "config.json", fields)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""Independent numpy reference of ChatGLM, for our own golden set.

Written from the description of the published behaviour, without code of the program: float64,
no cache, no batch, one head and one query at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    mask: int
    gmask: int
    sop: int
    two_channels: bool = True
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads


@dataclass
class Activations:
    """Intermediate values of a pass; attention weights are those of head 0."""

    inputs: list[Array] = field(default_factory=list)  # of each layer, then the final norm's output
    keys: list[Array] = field(default_factory=list)  # [tokens, heads, head] per layer, rotated
    values: list[Array] = field(default_factory=list)
    shares: list[Array] = field(default_factory=list)  # [queries, keys] per layer
    logits: Array = field(default_factory=lambda: np.zeros(0))


def positions(ids: Sequence[int], size: int, sizes: Sizes, *, first_release: bool = False) -> list[list[int]]:
    """Return position and block position of `size` tokens that begin with the prompt `ids`."""
    context = list(ids).index(sizes.sop)
    has_gmask = sizes.gmask in ids
    anchor = list(ids).index(sizes.gmask if has_gmask else sizes.mask)
    pairs = []
    for index in range(size):
        if index < context:
            pairs.append([index, 0])
        elif has_gmask and (not sizes.two_channels or (first_release and index < len(ids))):
            pairs.append([index, index - context + 1])
        else:
            pairs.append([anchor, index - context + 1])
    return pairs


def hidden_keys(ids: Sequence[int], size: int, sizes: Sizes) -> NDArray[np.bool_]:
    """Return the mask `[queries, keys]`, True where masked."""
    context = list(ids).index(sizes.sop)
    masked = np.zeros((size, size), dtype=np.bool_)
    for query in range(size):
        for key in range(size):
            masked[query, key] = key >= context and key > query
    return masked


def frequencies(size: int) -> Array:
    """Return the inverse frequencies, rounded to float16."""
    exact = [1.0 / np.float32(10000) ** np.float32(np.float32(2 * i) / np.float32(size)) for i in range(size // 2)]
    return np.array(exact, dtype=np.float16).astype(np.float64)


def rotate(part: Array, position: int) -> Array:
    """Rotate each pair (i, i + half) of a vector by the position's angles."""
    half = len(part) // 2
    turned = np.empty_like(part)
    for i, frequency in enumerate(frequencies(len(part))):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        turned[i] = part[i] * cos - part[i + half] * sin
        turned[i + half] = part[i + half] * cos + part[i] * sin
    return turned


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), dtype=np.float64)


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), dtype=np.float64)


class Twin:
    def __init__(self, numbers: Weights, sizes: Sizes) -> None:
        self.sizes = sizes
        self._numbers = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in numbers.items()}

    def run(
        self,
        ids: Sequence[int],
        where: Sequence[Sequence[int]],
        masked: NDArray[np.bool_],
        prefix: Array | None = None,
    ) -> Activations:
        """Run a sequence; `prefix` is `[prefix, 2 * layer + (0 for keys, 1 for values), head, dim]`."""
        seen = Activations()
        alpha = math.sqrt(2 * 28)  # the published constant, for any depth
        table = self._numbers["transformer.word_embeddings.weight"]
        hidden = np.array([table[token] for token in ids])
        for layer in range(self.sizes.layers):
            name = f"transformer.layers.{layer}"
            seen.inputs.append(hidden)
            normed = self._norm(f"{name}.input_layernorm", hidden)
            mixed = self._attention(layer, normed, where, masked, prefix, seen)
            hidden = alpha * normed + self._linear(f"{name}.attention.dense", mixed)
            normed = self._norm(f"{name}.post_attention_layernorm", hidden)
            inner = gelu(self._linear(f"{name}.mlp.dense_h_to_4h", normed))
            hidden = alpha * normed + self._linear(f"{name}.mlp.dense_4h_to_h", inner)
        hidden = self._norm("transformer.final_layernorm", hidden)
        seen.inputs.append(hidden)
        seen.logits = hidden @ table.T
        return seen

    def prompt(self, ids: Sequence[int], answer: Sequence[int] = (), prefix: Array | None = None) -> Activations:
        """Run a prompt and an answer."""
        whole = [*ids, *answer]
        where, masked = positions(ids, len(whole), self.sizes), hidden_keys(ids, len(whole), self.sizes)
        return self.run(whole, where, masked, prefix)

    def greedy(
        self, ids: Sequence[int], steps: int, prefix: Array | None = None
    ) -> tuple[list[int], list[Array], float]:
        """Decode greedily; return tokens, logits per step, and the smallest margin of a chosen token."""
        tokens: list[int] = []
        logits: list[Array] = []
        lead = math.inf
        for _ in range(steps):
            last = self.prompt(ids, tokens, prefix).logits[-1]
            second, first = np.sort(last)[-2:]
            lead = min(lead, float(first - second))
            tokens.append(int(last.argmax()))
            logits.append(last)
        return tokens, logits, lead

    def _norm(self, name: str, hidden: Array) -> Array:
        weight, bias = self._numbers[f"{name}.weight"], self._numbers[f"{name}.bias"]
        rows = []
        for row in hidden:
            centred = row - row.mean()
            rows.append(centred / math.sqrt((centred**2).mean() + self.sizes.epsilon) * weight + bias)
        return np.array(rows)

    def _linear(self, name: str, hidden: Array) -> Array:
        return np.array([self._numbers[f"{name}.weight"] @ row + self._numbers[f"{name}.bias"] for row in hidden])

    def _rotated(self, vector: Array, where: Sequence[int]) -> Array:
        if not self.sizes.two_channels:
            return rotate(vector, where[0])
        half = len(vector) // 2
        return np.concatenate([rotate(vector[:half], where[0]), rotate(vector[half:], where[1])])

    def _attention(
        self,
        layer: int,
        hidden: Array,
        where: Sequence[Sequence[int]],
        masked: NDArray[np.bool_],
        prefix: Array | None,
        seen: Activations,
    ) -> Array:
        head, heads, size = self.sizes.head, self.sizes.heads, len(hidden)
        together = self._linear(f"transformer.layers.{layer}.attention.query_key_value", hidden)
        mixed = np.zeros((size, self.sizes.hidden))
        keys, values = np.zeros((size, heads, head)), np.zeros((size, heads, head))
        for h in range(heads):
            first = 3 * head * h  # per head: query, key, value
            queries = [self._rotated(row[first : first + head], at) for row, at in zip(together, where, strict=True)]
            for t, (row, at) in enumerate(zip(together, where, strict=True)):
                keys[t, h] = self._rotated(row[first + head : first + 2 * head], at)
                values[t, h] = row[first + 2 * head : first + 3 * head]
            all_keys, all_values, before = keys[:, h], values[:, h], 0
            if prefix is not None:
                before = len(prefix)
                all_keys = np.concatenate([prefix[:, 2 * layer, h], all_keys])
                all_values = np.concatenate([prefix[:, 2 * layer + 1, h], all_values])
            shares = np.zeros((size, before + size))
            for t, query in enumerate(queries):
                scores = np.array([query @ key for key in all_keys]) / math.sqrt(head)
                scores[before:][masked[t]] = -10000.0
                shares[t] = softmax(scores)
                mixed[t, h * head : (h + 1) * head] = shares[t] @ all_values
            if h == 0:
                seen.shares.append(shares)
        seen.keys.append(keys)
        seen.values.append(values)
        return mixed


def quantised(weight: NDArray[np.float16], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise by rows in float16; return integers and a scale per row."""
    most = 2 ** (bits - 1) - 1
    scale = (np.abs(weight).max(axis=1) / np.float16(most)).astype(np.float16)
    rows = [np.rint((row / its).astype(np.float16)) for row, its in zip(weight, scale, strict=True)]
    return np.array(rows).astype(np.int8), scale


def packed(values: NDArray[np.int8]) -> NDArray[np.int8]:
    """Pack two columns per byte, the even one in the high nibble."""
    rows = []
    for row in values.tolist():
        octets = [((row[i] & 15) << 4) | (row[i + 1] & 15) for i in range(0, len(row), 2)]
        rows.append([octet - 256 if octet > 127 else octet for octet in octets])
    return np.array(rows, dtype=np.int8)


def probabilities(logits: Array, temperature: float = 0.95, top_k: int = 50, top_p: float = 0.7) -> Array:
    """Return chat's sampling distribution: temperature, top_k, then the smallest set that reaches top_p."""
    scores = logits / temperature
    order = sorted(range(len(scores)), key=lambda token: -scores[token])[:top_k]
    shares = softmax(np.array([scores[token] for token in order]))
    kept = 1
    while kept < len(order) and shares[:kept].sum() < top_p:
        kept += 1
    found = np.zeros(len(scores))
    for token, share in zip(order[:kept], shares[:kept] / shares[:kept].sum(), strict=True):
        found[token] = share
    return found

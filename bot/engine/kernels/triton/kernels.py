"""Triton kernels between matmuls: LayerNorm, RoPE, single-query attention."""

import triton
import triton.language as tl


@triton.jit
def add_norm(
    product, residual, weight, bias, normed, cast, hidden, alpha, epsilon,
    has_residual: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Normalise one row per program; store it as float32 and in the dtype of `cast`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    here = column < hidden
    total = tl.load(product + row * hidden + column, mask=here, other=0.0).to(tl.float32)
    if has_residual:
        total += alpha * tl.load(residual + row * hidden + column, mask=here, other=0.0)
    mean = tl.sum(total, axis=0) / hidden
    centred = tl.where(here, total - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / hidden
    scale = tl.load(weight + column, mask=here, other=0.0)
    shift = tl.load(bias + column, mask=here, other=0.0)
    result = centred / tl.sqrt(variance + epsilon) * scale + shift
    tl.store(normed + row * hidden + column, result, mask=here)
    tl.store(cast + row * hidden + column, result.to(cast.dtype.element_ty), mask=here)


@triton.jit
def turned(source, cos, sin, positions, index, channels: tl.constexpr, head_dim: tl.constexpr):
    """Load a head and apply RoPE: each channel's part has pairs (i, i + size / 2) and a position."""
    part: tl.constexpr = head_dim // channels
    pairs: tl.constexpr = part // 2
    channel, within = index // part, index % part
    other = channel * part + (within + pairs) % part
    angle = tl.load(positions + channel) * pairs + within % pairs
    mine = tl.load(source + index).to(tl.float32)
    partner = tl.load(source + other).to(tl.float32)
    sine = tl.load(sin + angle)
    return mine * tl.load(cos + angle) + partner * tl.where(within < pairs, -sine, sine)


@triton.jit
def rope_and_append(
    query_key_value, cos, sin, positions, keys, values, slots, at, query, capacity,
    heads: tl.constexpr, channels: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    """Rotate and append one head of one row per program."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = tl.arange(0, head_dim)
    source = query_key_value + (row * heads + head) * 3 * head_dim
    place = positions + row * channels
    query_row = turned(source, cos, sin, place, index, channels, head_dim)
    tl.store(query + (row * heads + head) * head_dim + index, query_row.to(query.dtype.element_ty))
    token = tl.load(at + row)
    if token >= 0:
        to = ((tl.load(slots + row) * heads + head) * capacity + token) * head_dim
        key = turned(source + head_dim, cos, sin, place, index, channels, head_dim)
        tl.store(keys + to + index, key.to(keys.dtype.element_ty))
        tl.store(values + to + index, tl.load(source + 2 * head_dim + index))


@triton.jit
def attend(
    query, keys, values, slots, at, mixed, parts, best, weight, capacity, scale,
    heads: tl.constexpr, head_dim: tl.constexpr, splits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Attend with one head of one row over one split of its tokens per program; online softmax.

    With one split `mixed` is the result.  With several, each stores its best score, the softmax
    denominator relative to it, and the weighted sum of values.
    """
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    index = tl.arange(0, head_dim)
    length = (tl.load(at + row) + 1).to(tl.int32)  # 0 for a row of padding
    per_split = (length + splits * block - 1) // (splits * block) * block
    first = split * per_split
    last = tl.minimum(first + per_split, length)
    one = tl.load(query + (row * heads + head) * head_dim + index).to(tl.float32) * scale
    slot = (tl.load(slots + row) * heads + head) * capacity
    highest = tl.full((1,), -1e30, dtype=tl.float32)  # finite: no infinity is ever subtracted from another
    total = tl.zeros((1,), dtype=tl.float32)
    sums = tl.zeros((head_dim,), dtype=tl.float32)
    for start in range(first, last, block):
        token = start + tl.arange(0, block)
        here = token < last
        where = (slot + token)[:, None] * head_dim + index[None, :]
        key = tl.load(keys + where, mask=here[:, None], other=0.0).to(tl.float32)
        scores = tl.where(here, tl.sum(key * one[None, :], axis=1), -1e30)
        higher = tl.maximum(highest, tl.max(scores, axis=0))
        share = tl.where(here, tl.exp(scores - higher), 0.0)
        value = tl.load(values + where, mask=here[:, None], other=0.0).to(tl.float32)
        fade = tl.exp(highest - higher)
        total = total * fade + tl.sum(share, axis=0)
        sums = sums * fade + tl.sum(share[:, None] * value, axis=0)
        highest = higher
    if splits == 1:
        # An empty slot yields 0.
        result = sums / tl.where(length > 0, total, 1.0)
        tl.store(mixed + (row * heads + head) * head_dim + index, result.to(mixed.dtype.element_ty))
    else:
        mine = (row * heads + head) * splits + split
        tl.store(parts + mine * head_dim + index, sums)
        tl.store(best + mine + tl.arange(0, 1), highest)
        tl.store(weight + mine + tl.arange(0, 1), total)


@triton.jit
def join_splits(
    parts, best, weight, at, mixed,
    heads: tl.constexpr, head_dim: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    """Combine the splits of one head of one row per program; `splits` is a power of two."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index, split = tl.arange(0, head_dim), tl.arange(0, splits)
    mine = (row * heads + head) * splits + split
    scores = tl.load(best + mine)
    share = tl.exp(scores - tl.max(scores, axis=0))
    total = tl.sum(share * tl.load(weight + mine), axis=0)
    sums = tl.sum(tl.load(parts + mine[:, None] * head_dim + index[None, :]) * share[:, None], axis=0)
    result = sums / tl.where(tl.load(at + row) >= 0, total, 1.0)
    tl.store(mixed + (row * heads + head) * head_dim + index, result.to(mixed.dtype.element_ty))

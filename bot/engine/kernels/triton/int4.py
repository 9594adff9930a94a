"""Triton kernels for int4 weights: one activation row, many rows, dequantisation.

A byte holds two columns, the even one in its high nibble.  High and low nibbles are multiplied
separately, with even and odd activations, so no interleaving is needed.  `pairs` is columns / 2.
"""

import triton
import triton.language as tl

from bot.engine.kernels.triton.epilogue import store_sums


@triton.jit
def high(packed):
    return packed >> 4  # int8 shifts keep the sign


@triton.jit
def low(packed):
    # For a nibble n of -8..7 in two's complement, (n & 15) ^ 8 is n + 8.
    return ((packed & 15) ^ 8) - 8


@triton.jit
def one_row(
    hidden, packed, scale, zero, bias, out, rows, pairs, groups, per_split,
    has_zero: tl.constexpr, has_bias: tl.constexpr, gelu: tl.constexpr, is_partial: tl.constexpr,
    by_groups: tl.constexpr, group: tl.constexpr, block_rows: tl.constexpr, block_groups: tl.constexpr,
):  # fmt: skip
    """Multiply one activation row; a program handles `block_rows` weight rows and one split of the groups.

    Without `by_groups` there is one scale per row, and `group` is only the read size.
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(1)
    first = split * per_split
    half: tl.constexpr = group // 2
    last = tl.minimum(first + per_split, tl.cdiv(pairs, half))
    at_row = row.to(tl.int64)[:, None, None] * pairs
    sums = tl.zeros((block_rows, block_groups, half), dtype=tl.float32)
    for start in range(first, last, block_groups):
        piece = start + tl.arange(0, block_groups)
        pair = piece[:, None] * half + tl.arange(0, half)[None, :]
        here = (piece < last)[:, None] & (pair < pairs)
        even = tl.load(hidden + 2 * pair, mask=here, other=0.0).to(tl.float32)
        odd = tl.load(hidden + 2 * pair + 1, mask=here, other=0.0).to(tl.float32)
        both = tl.load(packed + at_row + pair[None, :, :], mask=(row < rows)[:, None, None] & here[None, :, :], other=0)
        products = high(both).to(tl.float32) * even[None, :, :] + low(both).to(tl.float32) * odd[None, :, :]
        if by_groups:
            at_group = row.to(tl.int64)[:, None] * groups + piece[None, :]
            inside = (row < rows)[:, None] & (piece < last)[None, :]
            factor = tl.load(scale + at_group, mask=inside, other=0.0).to(tl.float32)
            sums += products * factor[:, :, None]
            if has_zero:
                offset = tl.load(zero + at_group, mask=inside, other=0.0).to(tl.float32)
                sums += (even + odd)[None, :, :] * offset[:, :, None]
        else:
            sums += products
    total = tl.sum(tl.sum(sums, axis=2), axis=1)
    if not by_groups:
        total *= tl.load(scale + row, mask=row < rows, other=0.0).to(tl.float32)
    token = tl.zeros((1,), dtype=tl.int32)
    store_sums(total[:, None], bias, out, row, token, rows, 1, split, has_bias, gelu, is_partial)


@triton.jit
def many_rows(
    hidden, packed, scale, zero, bias, out, tokens, rows, pairs, groups, per_split,
    has_zero: tl.constexpr, has_bias: tl.constexpr, gelu: tl.constexpr, is_partial: tl.constexpr,
    by_groups: tl.constexpr, group: tl.constexpr, block_rows: tl.constexpr, block_tokens: tl.constexpr,
):  # fmt: skip
    """Multiply many activation rows on tensor cores, one group of columns at a time.

    Scales apply to float32 group sums, so no weight is rounded.
    """
    token = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(2)
    first = split * per_split
    half: tl.constexpr = group // 2
    last = tl.minimum(first + per_split, tl.cdiv(pairs, half))
    at_row = row.to(tl.int64)[:, None] * pairs
    at_token = token.to(tl.int64)[None, :] * (2 * pairs)
    sums = tl.zeros((block_rows, block_tokens), dtype=tl.float32)
    for piece in range(first, last):
        pair = piece * half + tl.arange(0, half)
        here = pair < pairs
        both = tl.load(packed + at_row + pair[None, :], mask=(row < rows)[:, None] & here[None, :], other=0)
        at = hidden + at_token + 2 * pair[:, None]
        inside = (token < tokens)[None, :] & here[:, None]
        even = tl.load(at, mask=inside, other=0.0)
        odd = tl.load(at + 1, mask=inside, other=0.0)
        if by_groups:
            products = tl.dot(high(both).to(even.dtype), even)
            products = tl.dot(low(both).to(odd.dtype), odd, products)
            at_group = row.to(tl.int64) * groups + piece
            sums += products * tl.load(scale + at_group, mask=row < rows, other=0.0).to(tl.float32)[:, None]
            if has_zero:
                offset = tl.load(zero + at_group, mask=row < rows, other=0.0).to(tl.float32)
                sums += offset[:, None] * tl.sum(even.to(tl.float32) + odd.to(tl.float32), axis=0)[None, :]
        else:
            sums = tl.dot(high(both).to(even.dtype), even, sums)
            sums = tl.dot(low(both).to(odd.dtype), odd, sums)
    if not by_groups:
        sums *= tl.load(scale + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    store_sums(sums, bias, out, row, token, rows, tokens, split, has_bias, gelu, is_partial)


@triton.jit
def dequantise(
    packed, scale, zero, out, pairs, groups, group,
    has_zero: tl.constexpr, block_pairs: tl.constexpr,
):  # fmt: skip
    """Store the dequantised rows, each weight rounded once."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * block_pairs + tl.arange(0, block_pairs)
    here = pair < pairs
    both = tl.load(packed + row * pairs + pair, mask=here, other=0)
    at_group = row * groups + 2 * pair // group  # a group has an even number of columns
    factor = tl.load(scale + at_group, mask=here, other=0.0).to(tl.float32)
    even, odd = high(both).to(tl.float32) * factor, low(both).to(tl.float32) * factor
    if has_zero:
        offset = tl.load(zero + at_group, mask=here, other=0.0).to(tl.float32)
        even += offset
        odd += offset
    column = tl.program_id(1) * 2 * block_pairs + tl.arange(0, 2 * block_pairs)
    weight = tl.interleave(even, odd).to(out.dtype.element_ty)
    tl.store(out + row * 2 * pairs + column, weight, mask=column < 2 * pairs)

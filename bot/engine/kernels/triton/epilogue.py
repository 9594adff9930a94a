"""Matmul epilogues: bias, GELU, cast, split-K sum."""

import triton
import triton.language as tl


@triton.jit
def tanh_gelu(x):
    # (1 + tanh(u)) / 2 is sigmoid(2u); exp of a non-positive number cannot overflow.
    twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    falling = tl.exp(-tl.abs(twice))
    return x * tl.where(twice >= 0, 1.0, falling) / (1.0 + falling)


@triton.jit
def store_sums(
    sums, bias, out, row, token, rows, tokens, split,
    has_bias: tl.constexpr, gelu: tl.constexpr, is_partial: tl.constexpr,
):  # fmt: skip
    """Store `[block_rows, block_tokens]` sums to `[tokens, rows]`, or as float32 to the split's partial result."""
    inside = (row < rows)[:, None] & (token < tokens)[None, :]
    at = token.to(tl.int64)[None, :] * rows + row[:, None]
    if is_partial:
        tl.store(out + split.to(tl.int64) * tokens * rows + at, sums, mask=inside)
    else:
        if has_bias:
            sums += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        if gelu:
            sums = tanh_gelu(sums)
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_splits(
    partial, bias, out, rows, size, splits,
    has_bias: tl.constexpr, gelu: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add the partial results of a split-K matmul, in a fixed order: deterministic."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    sums = tl.zeros((block,), dtype=tl.float32)
    for split in range(splits):
        sums += tl.load(partial + split * size + at, mask=at < size, other=0.0)
    if has_bias:
        sums += tl.load(bias + at % rows, mask=at < size, other=0.0).to(tl.float32)
    if gelu:
        sums = tanh_gelu(sums)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=at < size)

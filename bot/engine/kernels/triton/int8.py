"""Triton kernels for int8 weights: one activation row, many rows, dequantisation."""

import triton
import triton.language as tl

from bot.engine.kernels.triton.epilogue import store_sums


@triton.jit
def one_row(
    hidden, values, scale, bias, out, rows, columns, per_split,
    has_bias: tl.constexpr, gelu: tl.constexpr, is_partial: tl.constexpr,
    block_rows: tl.constexpr, block_columns: tl.constexpr,
):  # fmt: skip
    """Multiply `[columns]` activations; a program handles `block_rows` weight rows and one split of the columns."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(1)
    first = split * per_split
    last = tl.minimum(first + per_split, columns)
    at_row = row.to(tl.int64)[:, None] * columns
    sums = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    for start in range(first, last, block_columns):
        column = start + tl.arange(0, block_columns)
        here = column < last
        x = tl.load(hidden + column, mask=here, other=0.0).to(tl.float32)
        weight = tl.load(values + at_row + column[None, :], mask=(row < rows)[:, None] & here[None, :], other=0)
        sums += weight.to(tl.float32) * x[None, :]
    # The row scale is applied once, to the sum.
    total = tl.sum(sums, axis=1) * tl.load(scale + row, mask=row < rows, other=0.0)
    token = tl.zeros((1,), dtype=tl.int32)
    store_sums(total[:, None], bias, out, row, token, rows, 1, split, has_bias, gelu, is_partial)


@triton.jit
def many_rows(
    hidden, values, scale, bias, out, tokens, rows, columns, per_split,
    has_bias: tl.constexpr, gelu: tl.constexpr, is_partial: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, block_columns: tl.constexpr,
):  # fmt: skip
    """Multiply `[tokens, columns]` activations on tensor cores; weights are converted in registers."""
    # Programs that share weights are adjacent, so that all but the first read them from L2.
    token = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    split = tl.program_id(2)
    first = split * per_split
    last = tl.minimum(first + per_split, columns)
    at_row = row.to(tl.int64)[:, None] * columns
    at_token = token.to(tl.int64)[None, :] * columns
    sums = tl.zeros((block_rows, block_tokens), dtype=tl.float32)
    for start in range(first, last, block_columns):
        column = start + tl.arange(0, block_columns)
        here = column < last
        weight = tl.load(values + at_row + column[None, :], mask=(row < rows)[:, None] & here[None, :], other=0)
        x = tl.load(hidden + at_token + column[:, None], mask=(token < tokens)[None, :] & here[:, None], other=0.0)
        # -128..127 are exact in float16 and bfloat16.
        sums = tl.dot(weight.to(x.dtype), x, sums)
    sums *= tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    store_sums(sums, bias, out, row, token, rows, tokens, split, has_bias, gelu, is_partial)


@triton.jit
def dequantise(values, scale, out, columns, block_columns: tl.constexpr):
    """Store the dequantised rows, each weight rounded once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    here = column < columns
    weight = tl.load(values + row * columns + column, mask=here, other=0).to(tl.float32) * tl.load(scale + row)
    tl.store(out + row * columns + column, weight.to(out.dtype.element_ty), mask=here)

"""How many bytes a matrix takes in the form that `Linear` and `TiedEmbedding` keep it in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bot.engine.kernels import cpu
from bot.engine.kernels.native import products as native
from bot.engine.kernels.reference import group_of

# A packed copy beside the table's rows costs memory: it is made for small tables only.
PACKED_TABLE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Shape:
    """A matrix; `bits` 0 is floating.  `is_published` tells a scale a row from groups of our own in int4."""

    rows: int
    columns: int
    bits: int
    is_published: bool = False

    @property
    def groups(self) -> int:
        """Scales of a row."""
        group = group_of(self.columns) if self.bits == 4 and not self.is_published else None
        return 1 if group is None else self.columns // group


def linear_bytes(shape: Shape, dtype: torch.dtype, device: str, *, has_bias: bool) -> int:
    """Count what a `Linear` for activations of `dtype` holds on a kind of device."""
    rows, columns = shape.rows, shape.columns
    bias = rows * dtype.itemsize if has_bias else 0
    if shape.bits == 0:
        return rows * columns * dtype.itemsize + bias
    values = rows * columns * shape.bits // 8
    if device == "cpu" and _is_native(shape, dtype):
        # A float32 bias always, and as many bytes of scales, or of scales and zeros of groups.
        return values + rows * (4 + 4 * shape.groups)
    if device == "cpu" and _is_packed(shape, dtype):
        # A float32 bias always; ones where the row's scale is applied to the sums.
        if shape.bits == 8:
            return values + rows * (4 + 4 + 2)
        groups = shape.groups
        if not _has_zero(shape):
            groups = columns // next(group for group in (256, 128, 64, 32) if columns % group == 0)
        return values + rows * (4 + 4 * groups + (0 if _has_zero(shape) else 4))
    if shape.bits == 8:
        return values + rows * (4 if device == "cuda" or not shape.is_published else 2) + bias
    return values + rows * shape.groups * (4 if _has_zero(shape) else 2) + bias


def table_bytes(shape: Shape, dtype: torch.dtype, device: str) -> int:
    """Count what a `TiedEmbedding` holds: rows to look up, and their product."""
    held = linear_bytes(shape, dtype, device, has_bias=False)
    if device != "cpu" or shape.bits == 8:
        return held  # both read the same
    if shape.bits == 4 and _is_native(shape, dtype):
        return held + shape.rows * shape.groups * (4 if _has_zero(shape) else 2)  # scales and zeros of the rows
    if shape.bits == 4:
        return held + (linear_bytes(shape, dtype, "", has_bias=False) if _is_packed(shape, dtype) else 0)
    return 2 * held if held <= PACKED_TABLE_BYTES and cpu.is_reordered(dtype) else held


def _is_native(shape: Shape, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and native.suits(shape.rows, shape.columns, shape.bits, shape.groups)


def _is_packed(shape: Shape, dtype: torch.dtype) -> bool:
    multiple = 16 if shape.bits == 8 else 32
    return dtype == torch.bfloat16 and shape.rows % 16 == 0 and shape.columns % multiple == 0


def _has_zero(shape: Shape) -> bool:
    return not shape.is_published and group_of(shape.columns) is not None

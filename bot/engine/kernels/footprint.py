"""Memory footprint of a matrix as `Linear` and `TiedEmbedding` store it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bot.engine.kernels.cpu import is_reordered
from bot.engine.kernels.native import matmul as native
from bot.engine.kernels.reference import Quantised, group_of

# Only small embedding tables get a packed copy beside their rows, where the native matmul does not share them.
PACKED_TABLE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """Size of a matrix; `bits` 0 is float.  A published int4 matrix has one scale per row."""

    rows: int
    columns: int
    bits: int
    is_published: bool = False

    @property
    def groups(self) -> int:
        """Scales per row."""
        group = group_of(self.columns) if self.bits == 4 and not self.is_published else None
        return 1 if group is None else self.columns // group


def linear_bytes(shape: MatrixShape, dtype: torch.dtype, device: str, *, has_bias: bool) -> int:
    """Return the bytes of a `Linear` for activations of `dtype` on a device type."""
    rows, columns = shape.rows, shape.columns
    bias = rows * dtype.itemsize if has_bias else 0
    if shape.bits == 0:
        bias = rows * 8 if device == "cpu" and _is_native(shape, dtype) else bias  # float32, and a scale of 1
        return rows * columns * dtype.itemsize + bias
    values = rows * columns * shape.bits // 8
    if device == "cpu" and _is_native(shape, dtype):
        # Always a float32 bias; per group 4 bytes: a float32 scale, or a bfloat16 scale and zero.
        return values + rows * (4 + 4 * shape.groups)
    if device == "cpu" and _is_packed(shape, dtype):
        # Always a float32 bias; ones where the row scale is applied to the sums.
        if shape.bits == 8:
            return values + rows * (4 + 4 + 2)
        groups = shape.groups
        if not _has_zero(shape):
            groups = columns // next(group for group in (256, 128, 64, 32) if columns % group == 0)
        return values + rows * (4 + 4 * groups + (0 if _has_zero(shape) else 4))
    if shape.bits == 8:
        return values + rows * (4 if device == "cuda" or not shape.is_published else 2) + bias
    return values + rows * shape.groups * (4 if _has_zero(shape) else 2) + bias


def table_bytes(shape: MatrixShape, dtype: torch.dtype, device: str) -> int:
    """Return the bytes of a `TiedEmbedding`: rows to look up, and a packed matmul."""
    held = linear_bytes(shape, dtype, device, has_bias=False)
    if device != "cpu" or shape.bits == 8 or (shape.bits == 0 and _is_native(shape, dtype)):
        return held  # lookup and matmul share the weights
    if shape.bits == 4 and _is_native(shape, dtype):
        return held + shape.rows * shape.groups * (4 if _has_zero(shape) else 2)  # scales and zeros for lookups
    if shape.bits == 4:
        return held + (linear_bytes(shape, dtype, "", has_bias=False) if _is_packed(shape, dtype) else 0)
    return 2 * held if held <= PACKED_TABLE_BYTES and is_reordered(dtype) else held


def is_packed_table(weight: Tensor | Quantised, dtype: torch.dtype) -> bool:
    """Return whether a `TiedEmbedding` has a packed matmul, of small tables a copy of their rows."""
    if not isinstance(weight, Tensor) or weight.nbytes <= PACKED_TABLE_BYTES:
        return True
    rows, columns = weight.shape
    return weight.device.type == "cpu" and _is_native(MatrixShape(rows, columns, 0), dtype)


def _is_native(shape: MatrixShape, dtype: torch.dtype) -> bool:
    bits = shape.bits or 16
    return dtype == torch.bfloat16 and native.supports(shape.rows, shape.columns, bits, shape.groups)


def _is_packed(shape: MatrixShape, dtype: torch.dtype) -> bool:
    multiple = 16 if shape.bits == 8 else 32
    return dtype == torch.bfloat16 and shape.rows % 16 == 0 and shape.columns % multiple == 0


def _has_zero(shape: MatrixShape) -> bool:
    return not shape.is_published and group_of(shape.columns) is not None

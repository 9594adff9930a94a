"""CPU matmuls: native C where it compiles, else torch's packed kernels."""

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.kernels.native import matmul as native
from bot.engine.kernels.reference import Int4, Int8, Quantised, unpack_int4

# With quantised weights, float32 or float16 activations are up to 50 times slower.
_QUANTISED_DTYPE = torch.bfloat16
# With other sizes torch's kernels read out of bounds.
_ROW_MULTIPLE = 16
_INT8_COLUMN_MULTIPLE = 16
_GROUPS = (32, 64, 128, 256)
_ROWS_AT_ONCE = 1024  # a multiple of every block of the packed layout (16, 32, 64)
# From this many activation rows on, converting int8 weights to bfloat16 per call is faster.
_CONVERT_FROM = 24


class PackedFloat:
    """Float weights, reordered once for oneDNN.

    `functional.linear` reorders them per call or not at all: 12288 x 4096 weights on one
    core and 1, 8, 64 activations take 2.4, 3.7, 15 ms in bfloat16 (unpacked 5.7, 6.0, 17)
    and 5, 16, 52 ms in float32 (unpacked 13, 47, 184).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        sums: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self._weight, self._bias, "none", [], "")
        return sums.view(*hidden.shape[:-1], -1)


class PackedInt8:
    """`Int8` weights for bfloat16 activations; row scales apply to the sums, unrounded."""

    def __init__(self, weight: Int8, bias: Tensor | None) -> None:
        self._values = weight.values.contiguous()
        self._ones = torch.ones(weight.shape[0], dtype=_QUANTISED_DTYPE)
        self._scale = weight.scale.float().flatten()
        self._bias = torch.zeros(weight.shape[0]) if bias is None else bias.float()

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if flat.shape[0] < _CONVERT_FROM:
            sums = torch._weight_int8pack_mm(flat, self._values, self._ones)
        else:
            sums = functional.linear(flat, self._values.to(_QUANTISED_DTYPE))
        return torch.addcmul(self._bias, sums.float(), self._scale).to(_QUANTISED_DTYPE).view(*hidden.shape[:-1], -1)


class PackedInt4:
    """`Int4` weights for bfloat16 activations; a scale per row is handled as in `PackedInt8`."""

    def __init__(self, weight: Int4, bias: Tensor | None) -> None:
        rows, columns = weight.shape
        grouped = weight.has_groups
        self._group = packed_group(weight)
        groups = columns // self._group
        scale = weight.scale if grouped else torch.ones(rows, groups)
        zero = torch.zeros_like(scale) if weight.zero is None else weight.zero
        self._scale_and_zero = torch.stack([scale.t(), zero.t()], dim=-1).to(_QUANTISED_DTYPE).contiguous()
        self._row_scale = None if grouped else weight.scale.float().flatten()
        self._bias = torch.zeros(rows) if bias is None else bias.float()
        # Packing needs an int32 per weight: a few rows at a time limit that memory.
        self._packed = torch.empty(rows, columns // 2, dtype=torch.uint8)
        for first in range(0, rows, _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            values = unpack_int4(weight.packed[part]).to(torch.int32) + 8
            self._packed[part] = torch._convert_weight_to_int4pack_for_cpu(values, 1)

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        sums = torch._weight_int4pack_mm_for_cpu(flat, self._packed, self._group, self._scale_and_zero)
        scale = self._row_scale
        out = sums + self._bias if scale is None else torch.addcmul(self._bias, sums.float(), scale)
        return out.to(_QUANTISED_DTYPE).view(*hidden.shape[:-1], -1)


def packed_group(weight: Int4) -> int:
    """Return the group size to pass to torch's kernel; 0 if none fits."""
    if weight.has_groups:
        return weight.group if weight.group in _GROUPS else 0
    return next((group for group in reversed(_GROUPS) if weight.shape[1] % group == 0), 0)


def pack(
    weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype
) -> PackedFloat | PackedInt8 | PackedInt4 | native.NativeMatmul | None:
    """Pack a matrix for activations of `dtype`; return None if no fast kernel supports it."""
    if dtype == _QUANTISED_DTYPE and (matmul := native.pack(weight, bias)) is not None:
        return matmul
    if isinstance(weight, Tensor):
        return PackedFloat(weight, bias) if is_reordered(dtype) else None
    if dtype != _QUANTISED_DTYPE or weight.shape[0] % _ROW_MULTIPLE:
        return None
    if isinstance(weight, Int8):
        return PackedInt8(weight, bias) if weight.shape[1] % _INT8_COLUMN_MULTIPLE == 0 else None
    return PackedInt4(weight, bias) if packed_group(weight) else None


def is_reordered(dtype: torch.dtype) -> bool:
    """Return whether oneDNN reorders float weights of this dtype on this CPU."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))

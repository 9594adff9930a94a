"""int8 and int4 quantisation in eager torch: the reference for every faster matmul."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Fractions of a group's range, below and above zero, that are tried as its grid, and least-squares
# refinements of the best.  They leave 0.334 of the squared error of whole-row rounding on normal
# weights (the full range alone 0.40) at 20 ns per weight; 64 spans leave 0.328 at five times that.
_SPANS = ((1.0, 1.0), (0.96, 0.88), (0.88, 0.88), (0.88, 0.96), (0.8, 0.8))
_REFINEMENTS = 4
# Chunks fit the CPU cache.  Smaller chunks contend for the GIL; larger ones make malloc map and
# unmap each buffer.  On two cores a weight takes 16 ns; with 2**15 25 to 60, with 2**18 9 to 44.
_WEIGHTS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24, "mps": 1 << 24}


@dataclass(frozen=True, slots=True)
class Int8:
    """A matrix in 8 bits, `values * scale`.

    `values` is int8 `[rows, columns]`, `scale` a floating `[rows, 1]`.
    """

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def to(self, device: torch.device) -> "Int8":
        return Int8(self.values.to(device), self.scale.to(device))


@dataclass(frozen=True, slots=True)
class Int4:
    """A matrix in 4 bits, `values * scale + zero`, with -8 <= values <= 7.

    `packed` is int8 `[rows, columns / 2]`: the even column in the high nibble, the next
    odd one in the low nibble.  `scale` is a floating `[rows, groups]`, `zero` the same
    shape, or None for 0.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def has_groups(self) -> bool:
        """True with several scales per row, or zeros."""
        return self.scale.shape[1] > 1 or self.zero is not None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def to(self, device: torch.device) -> "Int4":
        zero = None if self.zero is None else self.zero.to(device)
        return Int4(self.packed.to(device), self.scale.to(device), zero)


Quantised = Int8 | Int4


def pack_int4(values: Tensor) -> Tensor:
    """Pack `[rows, columns]` values of -8..7 into int8 `[rows, columns / 2]`.

    >>> pack_int4(torch.tensor([[1, -1, -8, 7]], dtype=torch.int8)).tolist()
    [[31, -121]]
    """
    return (values[:, 0::2] << 4) | (values[:, 1::2] & 15)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack what `pack_int4` returns.

    >>> unpack_int4(torch.tensor([[31, -121]], dtype=torch.int8)).tolist()
    [[1, -1, -8, 7]]
    """
    low = packed << 4 >> 4  # int8 shifts keep the sign
    return torch.stack([packed >> 4, low], dim=-1).flatten(-2)


def quantise_rows(weight: Tensor, bits: int, scale_dtype: torch.dtype = torch.float16) -> Quantised:
    """Round each row to the nearest of 2**bits - 1 steps: the published scheme.

    `scale_dtype` float16 reproduces the published checkpoints, float32 the published
    code on a CPU.
    """
    most = 2 ** (bits - 1) - 1
    scale = (weight.to(scale_dtype).abs().amax(dim=1, keepdim=True) / most).to(scale_dtype)
    # A row of zeros has scale 0: avoid 0 / 0.
    values = (weight.to(scale_dtype) / scale.where(scale > 0, 1)).round().clamp(-most, most).to(torch.int8)
    return Int8(values, scale) if bits == 8 else Int4(pack_int4(values), scale)


def quantise_int8(weight: Tensor) -> Int8:
    """Quantise to int8 like `quantise_rows` in float32, in chunks to limit memory."""
    rows, columns = weight.shape
    values = weight.new_empty(rows, columns, dtype=torch.int8)
    scale = weight.new_empty(rows, 1, dtype=torch.float32)
    rows_at_once = max(1, _WEIGHTS_AT_ONCE[weight.device.type] // columns)
    for first in range(0, rows, rows_at_once):
        part = slice(first, first + rows_at_once)
        rounded = quantise_rows(weight[part], 8, torch.float32)
        assert isinstance(rounded, Int8)
        values[part], scale[part] = rounded.values, rounded.scale
    return Int8(values, scale)


def group_of(columns: int) -> int | None:
    """Return the number of columns that share a scale; None if 32 does not divide them.

    >>> group_of(4096), group_of(224), group_of(100)
    (128, 32, None)
    """
    return next((group for group in (128, 64, 32) if columns % group == 0), None)


def quantise_int4(weight: Tensor) -> Int4:
    """Quantise to int4 by groups, minimising each group's squared error.

    Scales and zeros are bfloat16, so that every kernel uses the same values.  Falls back
    to the published scheme if 32 does not divide the columns.
    """
    group = group_of(weight.shape[1])
    if group is None:
        whole_rows = quantise_rows(weight, 4)
        assert isinstance(whole_rows, Int4)
        return whole_rows
    rows, columns = weight.shape
    packed = weight.new_empty(rows, columns // 2, dtype=torch.int8)
    scale = weight.new_empty(rows, columns // group, dtype=torch.bfloat16)
    zero = torch.empty_like(scale)
    rows_at_once = max(1, _WEIGHTS_AT_ONCE[weight.device.type] // columns)

    def fit(first: int) -> None:
        part = slice(first, first + rows_at_once)
        # Inference mode is per thread, and the caller may be in it.
        with torch.inference_mode():
            values, part_scale, part_zero = _fit_groups(weight[part].float().view(-1, columns // group, group))
            packed[part] = pack_int4(values.flatten(1))
            scale[part], zero[part] = part_scale.squeeze(-1), part_zero.squeeze(-1)

    # One torch thread per worker: torch's own threads would synchronise after every op.
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        list(threads.map(fit, range(0, rows, rows_at_once)))  # raises what a worker raised
    return Int4(packed, scale, zero)


def _fit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise float32 `[rows, groups, columns]`; return values, scales and zeros."""
    low, high = weight.aminmax(dim=-1, keepdim=True)
    scale, zero = _grid(low, high)
    error = _squared_error(weight, scale, zero)

    def take_if_better(other: tuple[Tensor, Tensor]) -> None:
        nonlocal scale, zero, error
        other_error = _squared_error(weight, *other)
        better = other_error < error
        error = other_error.where(better, error)
        scale, zero = other[0].where(better, scale), other[1].where(better, zero)

    for below, above in _SPANS[1:]:
        take_if_better(_grid(low * below, high * above))
    for _ in range(_REFINEMENTS):
        take_if_better(_least_squares(weight, scale, zero))
    return _nearest(weight, scale, zero).to(torch.int8), scale, zero


def _nearest(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    # A group of equal weights has scale 0: avoid 0 / 0.
    return ((weight - zero) / scale.where(scale != 0, 1)).round_().clamp_(-8, 7)


def _squared_error(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    error = torch.addcmul(zero, _nearest(weight, scale, zero), scale).sub_(weight)
    return error.square_().sum(dim=-1, keepdim=True)


def _least_squares(weight: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and zero with the least squared error for fixed quantised values."""
    values = _nearest(weight, scale, zero)
    mean = values.mean(dim=-1, keepdim=True)
    centred = values - mean
    spread = centred.square().sum(dim=-1, keepdim=True)
    slope = (centred * weight).sum(dim=-1, keepdim=True) / spread.where(spread > 0, 1)
    scale = _bfloat16(slope.where(spread > 0, scale))
    return scale, _bfloat16(weight.mean(dim=-1, keepdim=True) - mean * scale)


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bfloat16 scale and zero that map -8 to `low` and 7 to `high`."""
    scale = _bfloat16((high - low) / 15)
    return scale, _bfloat16(low + 8 * scale)


def _bfloat16(numbers: Tensor) -> Tensor:
    return numbers.bfloat16().float()


def dequantise(weight: Quantised, dtype: torch.dtype = torch.float32, rows: Tensor | None = None) -> Tensor:
    """Return the matrix in `dtype`, or one row for each index in `rows`.

    float16 reproduces the published code on CUDA.
    """

    def picked(tensor: Tensor) -> Tensor:
        return tensor if rows is None else tensor[rows]

    scale = picked(weight.scale).to(dtype)
    if isinstance(weight, Int8):
        return picked(weight.values).to(dtype) * scale
    groups = unpack_int4(picked(weight.packed)).to(dtype).view(*scale.shape, -1) * scale[..., None]
    if weight.zero is not None:
        groups = groups + picked(weight.zero).to(dtype)[..., None]
    return groups.flatten(-2)


def linear(hidden: Tensor, weight: Quantised, bias: Tensor | None = None) -> Tensor:
    """Multiply `[..., columns]` by the transposed matrix, in the dtype of `hidden`."""
    return functional.linear(hidden, dequantise(weight, hidden.dtype), bias)

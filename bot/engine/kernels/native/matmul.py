"""int8, int4 and bfloat16 matmuls on a CPU, through matmul.h."""

import ctypes
import threading
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.kernels.native.build import has_tiles, library, loaded_library
from bot.engine.kernels.reference import Int4, Int8, Quantised

# Beyond this many activation rows, weights are converted to bfloat16 per call for oneDNN, where that has a fast product.
# For 4096 x 4096 int8 weights and 24, 64, 256 rows the two ways take 2.0 and 14, 5.4 and 12, 25 and 19 ms on two cores.
MOST_ROWS = 64
# Weights converted at once: more leave the cache before they are used, and from 32 MiB on the allocator would map and
# unmap them for each product.
_CONVERTED = 1 << 22
_LANES = 16
# Activation rows up to which bfloat16 weights are multiplied here on CPUs without tiles.
_MOST_BFLOAT16_ROWS = 8


class MatrixStruct(ctypes.Structure):
    """`struct matrix` of matmul.h."""

    _fields_ = (
        ("bits", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("groups", c_int64),
        ("values", c_void_p),
        ("scale", c_void_p),
        ("grid", c_void_p),
        ("bias", c_void_p),
    )


class NativeMatmul:
    """A quantised or bfloat16 matrix for bfloat16 or float32 activations; returns their dtype.

    Up to `most_rows` rows, and of quantised weights on CPUs without a product of bfloat16 always, weights are exact and
    sums float32 or exact; some CPUs round activations to 16 bits of the row's largest.
    """

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None) -> None:
        self.rows, self.columns = weight.shape
        self._bias = torch.zeros(self.rows) if bias is None else bias.float()
        self._grid = self._row_scale = None
        groups = 0
        if isinstance(weight, Tensor):
            self._row_scale = torch.ones(self.rows)
        elif isinstance(weight, Int8) or not weight.has_groups:
            self._row_scale = weight.scale.float().flatten()
        else:
            groups = weight.scale.shape[1]
            zero = torch.zeros_like(weight.scale) if weight.zero is None else weight.zero
            self._grid = torch.stack([weight.scale, zero], dim=-1).bfloat16()
        self._bits, values = _bits_and_values(weight)
        self._values = values.contiguous()
        self.most_rows = MOST_ROWS if self._bits < 16 or has_tiles() else _MOST_BFLOAT16_ROWS
        self.matrix = MatrixStruct(
            bits=self._bits,
            rows=self.rows,
            columns=self.columns,
            groups=groups,
            values=self._values.data_ptr(),
            scale=None if self._row_scale is None else self._row_scale.data_ptr(),
            grid=None if self._grid is None else self._grid.data_ptr(),
            bias=self._bias.data_ptr(),
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, self.columns)
        if flat.shape[0] <= self.most_rows:
            sums = self._few(flat.float()).to(hidden.dtype)
        elif self._bits == 16:
            sums = functional.linear(flat.bfloat16(), self._values, self._bias.bfloat16()).to(hidden.dtype)
        else:
            sums = torch.empty(flat.shape[0], self.rows, dtype=hidden.dtype)
            if multiplies_bfloat16() and not has_tiles():
                self._convert(flat.bfloat16(), sums)
            else:
                for first in range(0, flat.shape[0], MOST_ROWS):
                    part = slice(first, first + MOST_ROWS)
                    sums[part] = self._few(flat[part].float())
        return sums.view(*hidden.shape[:-1], -1)

    def _few(self, hidden: Tensor) -> Tensor:
        rows, threads = hidden.shape[0], torch.get_num_threads()
        hidden = hidden.contiguous()
        sums = torch.empty(rows, self.rows)
        # With the sums of groups, and whole tiles of rows.
        scratch = torch.empty(threads, -(-rows // _LANES) * _LANES, self.columns + self.columns // 4)
        loaded_library().multiply(
            ctypes.byref(self.matrix),
            c_void_p(hidden.data_ptr()),
            c_int64(rows),
            c_void_p(sums.data_ptr()),
            c_void_p(scratch.data_ptr()),
            c_int64(scratch[0].numel()),
            c_int64(threads),
        )
        return sums

    def _convert(self, hidden: Tensor, sums: Tensor) -> None:
        """Multiply by weights in bfloat16, some rows of them at a time."""
        at_once = max(1, _CONVERTED // self.columns)
        buffer = _scratch.of(min(at_once, self.rows) * self.columns)
        for first in range(0, self.rows, at_once):
            part = slice(first, min(first + at_once, self.rows))
            weight = buffer[: (part.stop - first) * self.columns].view(-1, self.columns)
            loaded_library().convert(
                ctypes.byref(self.matrix),
                c_int64(first),
                c_int64(part.stop),
                c_void_p(weight.data_ptr()),
                c_int64(torch.get_num_threads()),
            )
            product = functional.linear(hidden, weight).float()
            if self._row_scale is None:
                sums[:, part] = product.add_(self._bias[part])
            else:
                sums[:, part] = torch.addcmul(self._bias[part], product, self._row_scale[part])


class _Scratch(threading.local):
    """Converted weights of the product that this thread computes."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.bfloat16)

    def of(self, size: int) -> Tensor:
        """Return a buffer of at least `size` numbers, valid until the next call."""
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.bfloat16)
        return self._buffer


_scratch = _Scratch()


@cache
def multiplies_bfloat16() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices on this CPU; elsewhere torch's product is slow."""
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def supports(rows: int, columns: int, bits: int, groups: int) -> bool:
    """Return whether the native matmul supports a matrix with `groups` scales per row."""
    return rows % _LANES == 0 and columns // groups % (_LANES * max(1, 8 // bits)) == 0 and library() is not None


def pack(weight: Tensor | Quantised, bias: Tensor | None) -> NativeMatmul | None:
    """Pack a matrix for bfloat16 activations; return None if it is not supported."""
    bits, _ = _bits_and_values(weight)
    groups = weight.scale.shape[1] if isinstance(weight, Int4) else 1
    rows, columns = weight.shape
    return NativeMatmul(weight, bias) if supports(rows, columns, bits, groups) else None


def _bits_and_values(weight: Tensor | Quantised) -> tuple[int, Tensor]:
    """Return the bits of a weight, 16 for bfloat16, and the tensor of the weights."""
    match weight:
        case Int8():
            return 8, weight.values
        case Int4():
            return 4, weight.packed
    return 16, weight

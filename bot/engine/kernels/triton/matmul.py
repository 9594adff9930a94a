"""int8 and int4 matmuls for float16 or bfloat16 activations, through Triton."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.kernels.reference import Int4, Int8, Quantised
from bot.engine.kernels.triton import epilogue, int4, int8

# None of these sizes is measured yet.  Minimum number of programs, two per multiprocessor of the
# largest GPUs; below it the columns are split (split-K).
_PROGRAMS = 264
_MOST_SPLITS = 8
# From this many activation rows on, weights are dequantised per call: that moves 5 bytes per weight, which at
# 4.8 TB/s takes as long as 360 rows on tensor cores at 700 TFLOP/s.
DEQUANTISE_FROM = 384
# Chunk of weights to dequantise: the whole embedding table in float16 would need a gigabyte.
_WEIGHTS_AT_ONCE = 1 << 26

_DTYPES = (torch.float16, torch.bfloat16)
_GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Program grid of a matmul."""

    block_rows: int
    block_tokens: int
    splits: int
    per_split: int

    @classmethod
    def of(cls, tokens: int, rows: int, pieces: int, pieces_at_once: int) -> "_Tiling":
        """Choose the grid; columns are counted in `pieces`, of which a program reads `pieces_at_once`."""
        block_rows = 8 if tokens == 1 else 32 if tokens <= 32 else 64
        block_tokens = 1 if tokens == 1 else 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        programs = -(-rows // block_rows) * -(-tokens // block_tokens)
        rounds = -(-pieces // pieces_at_once)
        splits = max(1, min(_MOST_SPLITS, -(-_PROGRAMS // programs), rounds // 2))
        per_split = -(-rounds // splits) * pieces_at_once
        return cls(block_rows, block_tokens, -(-pieces // per_split), per_split)


class TritonMatmul(ABC):
    """A quantised matrix for activations of one dtype on its device.

    Below `DEQUANTISE_FROM` rows weights are exact: the only errors are those of float32 sums
    and one rounding to the activations' dtype.
    """

    def __init__(self, rows: int, columns: int, bias: Tensor | None) -> None:
        self.rows, self.columns = rows, columns
        self._bias = None if bias is None else bias.contiguous()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `[..., columns]` to `[..., rows]`."""
        return self._multiply(hidden, gelu=False)

    def with_gelu(self, hidden: Tensor) -> Tensor:
        """Multiply, then apply tanh GELU."""
        return self._multiply(hidden, gelu=True)

    def _multiply(self, hidden: Tensor, gelu: bool) -> Tensor:
        flat = hidden.reshape(-1, self.columns).contiguous()
        with torch.cuda.device_of(flat):  # Triton launches on the current device, not its arguments' device
            out = (self._dequantise_first if len(flat) >= DEQUANTISE_FROM else self._fused)(flat, gelu)
        return out.view(*hidden.shape[:-1], self.rows)

    def _fused(self, hidden: Tensor, gelu: bool) -> Tensor:
        tokens = len(hidden)
        out = hidden.new_empty(tokens, self.rows)
        if not tokens:
            return out
        tiling = self._tiling(tokens)
        if tiling.splits == 1:
            self._launch(hidden, out, tiling, gelu)
            return out
        partial = hidden.new_empty(tiling.splits, tokens, self.rows, dtype=torch.float32)
        self._launch(hidden, partial, tiling, gelu=False)
        size = tokens * self.rows
        epilogue.add_splits[(-(-size // 1024),)](
            partial, self._bias, out, self.rows, size, tiling.splits,
            has_bias=self._bias is not None, gelu=gelu, block=1024,
        )  # fmt: skip
        return out

    def _dequantise_first(self, hidden: Tensor, gelu: bool) -> Tensor:
        at_once = max(1, _WEIGHTS_AT_ONCE // self.columns)
        parts = []
        for first in range(0, self.rows, at_once):
            rows = slice(first, min(first + at_once, self.rows))
            bias = None if self._bias is None else self._bias[rows]
            parts.append(functional.linear(hidden, self.dequantised(rows, hidden.dtype), bias))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return functional.gelu(out, approximate="tanh") if gelu else out

    @abstractmethod
    def dequantised(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return a range of rows, each weight rounded once."""

    @abstractmethod
    def _tiling(self, tokens: int) -> _Tiling: ...

    @abstractmethod
    def _launch(self, hidden: Tensor, out: Tensor, tiling: _Tiling, gelu: bool) -> None: ...


class Int8Matmul(TritonMatmul):
    def __init__(self, weight: Int8, bias: Tensor | None) -> None:
        super().__init__(*weight.shape, bias)
        self._values = weight.values.contiguous()
        self._scale = weight.scale.float().flatten()

    def _tiling(self, tokens: int) -> _Tiling:
        return _Tiling.of(tokens, self.rows, self.columns, self._block(tokens))

    @staticmethod
    def _block(tokens: int) -> int:
        return 512 if tokens == 1 else 128  # columns

    def _launch(self, hidden: Tensor, out: Tensor, tiling: _Tiling, gelu: bool) -> None:
        tokens, is_partial = len(hidden), tiling.splits > 1
        grid_rows = -(-self.rows // tiling.block_rows)
        has_bias = self._bias is not None and not is_partial
        weight = (self._values, self._scale, self._bias)
        if tokens == 1:
            int8.one_row[(grid_rows, tiling.splits)](
                hidden, *weight, out, self.rows, self.columns, tiling.per_split,
                has_bias=has_bias, gelu=gelu, is_partial=is_partial,
                block_rows=tiling.block_rows, block_columns=self._block(tokens),
            )  # fmt: skip
            return
        int8.many_rows[(-(-tokens // tiling.block_tokens), grid_rows, tiling.splits)](
            hidden, *weight, out, tokens, self.rows, self.columns, tiling.per_split,
            has_bias=has_bias, gelu=gelu, is_partial=is_partial,
            block_rows=tiling.block_rows, block_tokens=tiling.block_tokens, block_columns=self._block(tokens),
        )  # fmt: skip

    def dequantised(self, rows: slice, dtype: torch.dtype) -> Tensor:
        values = self._values[rows]
        out = values.new_empty(values.shape, dtype=dtype)
        int8.dequantise[(len(values), -(-self.columns // 1024))](
            values, self._scale[rows], out, self.columns, block_columns=1024
        )
        return out


class Int4Matmul(TritonMatmul):
    def __init__(self, weight: Int4, bias: Tensor | None) -> None:
        super().__init__(*weight.shape, bias)
        self._packed = weight.packed.contiguous()
        self._by_groups = weight.has_groups
        self._group = weight.group if self._by_groups else 128
        self._scale = weight.scale.contiguous()
        self._zero = None if weight.zero is None else weight.zero.contiguous()

    def _tiling(self, tokens: int) -> _Tiling:
        return _Tiling.of(tokens, self.rows, -(-self.columns // self._group), self._block(tokens))

    def _block(self, tokens: int) -> int:
        return 1024 // self._group if tokens == 1 else 1  # groups

    def _launch(self, hidden: Tensor, out: Tensor, tiling: _Tiling, gelu: bool) -> None:
        tokens, is_partial = len(hidden), tiling.splits > 1
        grid_rows = -(-self.rows // tiling.block_rows)
        weight = (self._packed, self._scale, self._zero, self._bias)
        sizes = (self.rows, self.columns // 2, self._scale.shape[1], tiling.per_split)
        kind = {
            "has_zero": self._zero is not None,
            "has_bias": self._bias is not None and not is_partial,
            "gelu": gelu,
            "is_partial": is_partial,
            "by_groups": self._by_groups,
            "group": self._group,
            "block_rows": tiling.block_rows,
        }
        if tokens == 1:
            int4.one_row[(grid_rows, tiling.splits)](
                hidden, *weight, out, *sizes, **kind, block_groups=self._block(tokens)
            )
            return
        int4.many_rows[(-(-tokens // tiling.block_tokens), grid_rows, tiling.splits)](
            hidden, *weight, out, tokens, *sizes, **kind, block_tokens=tiling.block_tokens
        )

    def dequantised(self, rows: slice, dtype: torch.dtype) -> Tensor:
        packed = self._packed[rows]
        out = packed.new_empty(len(packed), self.columns, dtype=dtype)
        groups = self._scale.shape[1]
        int4.dequantise[(len(packed), -(-self.columns // 1024))](
            packed, self._scale[rows], None if self._zero is None else self._zero[rows], out,
            self.columns // 2, groups, self.columns // groups,
            has_zero=self._zero is not None, block_pairs=512,
        )  # fmt: skip
        return out


def pack(weight: Quantised, bias: Tensor | None, dtype: torch.dtype) -> TritonMatmul | None:
    """Pack a matrix for activations of `dtype`; return None if no kernel supports it."""
    if dtype not in _DTYPES:
        return None
    if isinstance(weight, Int8):
        return Int8Matmul(weight, bias)
    return Int4Matmul(weight, bias) if not weight.has_groups or weight.group in _GROUPS else None

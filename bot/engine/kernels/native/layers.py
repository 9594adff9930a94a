"""All layers of a decode step in one call of layers.c."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bot.engine.kernels.native.build import loaded_library
from bot.engine.kernels.native.matmul import MatrixStruct, NativeMatmul

_LANES = 16


class _NormStruct(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _LayerStruct(ctypes.Structure):
    _fields_ = (
        ("input", _NormStruct),
        ("post", _NormStruct),
        ("query_key_value", MatrixStruct),
        ("dense", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class _NetworkStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "hidden", "inner", "heads", "head_dim", "channels", "capacity")),
        ("threads", c_int64),
        ("epsilon", c_float),
        ("alpha", c_float),
        ("layer", POINTER(_LayerStruct)),
        ("last", _NormStruct),
        *((name, c_void_p) for name in ("cosine", "sine", "state", "normed", "wide", "mixed", "scratch")),
        ("scratch_size", c_int64),
    )


class _TokensStruct(ctypes.Structure):
    _fields_ = (("rows", c_int64), ("slots", c_void_p), ("at", c_void_p), ("positions", c_void_p))


class Layer(NamedTuple):
    """Norms and matmuls of one layer."""

    input_norm: nn.LayerNorm
    query_key_value: NativeMatmul
    dense: NativeMatmul
    post_norm: nn.LayerNorm
    up: NativeMatmul
    down: NativeMatmul

    @property
    def matmuls(self) -> tuple[NativeMatmul, ...]:
        return self.query_key_value, self.dense, self.up, self.down


class Layers:
    """A network's layers over a cache, for up to `most` rows of one token; the matmuls support as many.

    `keys` and `values` are bfloat16 `[layers, slots, heads, capacity, head_dim]`, `angles` the cosine and sine
    per position, float32 `[positions, head_dim / channels / 2]`, and `alpha` scales the residuals.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        last: nn.LayerNorm,
        keys: Tensor,
        values: Tensor,
        angles: tuple[Tensor, Tensor],
        *,
        channels: int,
        alpha: float,
        most: int,
    ) -> None:
        heads, capacity, head_dim = keys.shape[2:]
        hidden, inner = heads * head_dim, layers[0].up.rows
        threads = torch.get_num_threads()
        self._owners = (list(layers), last, keys, values, angles)  # the struct points into their memory
        self._state, self._normed, self._mixed = torch.empty(3, most, hidden).unbind()
        self._wide = torch.empty(most, max(3 * hidden, inner))
        # Per thread: reordered input rows and the sums of their groups, or attention weights.
        self._scratch = torch.empty(
            threads, max(-(-most // _LANES) * _LANES * max(hidden, inner) * 5 // 4, capacity + _LANES)
        )
        self._network = _NetworkStruct(
            layers=len(layers),
            hidden=hidden,
            inner=inner,
            heads=heads,
            head_dim=head_dim,
            channels=channels,
            capacity=capacity,
            threads=threads,
            epsilon=last.eps,
            alpha=alpha,
            layer=(_LayerStruct * len(layers))(
                *(_layer(layer, key, value) for layer, key, value in zip(layers, keys, values, strict=True))
            ),
            last=_norm(last),
            cosine=angles[0].data_ptr(),
            sine=angles[1].data_ptr(),
            state=self._state.data_ptr(),
            normed=self._normed.data_ptr(),
            wide=self._wide.data_ptr(),
            mixed=self._mixed.data_ptr(),
            scratch=self._scratch.data_ptr(),
            scratch_size=self._scratch.shape[1],
        )

    def __call__(self, hidden: Tensor, slots: Tensor, at: Tensor, positions: Tensor) -> Tensor:
        """Run the layers on float32 `[rows, hidden]`; the result is valid until the next call.

        `slots` and `at` are int64 `[rows]`, a token's slot and index; `positions` is `[channels, rows]`.
        Rows of one slot are adjacent; each sees those with lower indices.
        """
        rows = hidden.shape[0]
        self._state[:rows] = hidden
        tokens = _TokensStruct(rows=rows, slots=slots.data_ptr(), at=at.data_ptr(), positions=positions.data_ptr())
        loaded_library().run_layers(ctypes.byref(self._network), ctypes.byref(tokens))
        return self._normed[:rows]


def supports(keys: Tensor) -> bool:
    """Return whether the layers support this cache."""
    return keys.device.type == "cpu" and keys.dtype == torch.bfloat16 and keys.shape[-1] % _LANES == 0


def _layer(layer: Layer, keys: Tensor, values: Tensor) -> _LayerStruct:
    return _LayerStruct(
        input=_norm(layer.input_norm),
        post=_norm(layer.post_norm),
        query_key_value=layer.query_key_value.matrix,
        dense=layer.dense.matrix,
        up=layer.up.matrix,
        down=layer.down.matrix,
        keys=keys.data_ptr(),
        values=values.data_ptr(),
    )


def _norm(norm: nn.LayerNorm) -> _NormStruct:
    return _NormStruct(weight=norm.weight.data_ptr(), bias=norm.bias.data_ptr())

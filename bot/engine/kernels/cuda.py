"""CUDA kernels: Triton, where it is installed."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bot.engine.kernels.reference import Quantised

if TYPE_CHECKING:
    from bot.engine.kernels.triton.matmul import TritonMatmul

log = logging.getLogger(__name__)


@cache
def has_triton() -> bool:
    """Return whether triton is installed; torch's CUDA builds for Linux include it."""
    found = find_spec("triton") is not None
    if not found:
        log.warning("triton is not installed: quantised weights are slow on CUDA without it")
    return found


def pack(weight: Quantised, bias: Tensor | None, dtype: torch.dtype) -> TritonMatmul | None:
    """Pack a matrix for activations of `dtype`; return None if no fast kernel supports it."""
    if not has_triton():
        return None
    # Imported here: triton is missing on machines without CUDA.
    from bot.engine.kernels.triton.matmul import pack as pack_for_triton

    return pack_for_triton(weight, bias, dtype)


def has_decode_ops(head_dim: int, channels: int, dtype: torch.dtype) -> bool:
    """Return whether the fused decode ops support these heads."""
    if not has_triton():
        return False
    from bot.engine.kernels.triton.ops import supports

    return supports(head_dim, channels, dtype)


def decode_ops() -> ModuleType:
    """Return the `DecodeOps` module with one Triton kernel per op of `kernels.eager`."""
    from bot.engine.kernels.triton import ops

    return ops

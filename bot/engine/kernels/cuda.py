"""CUDA kernels: Triton, where it is installed."""

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


def pack(weight: Quantised, bias: Tensor | None, dtype: torch.dtype) -> "TritonMatmul | None":
    """Pack a matrix for activations of `dtype`; return None if no fast kernel supports it."""
    if not has_triton():
        return None
    # Imported here: triton is missing on machines without CUDA.
    from bot.engine.kernels.triton.matmul import pack as pack_for_triton

    return pack_for_triton(weight, bias, dtype)


def decode_ops(head_dim: int, channels: int, dtype: torch.dtype) -> ModuleType | None:
    """Return the `kernels.eager` ops as one Triton kernel each; None if these heads are not supported."""
    if not has_triton():
        return None
    from bot.engine.kernels.triton import ops

    return ops if ops.supports(head_dim, channels, dtype) else None

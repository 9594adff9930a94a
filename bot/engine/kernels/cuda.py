"""What there is for CUDA: our Triton kernels, where triton is installed."""

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
    from bot.engine.kernels.triton.products import Product

log = logging.getLogger(__name__)


@cache
def has_triton() -> bool:
    """Say whether triton is here, which torch's builds for CUDA bring along on Linux."""
    found = find_spec("triton") is not None
    if not found:
        log.warning("triton is not installed: on CUDA, quantised weights are slow without it")
    return found


def pack(weight: Quantised, bias: Tensor | None, dtype: torch.dtype) -> Product | None:
    """Prepare a matrix for activations of `dtype`; None where no fast kernel suits it."""
    if not has_triton():
        return None
    # Not before it is needed: a CPU does without triton.
    from bot.engine.kernels.triton.products import pack as pack_for_triton

    return pack_for_triton(weight, bias, dtype)


def has_parts(head_dim: int, channels: int, dtype: torch.dtype) -> bool:
    """Say whether the parts of a decoding step are here for such heads."""
    if not has_triton():
        return False
    from bot.engine.kernels.triton.ops import suits

    return suits(head_dim, channels, dtype)


def parts() -> ModuleType:
    """The parts of a decoding step, those of `kernels.plain` as one kernel each."""
    from bot.engine.kernels.triton import ops as fused

    return fused

"""Fixes of Triton's interpreter that our kernels need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle, tl

from bot.engine.kernels.triton import int8

IS_INTERPRETED = isinstance(int8.one_row, InterpretedFunction)


def repair_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix conversions from int to bfloat16, and products: 3.7.1 uses the bit pattern as the value in both."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def floats(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def repaired_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, floats(a), floats(b), *others)

    def repaired_cast(self: Any, source: Any, to: Any) -> Any:
        if to.scalar == tl.bfloat16 and source.dtype.scalar.is_int():
            # Small integers are exact in bfloat16.
            return TensorHandle((source.data.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), to.scalar)
        return cast(self, source, to)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", repaired_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", repaired_cast)

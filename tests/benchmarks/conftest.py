"""Fixtures that make measurements small: nothing is timed for its result here."""

import pytest
import torch

from benchmarks import roofline


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 1 << 12)
    monkeypatch.setattr(roofline, "MATRIX_SIZES", {"cpu": 16})
    torch.set_num_threads(1)

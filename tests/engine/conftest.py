"""What all tests of the engine share."""

import os

import pytest
import torch

# Triton decides at its import whether kernels are interpreted.  Where there is a GPU they run on it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are done before a second thread wakes up, the more so on a busy machine."""
    torch.set_num_threads(1)

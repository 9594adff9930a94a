"""What all tests of the engine share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are done before a second thread wakes up, the more so on a busy machine."""
    torch.set_num_threads(1)

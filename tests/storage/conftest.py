"""Fixtures of the storage tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage import memory_folder

ROOM = 64 << 20  # bytes for the largest database of a test and its copies


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A temporary folder in memory, where there is room."""
    with tempfile.TemporaryDirectory(dir=memory_folder(ROOM)) as name:
        yield Path(name)

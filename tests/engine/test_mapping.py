"""Quantised weights are used where their file is mapped, and do not change with it."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoint import written_checkpoint
from bot.engine.benchmark import random_config
from bot.engine.chatglm import mapping
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.loading import load
from bot.errors import CheckpointError
from tests.engine.mapped_model import digest

ROOT = Path(__file__).parent.parent.parent
TABLE = "transformer.word_embeddings.weight"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of int4 weights, with the embedding."""
    monkeypatch.setattr(mapping, "_POLL_SECONDS", 0.01)
    with written_checkpoint(random_config(hidden=64, layers=2, heads=2, inner=128, vocab=512)) as folder:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    found = tmp_path / "model.safetensors"
    with found.open("rb") as opened:
        try:
            mapping._take_lease(opened)
        except OSError as exc:
            pytest.skip(f"the temporary folder has no leases: {mapping.why_not_mapped(exc)}")
    return found


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text()


def test_a_loaded_model_uses_the_mapping_of_its_file(file: Path) -> None:
    model = load(file.parent, slots=1, device="cpu")
    gc.collect()
    assert is_mapped(file)
    del model
    gc.collect()
    assert not is_mapped(file)


def test_a_writer_need_not_wait_for_a_model_that_is_gone(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(file.parent, slots=1, device="cpu")
    del model
    gc.collect()
    os.truncate(file, 0)
    assert "written" not in caplog.text


def test_a_file_that_is_open_for_writing_is_copied(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    mapped = digest(load(file.parent, slots=1, device="cpu"))
    gc.collect()
    with caplog.at_level(logging.INFO), file.open("r+b"):
        model = load(file.parent, slots=1, device="cpu")
        gc.collect()
    assert not is_mapped(file)
    assert f"{file} is copied into memory, not mapped: it is open for writing" in caplog.text
    os.truncate(file, 0)
    assert digest(model) == mapped


@pytest.mark.parametrize("beyond", [2, 8, 34])
def test_tensors_may_begin_at_any_address(file: Path, beyond: int) -> None:
    aligned = digest(load(file.parent, slots=1, device="cpu"))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = (beyond - 8 - length) % 64
    file.write_bytes(
        (length + padding).to_bytes(8, "little") + content[8 : 8 + length] + b" " * padding + content[8 + length :]
    )
    checkpoint = Checkpoint(file.parent)
    table = checkpoint.keep(TABLE)
    assert is_mapped(file)
    assert table.data_ptr() % 64 == beyond
    assert torch.equal(table, checkpoint.read(TABLE))
    assert digest(load(file.parent, slots=1, device="cpu")) == aligned


def replace(file: Path) -> None:
    other = file.with_suffix(".part")
    other.write_bytes(bytes(file.stat().st_size))
    other.rename(file)


def write_over(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("change", [write_over, replace, lambda file: os.truncate(file, 100)])
def test_a_file_that_changes_while_it_is_read_is_refused(file: Path, change: Callable[[Path], None]) -> None:
    checkpoint = Checkpoint(file.parent)
    change(file)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        checkpoint.keep(TABLE)
    os.truncate(file, 0)  # no lease is left


# In a process of its own: without protection, SIGBUS would end it.


@contextmanager
def running(folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the lines of a model's process up to its next digest."""
    command = [sys.executable, "-m", "tests.engine.mapped_model", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask() -> list[str]:
            print(file=questions, flush=True)
            lines: list[str] = []
            while not lines or len(lines[-1]) != 64:  # SHA-256 in hexadecimal
                line = answers.readline()
                assert line, f"the process has ended with {process.wait()}"
                lines.append(line.strip())
            return lines

        try:
            yield ask
        finally:
            questions.close()
    assert process.returncode == 0


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 0), write_over])
def test_weights_are_copied_before_their_file_is_truncated_or_written(
    file: Path, change: Callable[[Path], None]
) -> None:
    with running(file.parent) as ask:
        before = ask()
        change(file)
        assert ask() == [
            f"{file} is being written to while it is in use: its weights are copied into memory",
            f"{file} is copied: replace files of models instead of writing into them",
            *before,
        ]
        change(file)  # no lease is left


@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_a_model_keeps_its_weights_when_their_file_is_replaced_or_deleted(
    file: Path, change: Callable[[Path], None]
) -> None:
    with running(file.parent) as ask:
        before = ask()
        change(file)
        assert ask() == before


def test_the_kernels_signal_does_not_end_the_process(file: Path) -> None:
    with file.open("rb") as opened:
        mapping._take_lease(opened)
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        assert fcntl.fcntl(opened, fcntl.F_GETLEASE) == fcntl.F_UNLCK

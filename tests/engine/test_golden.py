"""The published numbers, held against our model by the command that anyone can run on a set of their own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A set with a checkpoint and a few numbers only."""
    for name in (
        "config.json",
        "model.safetensors.index.json",
        "goldens.json",
        "tokenizer_config.json",
        "ice_text.model",
    ):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    for shard in GOLDEN.glob("model-*.safetensors"):
        shutil.copyfile(shard, tmp_path / shard.name)
    numbers = load_file(GOLDEN / "goldens.safetensors")
    kept = {name: numbers[name] for name in ("p0.input_ids", "p0.logits", "p0.greedy32")}
    save_file(kept, tmp_path / "goldens.safetensors")
    (tmp_path / "goldens.json").write_text("{}")
    return tmp_path


def change(folder: Path, **numbers: torch.Tensor) -> None:
    path = folder / "goldens.safetensors"
    save_file({**load_file(path), **{name.replace("__", "."): number for name, number in numbers.items()}}, path)


def test_every_published_number_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" passed, 0 failed")
    assert not [line for line in lines if line.startswith(("FAIL", "unknown", "skip"))]


def test_what_a_set_lacks_is_named_and_what_it_has_is_checked(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small)]) == 0
    out = capsys.readouterr().out
    assert "ok       p0.logits: " in out
    assert "skip     forced: this set has no forced.tokens" in out
    assert "note     chat: this set has no chat_golden.json" in out


def test_a_wrong_number_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, p0__logits=load_file(small / "goldens.safetensors")["p0.logits"] + 0.003)
    assert main([str(small)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL     p0.logits: 3") for line in lines)
    assert lines[-1].endswith(" passed, 1 failed")


def test_a_number_that_nobody_knows_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, moon__phase=torch.zeros(1))
    assert main([str(small)]) == 0
    assert "unknown  moon.phase: nothing here knows what it is" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_read_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "model-00001-of-00003.safetensors").unlink()
    assert main([str(small)]) == 1
    assert "names the shard model-00001-of-00003.safetensors, which is missing" in capsys.readouterr().out


def test_without_a_folder_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m tests.golden DIR" in capsys.readouterr().err

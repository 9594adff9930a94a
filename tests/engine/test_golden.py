"""The published golden set, checked with the command that works for any set."""

import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main
from tests.golden.second import write

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
SECOND = GOLDEN.parent / "golden2"  # of our own: python -m tests.golden.second


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A set with a checkpoint and a few tensors only."""
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


def test_every_published_golden_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" passed, 0 failed")
    assert not [line for line in lines if line.startswith(("FAIL", "unknown", "skip"))]


def test_every_golden_of_the_numpy_reference_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SECOND)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "89 passed, 0 failed"
    assert not [line for line in lines if line.startswith(("FAIL", "unknown", "skip"))]


def test_the_second_golden_set_is_reproducible(tmp_path: Path) -> None:
    write(tmp_path)
    for path in sorted(SECOND.rglob("*.*")):
        made = tmp_path / path.relative_to(SECOND)
        if path.name == "goldens.safetensors":
            numbers = load_file(made)
            for name, number in load_file(path).items():
                torch.testing.assert_close(numbers[name], number, atol=1e-4, rtol=1e-4)
        elif path.suffix != ".bin" and path.name not in ("goldens.json", "README.md"):
            assert made.read_bytes() == path.read_bytes(), path.name


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return shutil.copytree(SECOND, tmp_path / "set")


@pytest.mark.parametrize("seed", range(3))
def test_missing_items_do_not_stop_the_other_checks(
    seed: int, second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(seed)
    numbers = load_file(second / "goldens.safetensors")
    kept = {name: number for name, number in numbers.items() if chance.random() < 0.6}
    save_file(kept, second / "goldens.safetensors")
    for name in ("int8", "int4", "int4-qe", "goldens.json", "tokenizer_golden.json", "chat_golden.json"):
        if chance.random() < 0.5:
            (shutil.rmtree if (second / name).is_dir() else Path.unlink)(second / name)
    assert main([str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" passed, 0 failed")
    # Only items of a removed prompt remain, and they are named.
    unknown = [line.split()[1].rstrip(":") for line in lines if line.startswith("unknown")]
    told = [line for line in lines if line.startswith("skip")]
    for name in unknown:
        assert told or f"{name.split('.')[0]}.input_ids" not in kept, name


def test_other_layers_prompts_and_lengths_are_recognised(second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = load_file(second / "goldens.safetensors")
    numbers = {re.sub(r"^p1\.", "p17.", name): number for name, number in numbers.items()}
    numbers["p17.greedy3"] = numbers["p17.greedy8"][:, :3]
    numbers["variant.of_ours.input_ids"] = numbers["p17.input_ids"]
    numbers["variant.of_ours.logits_last"] = numbers["p17.logits_last2"][0, -1]
    save_file({name: number.clone() for name, number in numbers.items()}, second / "goldens.safetensors")
    (second / "goldens.json").unlink()
    (second / "tokenizer_golden.json").write_text('{"moods": []}')
    assert main([str(second)]) == 0
    out = capsys.readouterr().out
    for line in (
        "ok       p17.greedy3: 0",
        "ok       variant.of_ours.logits_last: ",
        "ok       p17.decode_step1_logits",
    ):
        assert line in out
    assert "unknown  tokenizer_golden.json moods: no check for this name" in out


def test_a_malformed_item_fails_alone(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, p0__attention_mask=torch.ones(3, dtype=torch.bool))
    (small / "tokenizer_golden.json").write_text('{"cases": [7]}')
    assert main([str(small)]) == 1
    out = capsys.readouterr().out
    assert "FAIL     p0.attention_mask: [12, 12] is not [3]" in out
    assert "FAIL     tokenizer: TypeError" in out
    assert "ok       p0.logits: " in out


def test_missing_items_are_named_and_present_ones_checked(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small)]) == 0
    out = capsys.readouterr().out
    assert "ok       p0.logits: " in out
    assert "skip     forced: forced.tokens is not in this set" in out
    assert "note     chat: chat_golden.json is not in this set" in out


def test_a_wrong_number_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, p0__logits=load_file(small / "goldens.safetensors")["p0.logits"] + 0.003)
    assert main([str(small)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL     p0.logits: 3") for line in lines)
    assert lines[-1].endswith(" passed, 1 failed")


def test_an_unknown_item_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(small, moon__phase=torch.zeros(1))
    assert main([str(small)]) == 0
    assert "unknown  moon.phase: no check for this name" in capsys.readouterr().out


def test_an_unreadable_checkpoint_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "model-00001-of-00003.safetensors").unlink()
    assert main([str(small)]) == 1
    assert "lists the shard model-00001-of-00003.safetensors, which is missing" in capsys.readouterr().out


def test_without_a_folder_the_command_prints_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m tests.golden DIR" in capsys.readouterr().err

"""`bot tune` on the golden model: from a file of pairs to a served prefix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bot.cli import cli
from bot.domain import SamplingParams
from bot.engine import ChatModel
from bot.engine.tuning.checkpoints import OutputFolder
from bot.engine.tuning.errors import FolderInUse
from bot.errors import BotError, CheckpointError
from tests.tuning.small import MODEL, PAIRS

GREEDY = SamplingParams(temperature=0, max_tokens=8)
FEW = ("--prefix-length", "4", "--batch-size", "4", "--accumulation", "1", "--max-source-length", "24")
SHORT = ("--max-target-length", "16", "--learning-rate", "0.05", "--device", "cpu")


def tune(*args: object, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["tune", *map(str, args)], input=stdin)


def data_file(folder: Path) -> Path:
    path = folder / "data.jsonl"
    lines = [json.dumps({"prompt": pair.question, "response": pair.answer}) for pair in PAIRS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(folder: Path, *args: object) -> Result:
    return tune("train", "--data", data_file(folder), "--output", folder / "out", "--model", MODEL, *FEW, *SHORT, *args)


def test_a_trained_prefix_is_served_evaluated_and_talked_to(tmp_path: Path) -> None:
    done = train(tmp_path, "--max-steps", "3")
    assert done.exit_code == 0, done.output
    assert "7 rows" in done.stderr
    assert "memory: about" in done.stderr
    assert "step 3 of 3, loss" in done.stderr
    answers = []
    for ptuning in ("", str(tmp_path / "out"), str(tmp_path / "out" / "checkpoint-3")):
        with ChatModel(str(MODEL), ptuning=ptuning, device="cpu") as model:
            answers.append(model.chat(PAIRS[0].question, params=GREEDY)[0])
    assert answers[0] != answers[1] == answers[2]

    said = tune("chat", tmp_path / "out", "--device", "cpu", stdin=f"{PAIRS[0].question}\n\n")
    assert said.exit_code == 0, said.output

    again = train(tmp_path, "--max-steps", "3")
    assert isinstance(again.exception, BotError)
    assert "--resume" in str(again.exception)
    assert train(tmp_path, "--max-steps", "3", "--resume").exit_code == 0


def test_both_signals_save_and_resume_continues_from_there(tmp_path: Path) -> None:
    # More steps than a test could wait for: only the signal ends it.
    options = ["--data", data_file(tmp_path), "--output", tmp_path / "out", "--model", MODEL, *FEW, *SHORT]
    command = [sys.executable, "-m", "bot", "tune", "train", *options, "--max-steps", 10**6, "--save-every", 10**6]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def interrupted(sent: signal.Signals, *more: str) -> list[int]:
        with subprocess.Popen(
            [*map(str, command), *more], stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stderr is not None
            line = ""
            while not line.startswith("step "):
                line = process.stderr.readline()
                assert line, "it ended by itself"
            process.send_signal(sent)
            rest = process.stderr.read()
        assert process.returncode == 130, rest
        assert "the same command with --resume continues" in rest
        assert "Traceback" not in rest
        return OutputFolder(tmp_path / "out").steps()

    (first,) = interrupted(signal.SIGINT)
    *_, second = interrupted(signal.SIGTERM, "--resume")
    assert 1 <= first < second
    assert not [file.name for file in (tmp_path / "out").iterdir() if file.name.endswith(".part")]


@pytest.mark.parametrize("command", ["evaluate", "chat"])
def test_a_prefix_of_another_model_is_refused_with_both_names(tmp_path: Path, command: str) -> None:
    assert train(tmp_path, "--max-steps", "1").exit_code == 0

    more = ("--data", data_file(tmp_path)) if command == "evaluate" else ()
    done = tune(command, tmp_path / "out", "--model", "demo", "--device", "cpu", *more)

    assert isinstance(done.exception, CheckpointError)
    assert str(done.exception).startswith(f'{tmp_path / "out"} was trained on another model ("{MODEL}"), not on "demo"')


def test_a_folder_that_is_full_or_of_another_training_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")

    refused = train(tmp_path, "--max-steps", "1")

    assert isinstance(refused.exception, FolderInUse)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["letter.txt"]
    (tmp_path / "out" / "letter.txt").unlink()
    assert train(tmp_path, "--max-steps", "1").exit_code == 0
    other = train(tmp_path, "--max-steps", "1", "--resume", "--quantization", "int8")
    assert isinstance(other.exception, FolderInUse)
    assert "another quantization (none instead of int8)" in str(other.exception)


def test_a_dry_run_says_what_would_be_cut_and_writes_nothing(tmp_path: Path) -> None:
    done = train(tmp_path, "--dry-run", "--max-target-length", "8")

    assert done.exit_code == 0, done.output
    assert "answers lose their end" in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    done = train(tmp_path, "--max-target-length", "120")

    assert isinstance(done.exception, BotError)
    assert "the model's context holds 128" in str(done.exception)


def test_evaluation_writes_the_published_files(tmp_path: Path) -> None:
    for package in ("nltk", "rouge_chinese", "jieba"):
        pytest.importorskip(package)
    assert train(tmp_path, "--max-steps", "2").exit_code == 0

    done = tune("evaluate", tmp_path / "out", "--data", data_file(tmp_path), "--device", "cpu", "--batch-size", "3")

    assert done.exit_code == 0, done.output
    assert "base model" in done.stdout
    lines = (tmp_path / "out" / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["labels"] for line in lines] == [
        "print('hello world')", "冬天里的一把火", "2", "不客气!", "I am a small model.", "少喝咖啡,早点上床", "十二元"
    ]  # fmt: skip
    assert set(json.loads((tmp_path / "out" / "predict_results.json").read_text())) >= {"predict_bleu-4"}

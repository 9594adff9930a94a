"""Training: padding, accumulation, checkpoints, resume, and what can go wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.weights import read_prefix
from bot.engine.tuning import checkpoints
from bot.engine.tuning.batches import IGNORED, epoch_order, micro_batches, pad
from bot.engine.tuning.checkpoints import OutputFolder
from bot.engine.tuning.errors import Diverged, FolderInUse, OutOfMemory, TuningError
from bot.engine.tuning.network import prefix_loss
from bot.engine.tuning.prefix import PrefixDropout
from bot.engine.tuning.trainer import Trainer
from bot.errors import CheckpointError
from bot.util.files import sync_path
from tests.tuning.small import RECIPE, base, network, parameters, rows, trainer, training


def test_padding_changes_neither_loss_nor_gradient() -> None:
    still = replace(RECIPE, dropout=0.0, accumulation=1)
    found = []
    for width in (0, 40):
        each = trainer(still)
        (loss,), _ = each.gradients([pad(rows(), network().config, width)])
        found.append((loss, each.prefix.embedding.weight.grad))

    (loss, gradient), (wide_loss, wide_gradient) = found
    assert loss == pytest.approx(wide_loss, abs=1e-5)
    torch.testing.assert_close(gradient, wide_gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_begins_with_sop_and_ends_with_eop() -> None:
    batch = pad(rows(), network().config)
    for row, targets in zip(rows(), batch.targets, strict=True):
        assert targets[targets != IGNORED].tolist() == list(row.ids[row.start :])
        assert targets[row.start - 1] == network().config.bos_token_id


def test_recomputing_activations_changes_nothing_also_with_dropout() -> None:
    batch = pad(rows(), network().config)
    kept, recomputed = trainer(), trainer(recompute=True)

    assert kept.gradients([batch] * 2) == recomputed.gradients([batch] * 2)
    assert torch.equal(*(_gradient(each.prefix.embedding.weight) for each in (kept, recomputed)))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_dropout_differs_by_row_and_step_and_keeps_the_mean() -> None:
    ones = torch.ones(2, 3, 4, 50, 8)
    dropped = PrefixDropout(0.1, 1, "step")(0, ones)

    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.9])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    assert not torch.equal(dropped, PrefixDropout(0.1, 2, "step")(0, ones))


def test_float16_gradients_too_small_for_it_are_kept() -> None:
    still = replace(RECIPE, dropout=0.0, accumulation=2**16)  # a part of a step so large that its gradients are 1e-7
    wanted = trainer(still)
    wanted.gradients([pad(rows(), network().config)])
    half = replace(base(), dtype=torch.float16).read()
    found, plain = (Trainer(half, trainer(still).prefix, still) for _ in range(2))
    plain._scale = 1.0  # as the published training
    for each in (found, plain):
        each.gradients([pad(rows(), network().config)])

    exact, scaled, unscaled = (_gradient(each.prefix.embedding.weight) for each in (wanted, found, plain))
    assert int((scaled == 0).sum()) < int((unscaled == 0).sum())
    assert (scaled - exact).norm() < 0.02 * exact.norm() < (unscaled - exact).norm()


def test_the_loss_is_not_rounded_to_the_dtype_of_the_base() -> None:
    half = Trainer(replace(base(), dtype=torch.float16).read(), trainer().prefix, RECIPE)
    losses, _ = half.gradients([pad(rows()[first : first + 2], network().config) for first in (0, 2, 4)])

    assert any(loss != torch.tensor(loss).half().item() for loss in losses)


def test_the_network_is_not_trained() -> None:
    before = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    each = trainer()
    each.step([pad(rows(), network().config)] * 2)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network().state_dict().items())
    assert all(parameter.grad is None for parameter in network().parameters())


def test_an_epoch_has_every_row_once_and_similar_lengths_together() -> None:
    lengths = [1 + i % 40 for i in range(400)]
    groups = epoch_order(lengths, 8, 1, 0)

    assert sorted(i for group in groups for i in group) == list(range(400))
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    assert padded < 1.15 * sum(lengths)
    assert groups != epoch_order(lengths, 8, 1, 1)
    whole = list(islice(micro_batches(lengths, 8, 1, 0), 130))
    assert whole[77:] == list(islice(micro_batches(lengths, 8, 1, 77), 53))


def test_each_step_takes_its_number_of_micro_batches_across_epochs(tmp_path: Path) -> None:
    # 7 rows are 4 micro-batches, and a step takes 3: the published code would let gradients run on.
    each = training(tmp_path, accumulation=3, max_steps=4)
    log = each.run()

    assert [entry["step"] for entry in log] == [1, 2, 3, 4]


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_training_ends_with_the_same_parameters_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = training(tmp_path / "whole")
    log = whole.run()
    stopped = training(tmp_path / "stopped")
    stopped.run(should_stop=lambda: stopped.trainer.steps == stop)
    resumed = training(tmp_path / "stopped")

    assert resumed.run() == log
    assert torch.equal(parameters(resumed), parameters(whole))


class Killed(BaseException):
    """Simulate SIGKILL: no handler of the program runs."""


@pytest.mark.parametrize("call", range(0, 20, 3))
def test_a_kill_while_saving_leaves_a_checkpoint_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    whole = training(tmp_path / "whole", max_steps=4)
    whole.run()
    calls = iter(range(1000))
    remove = shutil.rmtree

    def killed(path: Path) -> None:
        if next(calls) == call:
            monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
            monkeypatch.setattr(Path, "unlink", lambda *args, **options: None)
            raise Killed
        sync_path(path)

    monkeypatch.setattr(checkpoints, "sync_path", killed)
    with pytest.raises(Killed):
        training(tmp_path / "killed", max_steps=4).run()
    monkeypatch.undo()
    assert shutil.rmtree is remove
    OutputFolder(tmp_path / "killed").prepare(resume=True)
    resumed = training(tmp_path / "killed", max_steps=4)
    resumed.run()

    assert torch.equal(parameters(resumed), parameters(whole))
    served = read_prefix(Checkpoint(tmp_path / "killed"), base().config)
    assert served is not None
    torch.testing.assert_close(served, resumed.trainer.prefix().detach(), rtol=0, atol=0)


@pytest.mark.parametrize("projection", [False, True])
def test_the_last_step_is_saved_and_the_folder_is_served(tmp_path: Path, *, projection: bool) -> None:
    each = training(tmp_path, max_steps=3, save_every=1000, projection=projection)
    each.run()

    served = read_prefix(Checkpoint(tmp_path), base().config)
    assert served is not None
    torch.testing.assert_close(served, each.trainer.prefix().detach(), rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["pre_seq_len"], config.get("prefix_projection")) == (4, projection)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_three_checkpoints_are_kept(tmp_path: Path) -> None:
    training(tmp_path, save_every=1).run()

    assert OutputFolder(tmp_path).steps() == [4, 5, 6]


def test_the_validation_loss_is_logged_with_each_checkpoint(tmp_path: Path) -> None:
    log = training(tmp_path, validation=rows()[:3]).run()

    assert [entry["step"] for entry in log if "validation_loss" in entry] == [2, 4, 6]


def test_a_folder_with_a_training_needs_resume(tmp_path: Path) -> None:
    training(tmp_path).run()

    with pytest.raises(FolderInUse, match="holds a training already: continue it with --resume"):
        OutputFolder(tmp_path).prepare(resume=False)
    with pytest.raises(FolderInUse, match="another learning_rate"):
        training(tmp_path, learning_rate=0.5).run()
    with pytest.raises(FolderInUse, match="another model"):
        training(tmp_path, facts={"model": "other", "recipe": RECIPE.as_json()}).run()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()

    with pytest.raises(FolderInUse, match=r"is not empty \(it holds letter.txt\)"):
        OutputFolder(tmp_path).prepare(resume=False)
    with pytest.raises(FolderInUse, match="cannot be used"):
        OutputFolder(tmp_path / "letter.txt").prepare(resume=False)


@pytest.mark.parametrize("name", ["optimiser.safetensors", "model.safetensors", "tuning.json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    training(tmp_path).run()
    (tmp_path / "checkpoint-6" / name).write_bytes(b"{")

    with pytest.raises(CheckpointError, match=r"checkpoint-6 is damaged .*: delete it") as refused:
        training(tmp_path).run()
    assert "download" not in str(refused.value)


def test_a_checkpoint_without_its_prefix_is_named(tmp_path: Path) -> None:
    training(tmp_path).run()
    (tmp_path / "checkpoint-6" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"checkpoint-6 is damaged .*: delete it"):
        training(tmp_path).run()


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    each = training(tmp_path)

    def break_prefix(result: Any) -> None:
        if result.step == 3:
            with torch.no_grad():
                each.trainer.prefix.embedding.weight[0, 0] = torch.nan

    with pytest.raises(Diverged, match="loss of step 4 is not a finite number"):
        each.run(break_prefix)

    assert OutputFolder(tmp_path).steps() == [2]
    assert read_prefix(Checkpoint(tmp_path), base().config) is not None


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = training(tmp_path)
    write = checkpoints._write_tensors

    def full(path: Path, tensors: dict[str, Tensor]) -> None:
        if "checkpoint-4" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(checkpoints, "_write_tensors", full)
    with pytest.raises(TuningError, match=r"step 4 cannot be saved .*No space left.*checkpoint-2 stays"):
        each.run()

    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint-2",
        "config.json",
        "model.safetensors",
        "tuning.json",
    ]
    monkeypatch.undo()
    whole = training(tmp_path / "whole")
    whole.run()
    resumed = training(tmp_path)
    resumed.run()
    assert torch.equal(parameters(resumed), parameters(whole))


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*args: object, **options: object) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("bot.engine.tuning.trainer.prefix_loss", allocate)
    with pytest.raises(OutOfMemory, match="lower --batch-size"):
        trainer().step([pad(rows(), network().config)] * 2)


def test_the_loss_of_a_quantised_base_is_near_that_of_its_dequantised_weights() -> None:
    batch, still = pad(rows(), network().config), PrefixDropout(0)
    prefix = trainer().prefix()
    plain = prefix_loss(network(), batch, prefix, still)
    for bits, limit in (("int8", 0.5), ("int4", 4.0)):
        quantised = replace(base(), quantization=bits).read()  # type: ignore[arg-type]  # of the two names
        assert abs(prefix_loss(quantised, batch, prefix, still) - plain) < limit

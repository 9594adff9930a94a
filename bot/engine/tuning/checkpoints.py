"""The output folder: atomic checkpoints to resume from, and the newest prefix to serve."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.engine.chatglm.checkpoint import AGAIN, Checkpoint
from bot.engine.chatglm.weights import PREFIX
from bot.engine.tuning.errors import FolderInUse, TuningError
from bot.errors import CheckpointError
from bot.util.files import read_json_object, sync_path

PREFIX_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FACTS_FILE = "tuning.json"
_OPTIMISER_FILE = "optimiser.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")
_KEPT = 3  # the newest; each holds the prefix three times


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a training needs to go on: prefix, moments, and facts for tuning.json."""

    prefix: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])


class OutputFolder:
    """The folder of one training; its top is what `engine.ptuning` takes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, *, resume: bool) -> None:
        """Create the folder.

        Raises:
            FolderInUse: It holds a training, and `resume` is False, or something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = sorted(each.name for each in self.path.iterdir())
        except OSError as exc:
            raise FolderInUse(
                f"{self.path} cannot be used ({exc.strerror}): name another folder with --output"
            ) from exc
        is_training = any(_NAME.fullmatch(name) for name in names)
        if is_training and not resume:
            raise FolderInUse(
                f"{self.path} holds a training already: continue it with --resume, or name another folder with --output"
            )
        if names and not is_training and not all(name.startswith((".checkpoint-", "events.")) for name in names):
            raise FolderInUse(
                f"{self.path} is not empty (it holds {names[0]}): name an empty or new folder with --output"
            )

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order."""
        found = [_NAME.fullmatch(each.name) for each in self.path.iterdir() if each.is_dir()]
        return sorted(int(each[1]) for each in found if each)

    def save(self, state: TrainingState, config: Mapping[str, Any]) -> None:
        """Write a checkpoint, then the prefix to serve; either is written whole or not at all.

        Raises:
            TuningError: The disk is full or cannot be written; the older checkpoints stay.
        """
        final = self._folder(state.step)
        part = self.path / f".{final.name}.part"
        with self._saving(state.step):
            shutil.rmtree(part, ignore_errors=True)
            try:
                part.mkdir()
                _write_json(part / CONFIG_FILE, config)
                _write_json(part / FACTS_FILE, state.facts)
                _write_tensors(part / PREFIX_FILE, state.prefix)
                _write_tensors(part / _OPTIMISER_FILE, state.moments)
                sync_path(part)
                part.rename(final)
                sync_path(self.path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._publish(final)
        for step in self.steps()[:-_KEPT]:
            shutil.rmtree(self._folder(step), ignore_errors=True)

    def load(self) -> TrainingState | None:
        """Read the newest checkpoint, and publish its prefix again; None if there is none.

        Raises:
            CheckpointError: A file of it is damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self._folder(steps[-1])
        try:
            facts = read_json_object(folder / FACTS_FILE)
            checkpoint = Checkpoint(folder)
            prefix = {name: checkpoint.read(name) for name in checkpoint.tensors if name.startswith(PREFIX)}
            state = TrainingState(prefix, load_file(folder / _OPTIMISER_FILE), facts)
        except (OSError, ValueError, SafetensorError, CheckpointError) as exc:
            reason = str(exc).removesuffix(f": {AGAIN}")  # there is nothing to download
            raise CheckpointError(
                f"{folder} is damaged ({reason}): delete it, and --resume continues from an older checkpoint"
            ) from exc
        with self._saving(state.step):
            self._publish(folder)
        return state

    def _folder(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def _publish(self, checkpoint: Path) -> None:
        # The prefix last: a reader that sees it finds the other files.
        for name in (CONFIG_FILE, FACTS_FILE, PREFIX_FILE):
            part = self.path / f".checkpoint-{name}.part"
            try:
                shutil.copyfile(checkpoint / name, part)
                sync_path(part)
                part.replace(self.path / name)
            finally:
                part.unlink(missing_ok=True)
        sync_path(self.path)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as exc:
            kept = self.steps()[-1:]
            stays = f"checkpoint-{kept[0]} stays, --resume continues from it" if kept else "nothing was saved before"
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise TuningError(
                f"step {step} cannot be saved in {self.path} ({reason}): free space on that disk; {stays}"
            ) from exc


def read_facts(folder: Path) -> dict[str, Any]:
    """Read tuning.json of a trained prefix; {} for a prefix that another program trained.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return read_json_object(folder / FACTS_FILE)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder / FACTS_FILE} cannot be read ({exc}): train the prefix again") from exc


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync_path(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    sync_path(path)

"""The loss curve: a PNG, and event files for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bot.engine.tuning.errors import TuningError

CURVE_FILE = "loss.png"


class EventFiles:
    """Losses and learning rates as TensorBoard events; nothing if tensorboardX is not installed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            self._writer = None
        else:
            # Steps after a kill are written again: TensorBoard drops those of the lost run.
            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a step of the log."""
        if self._writer is not None:
            for name in entry.keys() - {"step"}:
                self._writer.add_scalar(name, entry[name], entry["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def draw(log: Sequence[Mapping[str, Any]], folder: Path) -> Path | None:
    """Draw losses by step; return the picture's path, or None if matplotlib is not installed.

    Raises:
        TuningError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([each["step"] for each in log], [each["loss"] for each in log], label="training")
    validated = [each for each in log if "validation_loss" in each]
    if validated:
        axes.plot(
            [each["step"] for each in validated],
            [each["validation_loss"] for each in validated],
            "o-",
            label="validation",
        )
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    path = folder / CURVE_FILE
    try:
        figure.savefig(path)
    except OSError as exc:
        raise TuningError(f"{path} cannot be written ({exc.strerror}): the prefix itself is saved") from exc
    return path

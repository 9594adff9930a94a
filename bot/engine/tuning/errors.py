"""Errors of training and evaluation."""

from bot.errors import BotError


class TuningError(BotError):
    """Training cannot begin or go on; the message says what is wrong, where, and what to do."""


class BadData(TuningError):
    """A file of training data cannot be used."""

    exit_code = 2


class BadRecipe(TuningError):
    """Options that do not fit the model."""

    exit_code = 2


class FolderInUse(TuningError):
    """The output folder holds something else: another training, or a file."""

    exit_code = 2


class Diverged(TuningError):
    """The loss or its gradient is NaN or infinite; nothing of that step was applied."""


class OutOfMemory(TuningError):
    """A training step does not fit into the memory of its device."""

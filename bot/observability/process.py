"""What this process takes and runs on: memory, time, versions."""

import platform
import time
from datetime import timedelta
from importlib import metadata

import psutil

# What the bot stands on, in the order in which an operator asks for it.
_DISTRIBUTIONS = ("torch", "transformers", "discord.py", "python-telegram-bot", "slack-bolt", "sqlalchemy")


def memory() -> int:
    """Bytes of memory that are this process's now; a GPU's memory is not counted."""
    return int(psutil.Process().memory_info().rss)


def uptime() -> timedelta:
    """How long this process has been running, to the second."""
    return timedelta(seconds=int(time.time() - psutil.Process().create_time()))


def versions() -> list[str]:
    """Python and the packages that matter, as far as they are installed; none is imported for it."""
    found = [f"Python {platform.python_version()}"]
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # an extra that this installation does without
    return found

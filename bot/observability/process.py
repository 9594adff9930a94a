"""Memory, uptime and versions of this process."""

import platform
import time
from datetime import timedelta
from importlib import metadata

import psutil

# Packages that matter for support, in order of importance.
_DISTRIBUTIONS = ("torch", "transformers", "discord.py", "python-telegram-bot", "slack-bolt", "sqlalchemy")


def memory() -> int:
    """Return the resident memory of this process in bytes, without GPU memory."""
    return int(psutil.Process().memory_info().rss)


def uptime() -> timedelta:
    """Return the time since the start of this process, in whole seconds."""
    return timedelta(seconds=int(time.time() - psutil.Process().create_time()))


def versions() -> list[str]:
    """Return the versions of Python and the installed packages that matter, without importing them."""
    found = [f"Python {platform.python_version()}"]
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # an optional package
    return found

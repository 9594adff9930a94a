"""How much memory is free for a model: on a GPU, or of the machine and of the container around us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# What Python, torch and the bot hold beside a model, about.
PROGRAM_BYTES = 512 << 20

_GROUPS = Path("/sys/fs/cgroup")
_OURS = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")


def free_bytes(device: torch.device, *, as_if_alone: bool = False) -> int | None:
    """Count the bytes of `device` that a model could take now; None where nobody knows.

    `as_if_alone` counts what this process holds for a model as free too: what there will
    be once that model is gone.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps what was freed; it gives it to the next who asks.
        ours = torch.cuda.memory_reserved(device)
        return free + (ours if as_if_alone else ours - torch.cuda.memory_allocated(device))
    if device.type not in ("cpu", "mps"):
        return None
    limits = [limit for limit in (_left_in(group) for group in _groups()) if limit is not None]
    free = min([psutil.virtual_memory().available, *limits])
    return free + max(_held() - PROGRAM_BYTES, 0) if as_if_alone else free


def _groups() -> Iterator[Path]:
    """The control groups that limit this process, from its own one up: of either version."""
    lines = _OURS.read_text().splitlines() if _OURS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        own = root / path.lstrip("/")
        # Inside a container the path may be the host's, and only the root is there.
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root) and group.is_dir())


def _left_in(group: Path) -> int | None:
    """What a group may still take: files that it has read can be dropped again."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit_name, used_name, files_name in names:
        try:
            limit, used = (group / limit_name).read_text().strip(), int((group / used_name).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        return None if limit == "max" else max(int(limit) - used + int(stat.get(files_name, 0)), 0)
    return None


def _held() -> int:
    """What this process holds that is no file's."""
    if not _STATUS.exists():
        return psutil.Process().memory_info().rss
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024

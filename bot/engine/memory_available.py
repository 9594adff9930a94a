"""Memory available to a model: of a GPU, or of the machine and its cgroups."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# Approximate memory of Python, torch and the bot without a model.
PROGRAM_BYTES = 512 << 20

_GROUPS = Path("/sys/fs/cgroup")
_OURS = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")


def available_bytes(device: torch.device, *, as_if_alone: bool = False) -> int | None:
    """Return the bytes of `device` that a model can use; None if unknown.

    `as_if_alone` also counts the memory of the model this process runs now.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps freed memory reserved and reuses it.
        reserved = torch.cuda.memory_reserved(device)
        return free + (reserved if as_if_alone else reserved - torch.cuda.memory_allocated(device))
    if device.type not in ("cpu", "mps"):
        return None
    limits = [limit for limit in (_headroom(group) for group in _cgroups()) if limit is not None]
    free = min([psutil.virtual_memory().available, *limits])
    return free + max(_anonymous_bytes() - PROGRAM_BYTES, 0) if as_if_alone else free


def _cgroups() -> Iterator[Path]:
    """Yield the cgroups (v1 or v2) that limit this process, innermost first."""
    lines = _OURS.read_text().splitlines() if _OURS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        own = root / path.lstrip("/")
        # In a container the path may be the host's, and only the root exists.
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root) and group.is_dir())


def _headroom(group: Path) -> int | None:
    """Return the headroom of a cgroup; page cache counts as free."""
    names = (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    )
    for limit_name, used_name, prefix in names:
        try:
            limit, used = (group / limit_name).read_text().strip(), int((group / used_name).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        # Mapped weights of the current model are active pages.
        files = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        return None if limit == "max" else max(int(limit) - used + files, 0)
    return None


def _anonymous_bytes() -> int:
    """Return the anonymous RSS of this process."""
    if not _STATUS.exists():
        return psutil.Process().memory_info().rss
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024

"""Tensors used where they are stored: a mapped file, guarded by a read lease."""

import ctypes
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
from ctypes import c_size_t, c_void_p
from io import BufferedReader
from mmap import ACCESS_COPY, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE, mmap
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# A writer waits this long and the time of the copy; the kernel stops waiting after 45 s (/proc/sys/fs/lease-break-time).
_POLL_SECONDS = 1.0

_REASONS = {
    errno.EACCES: "it belongs to another user",
    errno.EAGAIN: "it is open for writing",
    errno.EINVAL: "its file system has no leases",
}

_MAYMOVE, _FIXED = 1, 2  # of mremap(2)

FileState = tuple[int, int, int, int]


def file_state(found: os.stat_result) -> FileState:
    """Return what changes when a file is replaced or written: device, inode, size and time of modification."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class MappedTensors:
    """The int8 tensors of a safetensors file as views of its private mapping, which they keep alive.

    The content cannot change under them.  A read lease (fcntl(2), Linux) lets a process that opens the file for writing,
    or truncates it, wait until a thread has copied the pages into memory.  Renaming, replacing or deleting the file
    does not change what is mapped.

    Raises:
        OSError: There is no lease.
        ValueError: The file is not in the `state` in which its header was checked.
    """

    def __init__(self, file: Path, state: FileState) -> None:
        self._mapped = _map_leased(file, state)
        length = int.from_bytes(self._mapped[:8], "little")
        self._header = json.loads(self._mapped[8 : 8 + length])
        self._start = 8 + length

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor whose pages have been read: errors of the disk belong to loading."""
        entry = self._header[name]
        first, end = entry["data_offsets"]
        flat = torch.frombuffer(self._mapped, dtype=torch.int8, count=end - first, offset=self._start + first)
        flat[::PAGESIZE].sum()
        return flat.view(entry["shape"])


def why_not_mapped(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, error.strerror or "unknown error")


def _map_leased(file: Path, state: FileState) -> mmap:
    opened = file.open("rb")
    try:
        _take_lease(opened)
        if file_state(os.fstat(opened.fileno())) != state:
            raise ValueError(f"{file} has changed")
        mapped = mmap(opened.fileno(), 0, access=ACCESS_COPY)
    except BaseException:
        opened.close()
        raise
    guard = threading.Thread(target=_guard, args=(file, opened, weakref.ref(mapped)), name="lease", daemon=True)
    guard.start()
    return mapped


def _take_lease(opened: BufferedReader) -> None:
    if sys.platform != "linux":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # The kernel's signal at a break would be SIGIO, which ends a process; SIGURG is ignored unless handled.
    fcntl.fcntl(opened, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def _guard(file: Path, opened: BufferedReader, reference: "weakref.ref[mmap]") -> None:
    """Hold the lease until the mapping is gone, or a writer waits and has all pages copied."""
    with opened:
        while (mapped := reference()) is not None:
            # The type of lease that a waiting writer leaves; the same once the kernel has taken it away.
            if fcntl.fcntl(opened, fcntl.F_GETLEASE) == fcntl.F_UNLCK:
                log.warning("%s is being written to while it is in use: its weights are copied into memory", file)
                _move_to_memory(mapped)
                log.warning("%s is copied: replace files of models instead of writing into them", file)
                break
            del mapped
            time.sleep(_POLL_SECONDS)
        # The mapping has another descriptor: closing this one releases nothing.
        with suppress(OSError):  # the kernel has taken the lease away
            fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _move_to_memory(mapped: mmap) -> None:
    """Replace the file's pages by copies at the same addresses, while other threads read them.

    Private copies that writing to the pages would make are no protection: truncating the file removes them too.
    """
    source = torch.frombuffer(mapped, dtype=torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = c_void_p
    size = c_size_t(len(mapped))
    copy = libc.mmap(None, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, c_size_t(0))
    _check_address(copy)
    ctypes.memmove(copy, source.data_ptr(), len(mapped))  # without the GIL
    # Readers wait for the kernel's lock on the address space.
    _check_address(libc.mremap(c_void_p(copy), size, size, _MAYMOVE | _FIXED, c_void_p(source.data_ptr())))


def _check_address(address: int | None) -> None:
    if address == c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

"""Limits of the process that reads a file: memory, time, no sockets, no other programs, nothing written or deleted.

Imported by that process only.
"""

import ctypes
import os
import resource
import struct
import sys

MEMORY = 256 * 2**20
SECONDS = 5

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # SECCOMP_RET_*; 1 is EPERM
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes
# In struct seccomp_data; of the arguments the lower halves, as the machines below are little-endian.
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16
# x86-64 only: numbers from here on are the same calls with another ABI.
_X32 = 0x40000000

# AUDIT_ARCH_* and the numbers of the calls that open sockets, start programs, touch other processes, or change files
# and folders.  Files may be opened to read: libraries import parts of themselves late.
# fmt: off
_REFUSED = {
    "x86_64": (0xC000003E, (
        41, 42, 43, 44, 46, 49, 50, 53, 56, 57, 58, 59, 62, 101, 129, 200, 234, 288, 297, 307, 310, 311, 321, 322, 424, 425,
        434, 435, 438, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 133, 258, 259, 260, 263, 264, 265, 266, 268,
        285, 316, 437, 452,
    )),
    "aarch64": (0xC00000B7, (
        117, 129, 130, 131, 138, 198, 199, 200, 201, 202, 203, 206, 211, 220, 221, 240, 242, 269, 270, 271, 280, 281, 424,
        425, 434, 435, 438, 33, 34, 35, 36, 37, 38, 45, 46, 47, 52, 53, 54, 55, 276, 437, 452,
    )),
}
# The calls that open files, with the position of their flags.
_OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# fmt: on


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def has_seccomp() -> bool:
    """Return whether system calls can be refused here."""
    return sys.platform == "linux" and os.uname().machine in _REFUSED


def limit_resources() -> None:
    """Limit memory to 256 MB and CPU time to 5 s; write no files, leave no core."""
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(limit, (bound, bound))
        except (OSError, ValueError):  # macOS has no limit on memory
            continue


def refuse_system_calls() -> None:
    """From now on open no socket, start no program and change no file, where the kernel can refuse it.

    Raises:
        OSError: It can, and did not take the filter.
    """
    if not has_seccomp():
        return
    architecture, refused = _REFUSED[os.uname().machine]
    checks = [(_AT_LEAST, _X32), *((_EQUAL, number) for number in refused)]
    opening = [
        instruction
        for number, position in _OPENING[os.uname().machine]
        for instruction in (
            _instruction(_EQUAL, number, if_false=4),
            _instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * position),
            _instruction(_ANY_BIT, _WRITING, if_false=1),
            _instruction(_RETURN, _REFUSE),
            _instruction(_RETURN, _ALLOW),
        )
    ]
    program = [
        _instruction(_LOAD, _OFFSET_ARCHITECTURE),
        _instruction(_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _OFFSET_NUMBER),
        *opening,
        *(_instruction(code, number, if_true=len(checks) - at) for at, (code, number) in enumerate(checks)),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    filter = _Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)

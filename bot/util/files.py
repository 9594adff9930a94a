"""Files: those that an operator names are read with care, those that must last are written through."""

import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

# Bytes of a JSON file: a tokenizer's take 35 MB, an index or a config.json less than 2 MB.
_LARGEST_JSON = 128 * 1024 * 1024
# Levels of lists and objects in it.
_DEEPEST_JSON = 32


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: `strerror` says why: also if it is a directory, a pipe, a socket or a device.
    """
    # Without O_NONBLOCK the opening of a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        OSError: `strerror` says why.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return content


def sync_path(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, through to the disk; an earlier one's mode and owner stay.

    Raises:
        OSError: `strerror` says why; an earlier file is unchanged.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        earlier = path.stat() if path.exists() else None
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            if earlier is not None:
                if (earlier.st_uid, earlier.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, earlier.st_uid, earlier.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(earlier.st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
        sync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        OSError: `strerror` says why the file cannot be read.
        ValueError: It is not JSON, not an object, or nests too deeply.
    """
    try:
        content = json.loads(read_regular(path, _LARGEST_JSON))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if nests_deeper(content, _DEEPEST_JSON):
        raise ValueError("nested too deeply")
    return content


def nests_deeper(value: object, levels: int) -> bool:
    """Return whether lists and tables in `value` nest deeper than `levels`.

    >>> nests_deeper({"a": [{}]}, 3), nests_deeper({"a": [{}]}, 2)
    (False, True)
    """
    level = [value]
    for _ in range(levels):
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [found for each in inner for found in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, dict | list) for each in level)


def shown(text: str, longest: int = 60) -> str:
    r"""Return a text of a stranger for a message: control characters escaped, a long one cut.

    >>> print(shown("a\x9b2J"), shown("k" * 5000, 3))
    a\x9b2J kkk…
    """
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return cut if cut.isprintable() else repr(cut)[1:-1]

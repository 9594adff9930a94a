"""Compile layers.c once per CPU type, and load the library.

`python -m bot.engine.kernels.native.build` compiles for every CPU type of this architecture
into the source folder: for images, whose containers have no compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("layers.c")
_HEADERS = [SOURCE.with_name(name) for name in ("vectors.h", "matmul.h", "many.h", "integers.h", "tiles.h")]
# Infinities and NaN must work; errno and floating-point traps are never read.
_FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC")
# x86-64 CPU types as torch names them, for gcc >= 11 and clang >= 12.
_KINDS = {
    "AMX": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "AVX512_VNNI": ("-march=x86-64-v4", "-mavx512vnni"),
    "AVX512": ("-march=x86-64-v4",),
    "AVX2": ("-march=x86-64-v3",),
    "DEFAULT": ("-march=x86-64",),
}
_SECONDS = 600


@cache
def library() -> ctypes.CDLL | None:
    """Load the library for this CPU, compiling it on first use; return None if that fails."""
    kind = kind_of_processor()
    name = _name(kind)
    try:
        for folder in (SOURCE.parent, _cache()):
            if (folder / name).is_file():
                return _load(folder / name)
        return _load(compile_for(kind, _cache()))
    # RuntimeError: no home directory.  OSError: the file is not a library.
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("native CPU kernels unavailable, quantised models run at about half speed: %s", error)
        return None


def loaded_library() -> ctypes.CDLL:
    """Return the library, for code that exists only where it loads."""
    found = library()
    assert found is not None, "a native matmul was created without the library"
    return found


@cache
def kind_of_processor() -> str:
    """Return the CPU type to compile for on this machine."""
    kind: str = torch.backends.cpu.get_cpu_capability()
    if kind != "AVX512" or not torch.cpu._is_vnni_supported():
        return kind
    # The system admits this process to the tiles' registers, or refuses.
    return "AMX" if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() else "AVX512_VNNI"


def has_tiles() -> bool:
    """Return whether this CPU multiplies tiles of numbers (AMX)."""
    return kind_of_processor() == "AMX"


def compile_for(kind: str, folder: Path) -> Path:
    """Compile for a CPU type into a folder; return the file.

    Raises:
        OSError: The folder is not writable.
        RuntimeError: No C compiler, or it failed.
        subprocess.SubprocessError: The compiler timed out.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("no C compiler found; install one (on Debian: apt install gcc libc6-dev)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.info("compiling the native CPU kernels (first use only)")
    # Renamed when complete: another process may look for the file.
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        made = Path(draft, "layers.so")
        done = subprocess.run(  # noqa: S603 - the compiler that the operator named or installed
            [compiler, *_arguments(kind), "-o", str(made), str(SOURCE)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{compiler} failed ({done.returncode}): {done.stderr.strip()[-300:]}")
        return made.replace(folder / _name(kind))


def _arguments(kind: str) -> tuple[str, ...]:
    return (*_FLAGS, *_KINDS.get(kind, ())) if _is_x86() else _FLAGS


def _name(kind: str) -> str:
    made_of = b"".join(file.read_bytes() for file in (SOURCE, *_HEADERS)) + " ".join(_arguments(kind)).encode()
    return f"layers-{platform.machine()}-{kind.lower()}-{hashlib.sha256(made_of).hexdigest()[:12]}.so"


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-bot"


def _load(path: Path) -> ctypes.CDLL:
    made = ctypes.CDLL(str(path))
    for function in (made.multiply, made.convert, made.run_layers):
        function.restype = None
    return made


if __name__ == "__main__":
    for each in _KINDS if _is_x86() else (kind_of_processor(),):
        sys.stdout.write(f"{compile_for(each, SOURCE.parent)}\n")

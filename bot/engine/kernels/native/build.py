"""Gets layers.c and the products it includes compiled, once for each kind of processor, and loads what came of it.

`python -m bot.engine.kernels.native.build` compiles beside the source for every kind that this machine's family knows:
for an image, whose containers have no compiler.
"""

from __future__ import annotations

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
_HEADER = Path(__file__).with_name("products.h")
# Numbers may be infinite or none at all, but nobody asks what a product raised or which of errno's codes it left.
_FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC")
# Kinds of processors of PCs, as torch tells them apart, for gcc (from 11 on) and clang (from 12 on).
_KINDS = {
    "AVX512_BF16": ("-march=x86-64-v4", "-mavx512bf16"),
    "AVX512": ("-march=x86-64-v4",),
    "AVX2": ("-march=x86-64-v3",),
    "DEFAULT": ("-march=x86-64",),
}
_SECONDS = 120


@cache
def library() -> ctypes.CDLL | None:
    """Load the library for this processor, compiling it where that was not done yet; None where it cannot be had."""
    kind = kind_of_processor()
    name = _name(kind)
    try:
        for folder in (SOURCE.parent, _cache()):
            if (folder / name).is_file():
                return _load(folder / name)
        return _load(compile_for(kind, _cache()))
    # A home that nobody has is a RuntimeError, a file that is no library an OSError.
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("quantised models run at about half their speed on this CPU: %s", error)
        return None


def present() -> ctypes.CDLL:
    """The library, for what is only made where there is one."""
    found = library()
    assert found is not None, "a product was made without it"
    return found


def kind_of_processor() -> str:
    """Name what the library is compiled for here."""
    kind: str = torch.backends.cpu.get_cpu_capability()
    return "AVX512_BF16" if kind == "AVX512" and torch.cpu._is_avx512_bf16_supported() else kind


def compile_for(kind: str, folder: Path) -> Path:
    """Compile for a kind of processor into a folder; return the file.

    Raises:
        OSError: There is no place for it.
        RuntimeError: There is no C compiler, or it failed.
        subprocess.SubprocessError: It took too long.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler here; install one (on Debian: apt install gcc libc6-dev)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.info("compiling products for this CPU, which happens once")
    # Under another name until it is whole: another process may look for it.
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
    made_of = SOURCE.read_bytes() + _HEADER.read_bytes() + " ".join(_arguments(kind)).encode()
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

"""`python -m bot` in a process that is forked with the program's imports done.

Importing SQLAlchemy, pydantic and the rest costs a second of CPU time per process. multiprocessing's fork server pays
it once; each child then has its own arguments, folder, environment and streams, as if it had been started by a shell.
Tests of the start itself, of mounts or of rights start a real process.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bot.app", "bot.adapters.console.adapter", "tests.harness.warm_start"])


def start_bot(
    arguments: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    stdin: Path | None = None,
    stdout: Path,
    stderr: Path,
    module: str = "bot",
) -> BaseProcess:
    """Start the program in `folder`; what it prints is appended to the two files."""
    process = _context.Process(
        target=_run, args=(module, [*arguments], folder, dict(env), stdin or Path(os.devnull), stdout, stderr)
    )
    process.start()
    return process


def run_bot(
    arguments: Sequence[str], *, folder: Path, env: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, as `subprocess.run` with captured output."""
    with tempfile.TemporaryDirectory() as streams:
        given, out, err = (Path(streams) / name for name in ("in", "out", "err"))
        given.write_text(stdin, encoding="utf-8")
        process = start_bot(arguments, folder=folder, env=env, stdin=given, stdout=out, stderr=err)
        process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        said = [each.read_text(encoding="utf-8") for each in (out, err)]
    return subprocess.CompletedProcess(["bot", *arguments], code, *said)


def _run(
    module: str, arguments: list[str], folder: Path, env: dict[str, str], stdin: Path, stdout: Path, stderr: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, flags) in enumerate(((stdin, os.O_RDONLY), (stdout, append), (stderr, append))):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8")
    sys.stdout = open(1, "w", encoding="utf-8")
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

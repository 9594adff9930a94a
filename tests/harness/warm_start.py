"""`python -m bot` in a process that is forked with the program's imports done.

Importing SQLAlchemy, pydantic and the platforms' libraries costs 2 s of CPU time per process. The fork server of
multiprocessing pays it once; each child gets its own arguments, folder, environment and streams, as a shell would
give it. Tests of the start itself, of mounts and of rights start a real process.

The bot asks about a refused token again after seconds, in which a test of a wrong token would do nothing but wait:
`login_pause` replaces them.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from bot.adapters import login

# Seconds; only a process that hangs takes as long, on any machine.
_HANGS = 300.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "bot.app",
        "bot.adapters.console.adapter",
        "bot.adapters.discord.adapter",
        "bot.adapters.slack.adapter",
        "bot.adapters.telegram.adapter",
        "bot.engine.backends.echo",
        "tests.harness.warm_start",
    ]
)


class WarmProcess:
    """A running program, with the part of `asyncio.subprocess.Process` that tests need."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._code: int | None = None
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        if self._code is None and (code := self._process.exitcode) is not None:
            self._code = code
            self._process.close()
        return self._code

    def send_signal(self, number: int) -> None:
        # Between its end and the fork server's report of it there is no such process.
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        if self.returncode is None:
            ended, loop, sentinel = asyncio.Event(), asyncio.get_running_loop(), self._process.sentinel
            loop.add_reader(sentinel, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(sentinel)
        code = self.returncode
        assert code is not None
        return code


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    stdin: Path = Path(os.devnull),
    module: str = "bot",
    login_pause: float | None = None,
) -> WarmProcess:
    """Start `python -m MODULE` in `folder`; what it prints is appended to the two files."""
    streams = (stdin, stdout, stderr)
    process = _context.Process(target=_run, args=(module, [*arguments], folder, dict(env), streams, login_pause))
    process.start()
    return WarmProcess(process)


def run(
    arguments: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    stdin: str = "",
    login_pause: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m bot` to its end, like `subprocess.run` with captured output."""
    with tempfile.TemporaryDirectory() as streams:
        given, out, err = (Path(streams) / name for name in ("in", "out", "err"))
        given.write_text(stdin, encoding="utf-8")
        process = _context.Process(
            target=_run, args=("bot", [*arguments], folder, dict(env), (given, out, err), login_pause)
        )
        process.start()
        process.join(_HANGS)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        stdout, stderr = (each.read_text(encoding="utf-8") for each in (out, err))
    return subprocess.CompletedProcess(["bot", *arguments], code, stdout, stderr)


def _run(
    module: str,
    arguments: list[str],
    folder: Path,
    env: dict[str, str],
    streams: tuple[Path, Path, Path],
    login_pause: float | None,
) -> None:
    if login_pause is not None:
        login.confirm.__defaults__ = (login_pause,)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    stdin, stdout, stderr = streams
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, flags) in enumerate(((stdin, os.O_RDONLY), (stdout, append), (stderr, append))):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    sys.path.insert(0, str(folder))  # as `python -m` does
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception as error:  # noqa: BLE001 - ends as the interpreter does; multiprocessing skips the hook
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)

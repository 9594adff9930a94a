"""Test the hardened image: start, ask, stop, restart, and start with mistakes."""

import queue
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.image.tools import ImageError, inspect, output_of

USER = "10001:10001"
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
# The demo model on the terminal needs no network.
ALONE = ["--network", "none"]
# Health is checked here with the image's own command: podman's health checks need systemd. By default podman also
# raises the limits of open files and processes, which is not permitted everywhere.
ONLY_PODMAN = ["--no-healthcheck", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
START_SECONDS = 90.0
STOP_SECONDS = 8.0
SUSPICIOUS = re.compile(r"token|password|secret|index-url", re.IGNORECASE)


def check(holds: bool, what: str) -> None:
    print(f"{'ok ' if holds else '!! '} {what}", flush=True)
    if not holds:
        raise ImageError(what)


def check_contents(tool: str, image: str) -> None:
    """Check the image's metadata, and that it holds no build leftovers or secrets."""
    config = inspect(tool, image)["Config"]
    check(config["User"] == USER, f"the user is {config['User']}")
    check(config["Entrypoint"] == ["bot"], "the command is in exec form")
    check("/data" in config["Volumes"], "/data is a volume")
    check(bool(config["Labels"]["org.opencontainers.image.title"]), "it has labels")
    history = output_of(tool, "history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    named = SUSPICIOUS.findall(history)
    check(not named, f"no secret in the history of its layers {named}")
    left = output_of(
        *running(tool), "--rm", "--entrypoint", "sh", image, "-c",
        "ls -A /etc/pip.conf /root/.cache /data 2>/dev/null; find /opt/bot /tmp -name '*.whl' -o -path '*/pip/*'",
    )  # fmt: skip
    compiled = output_of(
        *running(tool), "--rm", "--entrypoint", "python3", image, "-c",
        "from bot.engine.kernels.native.build import library; print(library()._name)",
    )  # fmt: skip
    check("/site-packages/" in compiled, f"the CPU kernels are compiled: {compiled.rpartition('/')[2].strip()}")
    check(not left.strip().replace("/data:", ""), f"no cache and no configuration of the build in it {left.split()}")


def running(tool: str) -> list[str]:
    """Return the command that starts a container, hardened and without a network."""
    return [tool, "run", *HARDENED, *ALONE, *(ONLY_PODMAN if tool == "podman" else [])]


class Trial:
    """A first run, a restart, and wrong configurations."""

    def __init__(self, tool: str, image: str) -> None:
        self._tool = tool
        self._image = image

    def run(self) -> None:
        """Run all checks.

        Raises:
            ImageError: A check failed.
        """
        volume = f"chatglm-bot-trial-{time.monotonic_ns()}"
        output_of(self._tool, "volume", "create", volume)
        try:
            self._first_run(volume)
            self._restart(volume)
            self._wrong_configurations(volume)
        finally:
            output_of(self._tool, "volume", "rm", "--force", volume)

    def _first_run(self, volume: str) -> None:
        with Container(self._tool, self._image, ["-v", f"{volume}:/data"]) as bot:
            check(bot.healthy_after < START_SECONDS, f"ready {bot.healthy_after:.1f} s after its start")
            check("Hello" in bot.ask("hello"), "it answers")
            seconds, code = bot.stop()
            check(seconds < STOP_SECONDS, f"stopped {seconds:.1f} s after SIGTERM")
            check(code == 0, f"with exit code {code}")

    def _restart(self, volume: str) -> None:
        with Container(self._tool, self._image, ["-v", f"{volume}:/data"]) as bot:
            answer = bot.ask("what did I just say?")
            check("hello" in answer, f"it remembers the conversation after a restart: {answer!r}")
            bot.stop()

    def _wrong_configurations(self, volume: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            wrong = Path(folder) / "config.toml"
            wrong.write_text("[engine]\nquantisation = 'int9'\n", encoding="utf-8")
            wrong.chmod(0o644)
            Path(folder).chmod(0o755)
            situations: dict[str, tuple[list[str], str]] = {
                "a mistake in config.toml": (["-v", f"{wrong}:/etc/bot/config.toml:ro"], "quantisation"),
                "a config.toml that is missing": (["-v", f"{folder}:/etc/bot:ro", "-e", "X=1"], "config.toml"),
                "a model folder that is missing": (["-e", "BOT_ENGINE__MODEL=/models/none"], "/models/none"),
                "no GPU": (["-e", "BOT_ENGINE__DEVICE=cuda"], "cuda"),
                "a /data that is not writable": (["--tmpfs", "/data:ro,mode=0555"], "/data"),
            }
            for what, (flags, word) in situations.items():
                if "missing" in what and "config" in what:
                    wrong.unlink()
                mounts = [] if "/data" in what else ["-v", f"{volume}:/data"]
                done = subprocess.run(
                    [*running(self._tool), "--rm", *mounts, *flags, self._image],
                    capture_output=True, text=True, timeout=120, check=False,
                )  # fmt: skip
                said = done.stderr.strip()
                check(
                    done.returncode != 0 and word in said and "Traceback" not in said,
                    f"{what}: exit code {done.returncode}, {said.splitlines()[-1] if said else 'silence'}",
                )


class Container:
    """A running container with an open terminal; removed at the end."""

    def __init__(self, tool: str, image: str, flags: list[str]) -> None:
        self._tool = tool
        self._name = f"chatglm-bot-trial-{time.monotonic_ns()}"
        command = [*running(tool), "--interactive", "--name", self._name, *flags]
        known = inspect(tool, image)
        kind, *self._health_command = (known.get("Healthcheck") or known["Config"]["Healthcheck"])["Test"]
        check(kind == "CMD", "the health check is in exec form")
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "-e", "BOT_OPERATIONS__ENABLED=true", image],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._output: queue.Queue[str] = queue.Queue()
        for stream in (self._process.stdout, self._process.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def __enter__(self) -> Self:
        self.healthy_after = self._until(self._is_healthy, START_SECONDS) - self._began
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([self._tool, "rm", "--force", self._name], capture_output=True, check=False)
        self._process.wait(timeout=30)

    def ask(self, question: str) -> str:
        """Type a line on the terminal; return the output up to a pause."""
        while not self._output.empty():
            self._output.get()
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        words = [self._output.get(timeout=60)]
        while True:
            try:
                words.append(self._output.get(timeout=3))
            except queue.Empty:
                return "".join(words)

    def stop(self) -> tuple[float, int]:
        """Stop it with SIGTERM, as `docker stop`; return the seconds it took and the exit code."""
        began = time.monotonic()
        output_of(self._tool, "stop", "--time", "10", self._name)
        seconds = time.monotonic() - began
        return seconds, int(inspect(self._tool, self._name)["State"]["ExitCode"])

    def _read(self, stream: object) -> None:
        for line in stream:  # type: ignore[attr-defined]  # a pipe of text
            self._output.put(line)

    def _is_healthy(self) -> bool:
        done = subprocess.run([self._tool, "exec", self._name, *self._health_command], capture_output=True, check=False)
        return done.returncode == 0

    def _until(self, condition: Callable[[], bool], seconds: float) -> float:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return time.monotonic()
            if self._process.poll() is not None:
                lines = []
                while not self._output.empty():
                    lines.append(self._output.get())
                raise ImageError(f"the bot ended by itself: {''.join(lines)[-2000:]}")
            time.sleep(0.2)
        raise ImageError(f"the bot was not ready after {seconds:.0f} s")

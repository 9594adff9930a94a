"""Write checkpoints of the published size, load each as int4 on the CPU, and check the memory limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.weights.answer import TOKENS
from tests.weights.checkpoints import FORMS, Form

LIMIT = 6 * 10**9
"""Maximum RssAnon in bytes while loading and answering in int4."""

_SPARE = 10**9


def main() -> int:
    place = Path(os.environ.get("WEIGHTS_FOLDER") or tempfile.gettempdir())
    needed, free = max(form.bytes for form in FORMS) + _SPARE, shutil.disk_usage(place).free
    if free < needed:
        sys.stderr.write(
            f"{place} has {free / 1e9:.1f} GB free, but the largest checkpoint needs {needed / 1e9:.1f} GB: free disk "
            "space, or set WEIGHTS_FOLDER to another folder\n"
        )
        return 2
    passed = 0
    for form in FORMS:
        with tempfile.TemporaryDirectory(prefix="chatglm-weights-", dir=place) as folder:
            passed += check(form, Path(folder) / "checkpoint")
    _print_line(f"{passed} passed, {len(FORMS) - passed} failed")
    return 0 if passed == len(FORMS) else 1


def check(form: Form, folder: Path) -> bool:
    label = f"{form.label}, {form.shards} shards of {form.suffix}, {form.bytes / 1e9:.1f} GB"
    _print_line(f"write    {label}")
    began = time.perf_counter()
    form.write(folder)
    _print_line(f"load     {label} (written in {time.perf_counter() - began:.0f} s)")
    quantization = "none" if form.config.quantization_bit else "int4"
    command = [sys.executable, "-m", "tests.weights.answer", str(folder), quantization]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if run.returncode != 0:
        _print_line(f"FAIL     {label}: exit code {run.returncode}")
        return False
    found = json.loads(run.stdout)
    good: bool = found["peak"] < LIMIT and found["tokens"] == TOKENS and found["quantization"] == "int4"
    _print_line(
        f"{'ok  ' if good else 'FAIL'}     {label}: {found['quantization']} on {found['device']} in "
        f"{found['load_seconds']:.0f} s, RssAnon at most {found['load_peak'] / 1e9:.2f} GB while loading and "
        f"{found['peak'] / 1e9:.2f} GB in all (limit {LIMIT / 1e9:.0f} GB), "
        f"{found['tokens']} tokens answered in {found['answer_seconds']:.1f} s"
    )
    return good


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # it is a command


if __name__ == "__main__":
    sys.exit(main())

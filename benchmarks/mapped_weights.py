"""Memory and time to load an int4 checkpoint of 6.2 billion weights: mapped, and copied into memory.

`python -m benchmarks.mapped_weights` writes the checkpoint (3.1 GB), then alternates loads in processes of their own,
from the page cache.  A file that is open for writing cannot be mapped: that is how the copies are made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch

from benchmarks.checkpoint import written_checkpoint
from benchmarks.report import SuiteRow, print_rows
from bot.engine.benchmark import random_config, random_prompt
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load
from bot.engine.kernels.native.build import library
from bot.engine.serving.base import Batch

_PROMPT = 32
_TOKENS = 16
_SIZES = {"hidden": 4096, "layers": 28, "heads": 32, "inner": 16384, "vocab": 130528}
_KINDS = ("mapped", "copied")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="pairs of loads")
    parser.add_argument("--layers", type=int, default=_SIZES["layers"], help="fewer layers for a quick run")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.load is not None:
        print(json.dumps(_load(options.load)))
        return 0
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    with written_checkpoint(random_config(**_SIZES | {"layers": options.layers})) as folder:
        for _ in range(options.repeat):
            for kind in _KINDS:
                found[kind].append(_load_in_process(folder, is_mapped=kind == "mapped"))
                print(kind, {name: round(value, 3) for name, value in found[kind][-1].items() if name != "tokens"})
    if len({str(each["tokens"]) for runs in found.values() for each in runs}) > 1:
        print("the tokens differ")
        return 1
    print(f"{options.repeat} pairs, medians; all tokens are equal")
    return print_rows([row for kind in _KINDS for row in _rows(kind, found[kind])])


def _rows(kind: str, runs: Sequence[dict[str, float]]) -> list[SuiteRow]:
    def of(name: str) -> float:
        return median(each[name] for each in runs)

    goals: tuple[float | None, float | None] = (1.0, 800.0) if kind == "mapped" else (None, None)
    return [
        SuiteRow(f"{kind}: load", of("load"), "s", goals[0], is_limit=True, remark=f"{of('load_cpu'):.2f} s of CPU"),
        SuiteRow(f"{kind}: anonymous memory", of("anonymous"), "MB", goals[1], is_limit=True, remark="after answering"),
        SuiteRow(f"{kind}: first token", of("first"), "s", remark=f"after the load; a prompt of {_PROMPT} tokens"),
        SuiteRow(f"{kind}: step", of("step") * 1e3, "ms", remark=f"CPU time of all threads, median of {_TOKENS}"),
    ]


def _load_in_process(folder: Path, *, is_mapped: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.mapped_weights", "--load", str(folder)]
    with nullcontext() if is_mapped else (folder / "model.safetensors").open("r+b"):
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  # this module
    result: dict[str, float] = json.loads(run.stdout)
    return result


def _load(folder: Path) -> dict[str, object]:
    """Measure one load and some tokens in this process."""
    prompt = random_prompt(read_config(folder), _PROMPT)
    library()  # loaded, and compiled, by the first model of a process
    began, cpu = time.perf_counter(), time.process_time()
    model = load(folder, device="cpu", slots=1)
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    tokens = [int(model.forward(Batch((0,), (prompt,), (0,))).argmax())]
    first = time.perf_counter()
    steps = []
    for at in range(_PROMPT, _PROMPT + _TOKENS):
        before = time.process_time()
        tokens.append(int(model.forward(Batch((0,), ((tokens[-1],),), (at,))).argmax()))
        steps.append(time.process_time() - before)
    return {
        "load": loaded - began,
        "load_cpu": loaded_cpu - cpu,
        "first": first - loaded,
        "step": median(steps),
        "anonymous": _anonymous_megabytes(),
        "tokens": tokens,
    }


def _anonymous_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())

"""Kill a training at random moments, resume it, and compare: `python -m tests.tuning.kills`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import torch

from bot.engine.tuning.checkpoints import OutputFolder
from tests.tuning.small import base, network, parameters, training

STEPS, SAVE_EVERY = 60, 3


def run(folder: Path) -> None:
    training(folder, max_steps=STEPS, save_every=SAVE_EVERY).run()


def killed(folder: Path, seconds: float) -> bool:
    """Train in a child process, and kill it after so many seconds; return whether it was still training."""
    child = os.fork()
    if child == 0:
        run(folder)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tuning.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base(), network()
    rng = Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        whole = training(Path(place) / "whole", max_steps=STEPS, save_every=SAVE_EVERY)
        whole.run()
        longest = 2 * (time.monotonic() - began) / options.count
        done = same = 0
        while done < options.count:
            folder = Path(place) / f"killed-{done}"
            folder.mkdir()
            steps = []
            # Trainings that are killed again and again, until the kills are used up or one ends.
            while done < options.count and killed(folder, rng.uniform(0, longest)):
                done += 1
                steps.append(max(OutputFolder(folder).steps(), default=0))
            OutputFolder(folder).prepare(resume=True)
            resumed = training(folder, max_steps=STEPS, save_every=SAVE_EVERY)
            resumed.run()
            equal = torch.equal(parameters(resumed), parameters(whole))
            print(
                f"killed {len(steps)} times, saved steps then {steps}: {'equal' if equal else 'DIFFERENT'}", flush=True
            )
            same += equal * len(steps)
    print(f"{same} of {done} kills end with the parameters of the uninterrupted training, bit for bit")
    return 0 if same == done else 1


if __name__ == "__main__":
    sys.exit(main())

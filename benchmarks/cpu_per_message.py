"""CPU milliseconds per answered mention: the whole program, the echo engine, a platform in memory.

python -m benchmarks.cpu_per_message [--messages 2000] [--rounds 3] [--checkout FOLDER]

Process CPU time of all threads, so other load on the machine hardly shows; the first mentions are left out.
"""

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median

from benchmarks.in_memory import MemoryPlatform, log_to_memory, running_bot, use_checkout

CHANNELS = 50
WARM_UP = 200
QUESTION = "What is the answer to this question, please?"  # the echo engine makes 11 deltas of it


async def ask(platform: MemoryPlatform, messages: int) -> None:
    """Deliver mentions channel after channel, one at a time in each."""
    for begin in range(0, messages, CHANNELS):
        for channel in range(min(CHANNELS, messages - begin)):
            await platform.mention(channel, QUESTION)
        await platform.idle()


async def milliseconds_per_message(messages: int) -> tuple[float, float]:
    """Return CPU milliseconds and calls of the platform, both per mention."""
    async with running_bot() as platform:
        await ask(platform, WARM_UP)
        calls = platform.messenger.calls
        calls.update(dict.fromkeys(calls, 0))
        began = time.process_time()
        await ask(platform, messages)
        return 1000 * (time.process_time() - began) / messages, sum(calls.values()) / messages


def main() -> None:
    parser = argparse.ArgumentParser(description="Print CPU milliseconds per answered mention.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", type=Path, help="measure bot/ of this folder instead")
    options = parser.parse_args()
    if options.checkout:
        use_checkout(options.checkout)
    log_to_memory()
    found = [asyncio.run(milliseconds_per_message(options.messages)) for _ in range(options.rounds)]
    for cpu, calls in found:
        print(f"{cpu:.2f} ms CPU per message, {calls:.1f} platform calls per message", flush=True)
    cpu_times = [cpu for cpu, _ in found]
    # Other work on the machine makes caches cold and can only add: the least of several rounds is the steadiest.
    print(f"least {min(cpu_times):.2f} ms, median {median(cpu_times):.2f} ms of {options.rounds} rounds")


if __name__ == "__main__":
    main()

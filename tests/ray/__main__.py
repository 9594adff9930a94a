"""`make ray-test`: one engine on a local Ray, then two: asked, left, and killed; exit code 1 if one row fails.

It needs the extra `ray`, and port 8000.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine.backends.remote import RemoteEngine
from bot.util.clock import MonotonicClock
from tests.chaos.processes import until

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8000/v1"
REPLICAS = 2
QUESTIONS = 120
# A bot is one client for all its users, whom it limits itself.
UNLIMITED = dict.fromkeys(
    ("BOT_LIMITS__REQUESTS_PER_MINUTE", "BOT_LIMITS__TOKENS_PER_HOUR", "BOT_LIMITS__WAITING_PER_USER"), "0"
)
_QUESTIONS = ("hello", "who are you?", "what is an adapter?", "你好", "how do I clear the history?")
# Seconds for a start, or for an answer on a busy machine.
_TIMEOUT = 300.0
# Seconds of CPU in a second that an engine without work may use: heartbeats of Ray.
_IDLE = 0.2


def replicas() -> list[psutil.Process]:
    """Return the processes of the engines."""
    running = psutil.process_iter(["cmdline"])
    return [each for each in running if "ServeReplica:default:engine" in " ".join(each.info["cmdline"] or ())]


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@asynccontextmanager
async def cluster(count: int) -> AsyncIterator[RemoteEngine]:
    """Run so many engines, and a bot's remote engine on them."""
    serve = Path(sys.executable).with_name("serve")
    command = [str(serve), "run", "deploy.ray.engine:app", f"replicas={count}", "cpus=0.5"]
    env = os.environ | UNLIMITED | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(  # noqa: ASYNC220  # it is stopped, not awaited
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_TIMEOUT), httpx.AsyncClient() as http:
            while True:
                with suppress(httpx.HTTPError):
                    if (await http.get(f"{URL}/models")).status_code == httpx.codes.OK and len(replicas()) == count:
                        break
                assert running.poll() is None, f"serve run has ended with {running.returncode}"
                await asyncio.sleep(0.5)
        section = EngineSection(backend="remote", urls=(URL,), model="demo", max_batch_size=16, max_waiting=256)
        async with RemoteEngine(section, MonotonicClock()) as engine:
            yield engine
    finally:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(30)
        subprocess.run([serve.with_name("ray"), "stop", "--force"], check=False, stdout=subprocess.DEVNULL)  # noqa: ASYNC221


def request(number: int, tokens: int = 64) -> ChatRequest:
    question = ChatMessage("user", _QUESTIONS[number % len(_QUESTIONS)])
    return ChatRequest((question,), SamplingParams(temperature=0, max_tokens=tokens), channel=f"room{number % 24}")


async def answer(engine: RemoteEngine, number: int) -> str:
    return "".join([event.text async for event in engine.generate(request(number)) if isinstance(event, Delta)])


@dataclass(frozen=True, slots=True)
class Work:
    """What answering many questions took."""

    answers: list[str]
    seconds: float
    spent: list[float]
    """CPU seconds of each engine."""

    @property
    def rate(self) -> float:
        """Characters per CPU second of the engines; equal answers have equal tokens."""
        return sum(map(len, self.answers)) / sum(self.spent)


async def work(engine: RemoteEngine) -> Work:
    """Ask `QUESTIONS` questions at once, after a first few."""
    await asyncio.gather(*(answer(engine, number) for number in range(len(_QUESTIONS) * REPLICAS)))
    before = {process: cpu_of(process) for process in replicas()}
    began = time.monotonic()
    answers = await asyncio.gather(*(answer(engine, number) for number in range(QUESTIONS)))
    seconds = time.monotonic() - began
    return Work(list(answers), seconds, [cpu_of(process) - cpu for process, cpu in before.items()])


def compare(one: Work, two: Work) -> tuple[bool, str]:
    """Compare two engines with one: the same answers, in equal shares, for the same CPU."""
    share, ratio = max(two.spent) / sum(two.spent), two.rate / one.rate
    told = f"{QUESTIONS} questions in {two.seconds:.1f} s with two engines, {one.seconds:.1f} s with one on "
    told += f"{os.cpu_count()} cores; the larger share {share:.0%}, work per CPU second {ratio:.2f} times that of one"
    return two.answers == one.answers and all(one.answers) and share <= 0.55 and ratio >= 0.95, told


async def measure_leaving(engine: RemoteEngine) -> tuple[bool, str]:
    """Leave long answers: the engines stop computing."""
    for number in range(4):
        async with aclosing(engine.generate(request(number, tokens=500))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
    await asyncio.sleep(1.0)
    before = {process: cpu_of(process) for process in replicas()}
    await asyncio.sleep(2.0)
    spent = max(cpu_of(process) - cpu for process, cpu in before.items()) / 2
    return spent <= _IDLE, f"1 s after four streams were left, an engine uses {spent:.2f} CPU seconds a second"


async def measure_kill(engine: RemoteEngine, seed: int) -> tuple[bool, str]:
    """Kill an engine while it answers: each question is answered, or told to be broken off."""
    chance = random.Random(seed)
    asking = [asyncio.ensure_future(answer(engine, number)) for number in range(24)]
    await asyncio.sleep(chance.uniform(0.1, 0.5))
    chance.choice(replicas()).kill()
    found = await asyncio.gather(*asking, return_exceptions=True)
    failed = sorted({type(each).__name__ for each in found if isinstance(each, BaseException)})
    whole = sum(isinstance(each, str) for each in found)
    await until(lambda: len(replicas()) == REPLICAS, _TIMEOUT)
    again = await answer(engine, 0)
    told = f"of 24 answers {whole} whole, {len(found) - whole} told to be broken off ({', '.join(failed) or 'none'})"
    return set(failed) <= {"AnswerBrokenOff"} and bool(again), f"{told}; Ray has started another engine"


async def main() -> None:
    async with asyncio.timeout(6 * _TIMEOUT):
        async with cluster(1) as engine:
            one = await work(engine)
        async with cluster(REPLICAS) as engine:
            rows = [("shares", *compare(one, await work(engine)))]
            rows += [("leaving", *await measure_leaving(engine)), ("kill", *await measure_kill(engine, seed=7))]
    for title, is_kept, told in rows:
        print(f"{title:8} {'ok' if is_kept else 'FAILED':7} {told}")
    sys.exit(0 if all(is_kept for _, is_kept, _ in rows) else 1)


if __name__ == "__main__":
    asyncio.run(main())

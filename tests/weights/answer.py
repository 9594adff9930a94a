"""Load a checkpoint in a separate process, answer one request, and print the peak memory."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import aclosing
from pathlib import Path

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Finished, SamplingParams
from bot.engine.backends.chatglm import open_engine

TOKENS = 4
_POLL_SECONDS = 0.005


class PeakMemory:
    """Samples this process's RssAnon in a thread; `peak` is in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, 1024 * int(status.partition("RssAnon:")[2].split()[0]))


async def answer(options: EngineSection) -> dict[str, float | str | int]:
    memory, began = PeakMemory(), time.perf_counter()
    async with open_engine(options) as engine:
        loaded, after_loading = time.perf_counter(), memory.peak
        request = ChatRequest((ChatMessage("user", "word7 word28"),), SamplingParams(max_tokens=TOKENS, seed=1))
        tokens = 0
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    tokens = event.usage.completion_tokens
        return {
            "tokens": tokens,
            "quantization": engine.info.quantization,
            "device": engine.info.device,
            "load_seconds": loaded - began,
            "answer_seconds": time.perf_counter() - loaded,
            "load_peak": after_loading,
            "peak": memory.finish(),
        }


def main(folder: str, quantization: str) -> None:
    options = EngineSection.model_validate({"model": folder, "quantization": quantization, "device": "cpu"})
    sys.stdout.write(json.dumps(asyncio.run(answer(options))))


if __name__ == "__main__":
    main(*sys.argv[1:])

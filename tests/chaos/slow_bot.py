"""The bot with a slow engine: `python -m tests.chaos.slow_bot run`.

SLOW_LOADING, SLOW_TOKENS and SLOW_STEP are seconds: for loading the echo engine, for each of
its tokens, and for each uninterruptible step of a model.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

from bot.cli import main
from bot.domain import ChatRequest, EngineEvent
from bot.engine.backends import echo
from bot.util.shutdown import exit_on_sigterm


def _seconds(name: str) -> float:
    return float(os.environ.get(name, "0"))


class SlowEcho(echo.EchoEngine):
    async def __aenter__(self) -> Self:
        await asyncio.sleep(_seconds("SLOW_LOADING"))
        return await super().__aenter__()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event
                await asyncio.sleep(_seconds("SLOW_TOKENS"))


def _slow_down() -> None:
    echo.EchoEngine = SlowEcho  # type: ignore[misc]  # this process exists for the test
    if _seconds("SLOW_STEP"):
        from bot.engine.serving.runner import Runner

        run = Runner.run

        def delayed_run(self: Runner, *args: Any) -> Any:
            time.sleep(_seconds("SLOW_STEP"))
            return run(self, *args)

        Runner.run = delayed_run  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    exit_on_sigterm()
    _slow_down()
    main()

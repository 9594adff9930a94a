"""The bot with a model whose tokens are counted as they are made: `python -m tests.chaos.ledger_bot run`.

The file TOKENS has a byte for each token, also for those of an answer that a kill took away.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from bot.cli import main
from bot.domain import ChatRequest, Delta, EngineEvent, Finished
from bot.engine.backends import echo
from bot.util.shutdown import exit_on_sigterm

# Per token, so that kills meet answers under way, and quotas several at once.
_SECONDS = 0.004


class MeteredEcho(echo.EchoEngine):
    """Writes each token to the file before it shows it."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        made = 0
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                now = made
                if isinstance(event, Delta):
                    now = made + 1
                elif isinstance(event, Finished):
                    now = event.usage.completion_tokens
                _append(now - made)
                made = now
                yield event
                if isinstance(event, Delta):
                    await asyncio.sleep(_SECONDS)


def _append(tokens: int) -> None:
    os.write(_file, b"." * tokens)


if __name__ == "__main__":
    exit_on_sigterm()
    _file = os.open(os.environ["TOKENS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    echo.EchoEngine = MeteredEcho  # type: ignore[misc]  # this process exists for the test
    main()

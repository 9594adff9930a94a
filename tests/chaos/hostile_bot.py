"""The bot with an engine that answers "hostile 7" with text number 7: `python -m tests.chaos.hostile_bot run`.

HOSTILE_COUNT and HOSTILE_SEED choose the texts.
"""

import asyncio
import os
import random
import re
from collections.abc import AsyncGenerator

from bot.cli import main
from bot.domain import ChatRequest, Delta, EngineEvent, Finished, FinishReason, Usage
from bot.engine.backends import echo
from bot.util.shutdown import exit_on_sigterm
from tests.chaos.hostile_texts import hostile_texts

# Deltas of an answer, and seconds between two.
_DELTAS, _PAUSE = 30, 0.02


class HostileEngine(echo.EchoEngine):
    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        found = re.search(r"hostile (\d+)", request.messages[-1].content)
        text = _TEXTS[int(found[1])] if found else "ok"
        chance = random.Random(len(text))
        cuts = sorted(chance.randrange(len(text) + 1) for _ in range(_DELTAS))
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            yield Delta(text[begin:end])
            await asyncio.sleep(_PAUSE)
        yield Finished(FinishReason.STOP, Usage(1, 1))


_TEXTS = list(hostile_texts(int(os.environ.get("HOSTILE_COUNT", "0")), int(os.environ.get("HOSTILE_SEED", "0"))))

if __name__ == "__main__":
    exit_on_sigterm()
    echo.EchoEngine = HostileEngine  # type: ignore[misc]  # this process exists for the test
    main()

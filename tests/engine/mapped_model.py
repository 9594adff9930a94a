"""Load a checkpoint, and print the digest of its logits for each line on standard input."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

from bot.engine.chatglm import mapping
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.loading import load
from bot.engine.serving.base import Batch


def digest(model: ChatGLMForServing) -> str:
    config = model.network.config
    logits = model.forward(Batch((0,), ((5, 75, 301, config.gmask_token_id, config.bos_token_id),), (0,)))
    return hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()


def main(folder: str) -> None:
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    mapping._POLL_SECONDS = 0.01
    model = load(Path(folder), slots=1, device="cpu")
    for _ in sys.stdin:
        print(digest(model), flush=True)  # noqa: T201  # read by the test


if __name__ == "__main__":
    main(*sys.argv[1:])

"""CPU milliseconds of cutting a conversation to the context, with ChatGLM's tokenizer.

python -m benchmarks.prompt_fitting [--turns 100] [--rounds 50] [--context 2048] [--characters 241]

"first" counts every turn, as the first question after a start does; "next" has one new turn.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.store_data import FIRST, channel
from bot.chat.prompt import TurnCounts, build_prompt
from bot.chat.settings import ChatSettings
from bot.config.schema import Config
from bot.domain import Answer, Author, ChatMessage, Exchange, IncomingMessage, Kind, Status
from bot.engine.backends.echo import EchoEngine
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from bot.storage.base import History

QUESTION = "How do I read a large file line by line?"
# For answers that differ: a tokenizer may remember words.
WORDS = (Path(__file__).parents[1] / "docs" / "OPERATING.md").read_text(encoding="utf-8").split()
LIMIT = 5.0


class CountingEngine(EchoEngine):
    """ChatGLM's tokenizer without its model."""

    def __init__(self, context_length: int) -> None:
        super().__init__(context_length=context_length)
        self._tokenizer = ChatGLMTokenizer.load(DEMO)

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return len(self._tokenizer.prompt(messages))


def exchange(number: int, characters: int) -> Exchange:
    answer = " ".join(Random(number).choices(WORDS, k=characters))[:characters]
    message = IncomingMessage(str(number), channel(1), Author("slack", "U1", "Mei"), f"{number}. {QUESTION}", FIRST)
    return Exchange(number, message, Kind.CHAT, Status.DELIVERED, 1, Answer(f"{number}. {answer}"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the CPU time of fitting a prompt into the context.")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--context", type=int, default=2048, help="of the model, in tokens")
    parser.add_argument("--characters", type=int, default=241, help="of each answer")
    options = parser.parse_args()
    engine, settings, counts = CountingEngine(options.context), ChatSettings.of(Config()), TurnCounts()
    milliseconds, left_out = [], 0
    for number in range(options.rounds + 1):
        past = tuple(exchange(each, options.characters) for each in range(number, number + options.turns))
        began = time.thread_time()
        prompt = build_prompt(History(past, exchange(-1, options.characters)), settings, engine, counts)
        milliseconds.append(1000 * (time.thread_time() - began))
        left_out = prompt.left_out
    first, *later = milliseconds
    print(
        f"{options.turns} turns, {left_out} of them left out: first {first:.2f} ms, next {median(later):.2f} ms", end=""
    )
    print(f" (≤ {LIMIT:g} ms) {'ok' if median(later) <= LIMIT else 'MISSED'}")


if __name__ == "__main__":
    main()

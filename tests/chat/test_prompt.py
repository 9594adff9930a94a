"""How a prompt is cut to the context."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.chat.prompt import TurnCounts, build_prompt
from bot.chat.settings import ChatSettings
from bot.config.schema import Config, ConversationSection
from bot.domain import Answer, Author, ChannelKey, ChatMessage, Exchange, IncomingMessage, Kind, Status
from bot.engine.backends.echo import EchoEngine
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from bot.storage.base import History

TOKENIZER = ChatGLMTokenizer.load(DEMO)
CONTEXT = 300
texts = st.text("a b中。,1\n", min_size=1, max_size=120).filter(str.strip)


class CountingEngine(EchoEngine):
    """An engine that generates nothing; its tokens are ChatGLM's."""

    def __init__(self) -> None:
        super().__init__(context_length=CONTEXT)
        self.counted: list[tuple[ChatMessage, ...]] = []

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        self.counted.append(tuple(messages))
        return len(TOKENIZER.prompt(messages))


def asked(number: int, text: str, answer: str | None = None) -> Exchange:
    message = IncomingMessage(
        str(number), ChannelKey("slack", "C1"), Author("slack", "U1", "Mei"), text, datetime(2026, 1, 1, tzinfo=UTC)
    )
    status = Status.OPEN if answer is None else Status.DELIVERED
    return Exchange(number, message, Kind.CHAT, status, 1, None if answer is None else Answer(answer))


def conversation(said: Sequence[str]) -> History:
    *past, question = said
    turns = [asked(number, text, answer) for number, (text, answer) in enumerate(pairwise(past))]
    return History(tuple(turns), asked(len(said), question))


@given(said=st.lists(texts, min_size=1, max_size=40), system=st.sampled_from(["", "Be brief.\n"]))
@settings(max_examples=60)
def test_as_many_turns_are_kept_as_fit(said: list[str], system: str) -> None:
    engine, history = CountingEngine(), conversation(said)
    config = Config(conversation=ConversationSection(system_prompt=system, answer_tokens=50))
    prompt = build_prompt(history, ChatSettings.of(config), engine)
    assert prompt.left_out == 0 or engine.count_tokens(_whole(history, prompt.left_out - 1, system)) > CONTEXT - 50
    turns = len(history.exchanges) - prompt.left_out
    assert turns == 0 or engine.count_tokens(prompt.messages) <= CONTEXT - 50


def _whole(history: History, oldest: int, system: str) -> list[ChatMessage]:
    messages = [ChatMessage("system", system)] if system else []
    for past in history.exchanges[oldest:]:
        assert past.answer is not None
        messages += ChatMessage("user", past.message.text), ChatMessage("assistant", past.answer.text)
    return [*messages, ChatMessage("user", history.now.message.text)]


def test_a_turn_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counts = CountingEngine(), TurnCounts()
    said = [f"question number {number}, and some words" for number in range(40)]
    for count in range(2, 41):
        engine.counted.clear()
        build_prompt(conversation(said[:count]), ChatSettings.of(Config()), engine, counts)
        longer = [each for each in engine.counted if len(each) == 3 and each[0].content in said]
        assert len(longer) <= 2, "the new turn, and a prompt of one turn"
        assert len(engine.counted) <= 9

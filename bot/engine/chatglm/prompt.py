"""Prompt format of ChatGLM-6B."""

import re
from collections.abc import Iterator, Sequence

from bot.domain import ChatMessage

_CHINESE = re.compile("[\u4e00-\u9fff]")


def render(messages: Sequence[ChatMessage]) -> str:
    """Format a chat as one prompt.

    A single question is used as is; otherwise every question is a round, numbered from 0.
    Nothing is trimmed or escaped.

    The model has no system role: system messages become a first round, acknowledged in
    their language.  Consecutive messages of one role are joined by newlines.  An answer
    without a question, and a chat that ends with an answer, get an empty question.

    >>> render([ChatMessage("user", "你好")])
    '你好'
    >>> print(render([ChatMessage("system", "Be brief."), ChatMessage("user", "Who are you?")]))
    [Round 0]
    问：Be brief.
    答：OK.
    [Round 1]
    问：Who are you?
    答：
    """
    rounds = [*_opening(messages), *_rounds(messages)]
    if rounds and rounds[-1][1] is None:
        question = rounds.pop()[0]
    else:
        question = ""
    if not rounds:
        return question
    history = "".join(f"[Round {i}]\n问：{asked}\n答：{answer}\n" for i, (asked, answer) in enumerate(rounds))
    return f"{history}[Round {len(rounds)}]\n问：{question}\n答："


def _opening(messages: Sequence[ChatMessage]) -> list[tuple[str, str | None]]:
    system = "\n".join(message.content for message in messages if message.role == "system" and message.content)
    if not system:
        return []
    return [(system, "好的。" if _CHINESE.search(system) else "OK.")]


def _rounds(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, str | None]]:
    """Pair questions with answers; the last answer may be None."""
    question: list[str] = []
    answer: list[str] = []
    for message in messages:
        if message.role == "assistant":
            answer.append(message.content)
        elif message.role == "user":
            if answer:
                yield "\n".join(question), "\n".join(answer)
                question, answer = [], []
            question.append(message.content)
    if question or answer:
        yield "\n".join(question), "\n".join(answer) if answer else None

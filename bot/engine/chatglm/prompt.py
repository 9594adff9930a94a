"""The rounds of a chat, written as ChatGLM-6B was trained to read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bot.domain import ChatMessage

_CHINESE = re.compile("[\u4e00-\u9fff]")


def render(messages: Sequence[ChatMessage]) -> str:
    """Write a chat as the text of one prompt.

    A lone question stands as it is; after the first answer every question is a
    numbered round, counted from 0.  Nothing is trimmed or escaped.

    The model knows no system role.  System messages, wherever they stand, become
    one opening round: they are what was asked first, and agreed to in their own
    language.  Messages of one role in a row are one message of several lines; an
    answer to nothing answers an empty question; a chat that ends with an answer
    asks an empty one.

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
    """Pair questions with answers; only the last pair may still lack its answer."""
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

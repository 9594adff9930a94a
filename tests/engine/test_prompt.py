"""The prompt format against the published one, and unusual chats."""

import json
from pathlib import Path
from typing import Any

import pytest

from bot.domain import ChatMessage, Role
from bot.engine.chatglm.prompt import render
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
CHATS: list[dict[str, Any]] = json.loads((GOLDEN / "chat_golden.json").read_text(encoding="utf-8"))["chat"]


def chat(*turns: tuple[Role, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in turns]


def messages(case: dict[str, Any]) -> list[ChatMessage]:
    rounds = [chat(("user", query), ("assistant", response)) for query, response in case["history"] or []]
    return [*(message for pair in rounds for message in pair), ChatMessage("user", case["query"])]


@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["note"])
def test_every_golden_chat_has_the_published_prompt(case: dict[str, Any]) -> None:
    assert render(messages(case)) == case["prompt_text"]
    ids = ChatGLMTokenizer.load(GOLDEN).prompt(messages(case))
    if "<sop>" in case["query"]:
        # User text has no control ids: the only <sop> is the final one.
        assert case["prompt_ids"].count(644) == 2
        assert ids.index(644) == len(ids) - 1
    else:
        assert ids == case["prompt_ids"]


def test_a_first_question_is_used_as_is_and_later_ones_are_numbered_from_0() -> None:
    first = chat(("user", "a"))
    assert render(first) == "a"
    second = [*first, *chat(("assistant", "b"), ("user", "c"))]
    assert render(second) == "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答："


@pytest.mark.parametrize(("system", "agreed"), [("Be brief.", "OK."), ("请简短回答。", "好的。")])
def test_a_system_message_becomes_a_first_round_acknowledged_in_its_language(system: str, agreed: str) -> None:
    question = chat(("system", system), ("user", "a"))
    assert render(question) == f"[Round 0]\n问：{system}\n答：{agreed}\n[Round 1]\n问：a\n答："


def test_system_messages_are_merged_into_the_first_round() -> None:
    scattered = chat(("user", "a"), ("system", "one"), ("assistant", "b"), ("system", "two"), ("user", "c"))
    assert render(scattered) == render(chat(("system", "one\ntwo"), ("user", "a"), ("assistant", "b"), ("user", "c")))


def test_an_empty_system_message_is_ignored() -> None:
    assert render(chat(("system", ""), ("user", "a"))) == "a"


def test_consecutive_messages_of_one_role_are_joined_by_newlines() -> None:
    assert render(chat(("user", "a"), ("user", "b"))) == "a\nb"
    answered = chat(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"))
    assert render(answered) == "[Round 0]\n问：a\n答：b\nc\n[Round 1]\n问：d\n答："


def test_a_chat_that_begins_or_ends_with_an_answer_gets_empty_questions() -> None:
    assert render(chat(("assistant", "hi"))) == "[Round 0]\n问：\n答：hi\n[Round 1]\n问：\n答："


@pytest.mark.parametrize("nothing", [[], chat(("user", "")), chat(("system", ""))])
def test_an_empty_chat_is_an_empty_prompt(nothing: list[ChatMessage]) -> None:
    assert render(nothing) == ""


def test_nothing_is_trimmed() -> None:
    assert render(chat(("user", " a\n"))) == " a\n"

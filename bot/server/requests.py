"""Read requests: bounded bodies, JSON objects, fields of the right type, histories."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from bot.domain import ChatMessage
from bot.server.errors import ApiError, bad_request

# Bytes of a body.
LONGEST_BODY = 2**20
# Messages of a conversation, as at Azure's OpenAI: the event loop reads them, and short ones fill a body with 240,000.
MOST_MESSAGES = 2048

# JSON can write half a character, which is in no text: each becomes "?".
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_MISSING = object()

# As servers built on pydantic read a boolean, besides JSON's own: 1, "1", "yes".
_BOOLEANS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object of a body, whatever its content type says.

    Raises:
        ApiError: It is too long, no JSON, or no object.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise ApiError(413, f"the body is longer than {LONGEST_BODY} bytes")
    try:
        # Of bytes, json.loads takes half a character as it is, which no response can be written with.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (RecursionError, ValueError):
        raise bad_request("the body is not JSON") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object")
    if not _LONE_SURROGATE.search(body):
        return value
    clean: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return clean


def text(body: Mapping[str, Any], name: str, default: object = _MISSING) -> str:
    """Return a field that is a string; null counts as missing."""
    value = body.get(name)
    if value is None and default is not _MISSING:
        value = default
    if not isinstance(value, str):
        raise bad_request(f"{name} is missing or not a string", name)
    return value


def number(body: Mapping[str, Any], name: str, default: float, lowest: float, highest: float) -> float:
    """Return a field that is a number; null counts as missing."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise bad_request(f"{name} is not a number from {lowest:g} to {highest:g}", name)
    return float(value)


def integer(body: Mapping[str, Any], name: str, default: int | None, lowest: int = -(2**63)) -> int | None:
    """Return a field that is a whole number of 64 bits; null counts as missing."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < 2**63:
        raise bad_request(f"{name} is not a whole number of at least {lowest}", name)
    return value


def boolean(body: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false; null counts as false, and 1 or "yes" is true."""
    value = body.get(name)
    if isinstance(value, bool) or value is None:
        return bool(value)
    found = _BOOLEANS.get(str(value).lower())
    if found is None:
        raise bad_request(f"{name} is not true or false", name)
    return found


def history(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the turns of a history: pairs of question and answer.

    One client of the GLM API sends its turns as one flat list, [[q1, a1, q2, a2]].
    """
    turns = body.get("history")
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise bad_request("history is not a list of [question, answer]", "history")
    flat = turns[0] if len(turns) == 1 and isinstance(turns[0], list) else []
    is_flat = len(flat) > 2 and len(flat) % 2 == 0
    messages = len(flat) if is_flat else 2 * len(turns)
    if messages > MOST_MESSAGES:
        raise bad_request(f"history has {messages // 2} turns; the limit is {MOST_MESSAGES // 2}", "history")
    if is_flat:
        turns = [flat[start : start + 2] for start in range(0, len(flat), 2)]
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(each, str) for each in turn):
            raise bad_request("history is not a list of [question, answer], two strings each", "history")
    return [(question, answer) for question, answer in turns]


def chat_of(turns: Sequence[tuple[str, str]], question: str) -> tuple[ChatMessage, ...]:
    earlier = [
        message
        for asked, answered in turns
        for message in (ChatMessage("user", asked), ChatMessage("assistant", answered))
    ]
    return (*earlier, ChatMessage("user", question))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")

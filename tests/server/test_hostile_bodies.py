"""Fuzzer of all APIs: whatever the body, the answer comes, is as the OpenAPI document says, and is no fault of the server.

`FUZZ=2000 python -m pytest tests/server/test_hostile_bodies.py` runs 2000 bodies per path.
"""

import json
import os
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.config.schema import LimitsSection
from tests.harness.openapi import check_response

EXAMPLES: dict[str, dict[str, Any]] = {
    "/": {"prompt": "a", "history": [["b", "c"]], "max_length": 99, "top_p": 0.7, "temperature": 0.95},
    "/chat": {"prompt": "a", "history": [], "max_length": 99, "request_id": "1", "query": "b"},
    "/get_response": {"request_id": "1"},
    "/chat-stream": {"prompt": "a", "history": [["b", "c", "d", "e"]], "max_length": 99},
    "/tokenize": {"prompt": "a", "max_length": 9},
    "/v1/chat/completions": {
        "model": "scripted",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": "Mei"}],
        "temperature": 1,
        "top_p": 1,
        "top_k": 5,
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "stop": ["a"],
        "n": 1,
        "seed": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "response_format": {"type": "text"},
        "logit_bias": {},
    },
    "/v1/completions": {"prompt": "a", "max_tokens": 9, "stop": "a", "n": 1, "stream": False, "best_of": 1},
}
BODIES = int(os.environ.get("FUZZ", "30"))

# Half characters too, which JSON can write.
TEXTS = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\u2028", "<sop>", "x" * 600])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | TEXTS
    | st.sampled_from([0, 1, -1, 2**63, 1e308, "text", "user", "assistant", "system"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner),
    max_leaves=12,
)


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection(requests_per_minute=0, tokens_per_hour=0, waiting_per_user=0)


@st.composite
def bodies(draw: st.DrawFn, example: dict[str, Any]) -> bytes:
    """Draw an example with fields left out and others replaced, or any JSON."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=30) | st.builds(lambda value: json.dumps(value).encode(), VALUES))
    kept = draw(st.sets(st.sampled_from(sorted(example))))
    body = {name: draw(VALUES) if draw(st.booleans()) else example[name] for name in kept}
    return json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("path", EXAMPLES)
@settings(deadline=None, max_examples=BODIES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_body_is_a_fault_of_the_server(http: aiohttp.ClientSession, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(EXAMPLES[path]))
    async with http.post(path, data=body) as response:
        answer = await response.text()
        assert response.status in {200, 400, 404, 429}
        if response.content_type == "application/json":
            check_response(path, response.status, json.loads(answer))
        else:
            assert response.content_type == "text/event-stream"


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize("text", [b"\xed\xb2\x80", b"a\xff", b"\xc0\xae"], ids=["half", "latin", "overlong"])
async def test_a_body_that_is_not_utf_8_is_refused(http: aiohttp.ClientSession, path: str, text: bytes) -> None:
    for name in EXAMPLES[path]:
        async with http.post(path, data=b'{"%s": "%s"}' % (name.encode(), text)) as response:
            answer = await response.text()
            assert "not JSON" in answer
            assert response.status == (200 if path == "/get_response" else 400)


async def test_a_byte_order_mark_is_no_part_of_the_body(http: aiohttp.ClientSession) -> None:
    async with http.post("/", data='{"prompt": "天气"}'.encode("utf-8-sig")) as response:
        assert (await response.json())["history"][0][0] == "天气"

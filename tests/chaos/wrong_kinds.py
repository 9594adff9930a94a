"""The kinds of wrong answers: bodies, framing, redirects, statuses, rate limits."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.chaos.raw_answer import RawAnswer, head

Operation = Literal["send", "edit", "last edit", "catch-up"]
WRITING: tuple[Operation, ...] = ("send", "edit", "last edit")
_ALL: tuple[Operation, ...] = (*WRITING, "catch-up")

_HTML = b"<html><body><h1>Service temporarily unavailable</h1></body></html>"
_DEEP = b'{"a":' * 50_000 + b"[" * 50_000
_HUGE = 5_000_000
_JSON = {"Content-Type": "application/json"}
# Seconds between two bytes of an answer that drips, and their number: longer than any call may take.
_DRIP, _DROPS = 0.02, 1500


@dataclass(frozen=True, slots=True)
class Genuine:
    """What the server really answered, None before its work; `elsewhere` is another host's URL."""

    platform: str
    operation: Operation
    body: bytes | None
    elsewhere: str
    chance: random.Random

    @property
    def value(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass(frozen=True, slots=True)
class Kind:
    """A wrong answer, given to the first `times` calls.

    With `after` the server does its work first.  `is_undone` takes the work back, so that
    only the answer remains.  Calls that read have no work: there only the answer is wrong.
    """

    name: str
    answer: Callable[[Genuine], web.StreamResponse]
    after: bool = False
    times: int = 2
    is_undone: bool = False
    operations: tuple[Operation, ...] = field(default=_ALL)


# An answer in the platform's own words whose cause no client can know, and an answer that is not true.
HOPELESS = ("an unknown 400", "ok without the deed")


def kinds() -> Iterator[Kind]:
    """Return all kinds; their names are unique."""
    for name, body in _BODIES.items():
        for after in (False, True):
            yield Kind(_timed(name, after), _says(body), after, operations=WRITING if after else _ALL)
    for name, damage in _DAMAGES.items():
        yield Kind(name, damage, after=True)
    for status in (301, 302, 303, 307, 308):
        yield Kind(f"{status} to another host", _redirect(status))
    yield Kind("307 to another path", lambda genuine: RawAnswer([head(307, {"Location": "/nowhere"}, length=0)]))
    for status, code in itertools.product((401, 403, 404), ("platform", "HTML")):
        yield Kind(f"{status} once ({code})", _refusal(status) if code == "platform" else _status(status), times=1)
    for status in (408, 409, 413, 418, 421):
        yield Kind(f"{status}", _status(status), times=1)
    for status, after in itertools.product((500, 502, 503, 504, 520), (False, True)):
        yield Kind(_timed(f"{status}", after), _status(status), after, operations=WRITING if after else _ALL)
    for value in ("1e9", "1e300", "inf", "nan", "soon", "0", "-1", "0.0001", ""):
        yield Kind(f"429, Retry-After {value or 'missing'}", rate_limit(value))
    yield Kind("an error with status 200", lambda genuine: _json(_BUSY[genuine.platform]))
    yield Kind("an unknown 400", lambda genuine: _json(_UNKNOWN[genuine.platform], _status_of_400(genuine)), times=1)
    yield Kind("ok without the deed", _as_it_is, after=True, times=1, is_undone=True, operations=WRITING)


def _timed(name: str, after: bool) -> str:
    return f"{name} after the deed" if after else name


def rate_limit(value: str) -> Callable[[Genuine], web.StreamResponse]:
    """Return a 429 with this Retry-After, in the header and where the platform has it in the body."""
    header = {"Retry-After": value} if value else {}
    # JSON has no infinity, but Python's parser reads it; a word stays a string.
    number = json.dumps(value) if value in ("soon", "") else value.replace("inf", "Infinity").replace("nan", "NaN")

    def answer(genuine: Genuine) -> web.StreamResponse:
        body = {
            "discord": '{"message": "You are being rate limited.", "global": false, "retry_after": NUMBER}',
            "telegram": '{"ok": false, "error_code": 429, "description": "Too Many Requests", '
            '"parameters": {"retry_after": NUMBER}}',
            "slack": '{"ok": false, "error": "ratelimited"}',
        }[genuine.platform]
        body = body.replace("NUMBER", number) if value else body.replace(', "retry_after": NUMBER', "")
        body = body.replace(', "parameters": {"retry_after": NUMBER}', "")
        return _response(body.encode(), 429, {**_JSON, "Via": "1.1 google", **header})

    return answer


def _says(body: bytes) -> Callable[[Genuine], web.StreamResponse]:
    kind = "text/html" if body.startswith(b"<") else "application/json"
    return lambda genuine: _response(body, 200, {"Content-Type": kind})


_BODIES = {
    "HTML": _HTML,
    "an empty body": b"",
    "null": b"null",
    "[]": b"[]",
    "{}": b"{}",
    '""': b'""',
    "a number": b"7",
    "JSON 100,000 deep": _DEEP,
    "5 MB of HTML": b"<p>" * (_HUGE // 3),
}


def _status(status: int) -> Callable[[Genuine], web.StreamResponse]:
    return lambda genuine: _response(_HTML, status, {"Content-Type": "text/html", "Via": "1.1 proxy"})


_REFUSALS: dict[str, dict[int, tuple[int, Any]]] = {
    "discord": {
        401: (401, {"message": "401: Unauthorized", "code": 0}),
        403: (403, {"message": "Missing Permissions", "code": 50013}),
        404: (404, {"message": "404: Not Found", "code": 0}),
    },
    "telegram": {
        401: (401, {"ok": False, "error_code": 401, "description": "Unauthorized"}),
        403: (403, {"ok": False, "error_code": 403, "description": "Forbidden: not enough rights to send messages"}),
        404: (404, {"ok": False, "error_code": 404, "description": "Not Found"}),
    },
    "slack": {
        401: (200, {"ok": False, "error": "invalid_auth"}),
        403: (200, {"ok": False, "error": "restricted_action"}),
        404: (404, {"ok": False, "error": "unknown_method"}),
    },
}
_BUSY = {
    "discord": {"message": "500: Internal Server Error", "code": 0},
    "telegram": {"ok": False, "error_code": 500, "description": "Internal Server Error"},
    "slack": {"ok": False, "error": "internal_error"},
}
_UNKNOWN = {
    "discord": {"message": "Something new", "code": 987654},
    "telegram": {"ok": False, "error_code": 400, "description": "Bad Request: SOMETHING_NEW"},
    "slack": {"ok": False, "error": "something_new"},
}


def _refusal(status: int) -> Callable[[Genuine], web.StreamResponse]:
    def answer(genuine: Genuine) -> web.StreamResponse:
        real, body = _REFUSALS[genuine.platform][status]
        return _json(body, real)

    return answer


def _status_of_400(genuine: Genuine) -> int:
    return 200 if genuine.platform == "slack" else 400


def _redirect(status: int) -> Callable[[Genuine], web.StreamResponse]:
    return lambda genuine: RawAnswer([head(status, {"Location": f"{genuine.elsewhere}/elsewhere"}, length=0)])


def _response(body: bytes, status: int, headers: dict[str, str]) -> web.StreamResponse:
    return RawAnswer([head(status, headers, length=len(body)), body])


def _json(value: Any, status: int = 200) -> web.StreamResponse:
    return _response(json.dumps(value).encode(), status, _JSON)


# Damages of the real answer.


def _body(genuine: Genuine) -> bytes:
    assert genuine.body is not None, "the server has done its work"
    return genuine.body


def _as_it_is(genuine: Genuine) -> web.StreamResponse:
    return _response(_body(genuine), 200, _JSON)


def _truncated(genuine: Genuine) -> web.StreamResponse:
    body = _body(genuine)
    return _response(body[: genuine.chance.randrange(len(body))], 200, _JSON)


def _typed(kind: str) -> Callable[[Genuine], web.StreamResponse]:
    return lambda genuine: _response(_body(genuine), 200, {"Content-Type": kind})


def _invalid_utf8(genuine: Genuine) -> web.StreamResponse:
    at = _body(genuine).index(b'"') + 1  # within the first key
    return _response(_body(genuine)[:at] + b"\xff\xfe" + _body(genuine)[at:], 200, _JSON)


def _identity(genuine: Genuine) -> tuple[str, ...]:
    """Return the path to what the answer is read for: the id of a message, or the messages themselves."""
    if genuine.operation == "catch-up":
        return {"discord": (), "telegram": ("result",), "slack": ("messages",)}[genuine.platform]
    return {"discord": ("id",), "telegram": ("result", "message_id"), "slack": ("ts",)}[genuine.platform]


def _replaced(new: str | None) -> Callable[[Genuine], web.StreamResponse]:
    """Replace the id by other JSON, or remove it."""

    def answer(genuine: Genuine) -> web.StreamResponse:
        value, path = genuine.value, _identity(genuine)
        if not path:
            return _response((new or "{}").encode(), 200, _JSON)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        if new is not None:
            holder[path[-1]] = "THE NEW ONE"
        return _response(json.dumps(value).replace('"THE NEW ONE"', new or "").encode(), 200, _JSON)

    return answer


def _duplicate_keys(genuine: Genuine) -> web.StreamResponse:
    body = _body(genuine)
    twice = b'{"id": null, "ok": false, "ts": 7, "result": [], "messages": {}, ' + body[1:]
    return _response(twice if body.startswith(b"{") else body, 200, _JSON)


def _padded(genuine: Genuine) -> web.StreamResponse:
    return _response(b" " * _HUGE + _body(genuine), 200, _JSON)


def _broken_gzip(genuine: Genuine) -> web.StreamResponse:
    return _response(b"\x1f\x8b\x08\x00" + genuine.chance.randbytes(200), 200, {**_JSON, "Content-Encoding": "gzip"})


def _length(more: int, end: Any = "close") -> Callable[[Genuine], web.StreamResponse]:
    def answer(genuine: Genuine) -> web.StreamResponse:
        return RawAnswer([head(200, _JSON, length=len(_body(genuine)) + more), _body(genuine)], end)

    return answer


def _chunked(last: bytes) -> Callable[[Genuine], web.StreamResponse]:
    def answer(genuine: Genuine) -> web.StreamResponse:
        body = _body(genuine)[:20]
        first = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        return RawAnswer([head(200, {**_JSON, "Transfer-Encoding": "chunked"}), first + last], "close")

    return answer


def _dripping_body(genuine: Genuine) -> web.StreamResponse:
    drops = itertools.repeat(b" ", _DROPS)
    return RawAnswer(itertools.chain([head(200, _JSON, length=2 * _DROPS)], drops), "close", _DRIP)


def _dripping_headers(genuine: Genuine) -> web.StreamResponse:
    drops = (f"X-{number}: drip\r\n".encode() for number in range(_DROPS))
    return RawAnswer(itertools.chain([b"HTTP/1.1 200 OK\r\n"], drops), "close", _DRIP)


def _hints_first(genuine: Genuine) -> web.StreamResponse:
    body = _body(genuine)
    return RawAnswer([head(103, {"Link": "</a>; rel=preload"}), head(200, _JSON, length=len(body)), body])


_DAMAGES: dict[str, Callable[[Genuine], web.StreamResponse]] = {
    "truncated at a random byte": _truncated,
    "content type text/html": _typed("text/html"),
    "charset utf-16": _typed("application/json; charset=utf-16"),
    "charset that does not exist": _typed("application/json; charset=klingon"),
    "invalid UTF-8": _invalid_utf8,
    "NaN": _replaced("NaN"),
    "-Infinity": _replaced("-Infinity"),
    "id missing": _replaced(None),
    "id null": _replaced("null"),
    "id of a wrong type": _replaced('{"a": []}'),
    "duplicate keys": _duplicate_keys,
    "5 MB of spaces first": _padded,
    "broken gzip": _broken_gzip,
    "content-length too long": _length(10),
    "content-length too long, kept open": _length(10, "silent"),
    "content-length too short": _length(-10, "open"),
    "chunked, cut off": _chunked(b""),
    "chunked, a wrong size": _chunked(b"zz\r\n"),
    "reset after the headers": lambda genuine: RawAnswer([head(200, _JSON, length=400)], "reset"),
    "reset without an answer": lambda genuine: RawAnswer([], "reset"),
    "closed without an answer": lambda genuine: RawAnswer([], "close"),
    "silence": lambda genuine: RawAnswer([], "silent"),
    "dripping bytes": _dripping_body,
    "dripping headers": _dripping_headers,
    "100 KB of headers": lambda genuine: RawAnswer([head(200, {**_JSON, "X-Long": "x" * 100_000}, length=0)], "close"),
    "not HTTP": lambda genuine: RawAnswer([b"SSH-2.0-OpenSSH_9.6\r\n"], "close"),
    "103 first": _hints_first,
    "102 and nothing else": lambda genuine: RawAnswer([head(102, {})] * 3, "silent"),
    "204": lambda genuine: RawAnswer([head(204, {})]),
}

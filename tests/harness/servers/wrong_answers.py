"""Wrong answers of an HTTP API that speaks JSON: none of them is what was asked for."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from bot.adapters.response import MOST_BYTES

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
_DEEP = 100_000
_HUGE = MOST_BYTES + 1


def _fixed(body: bytes = b"", status: int = 200, kind: str = "application/json", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, content_type=kind, headers=named)

    return answer


def _raw(*pieces: bytes, drip: bytes = b"") -> Answer:
    """Write bytes to the connection; then drip until the client gives up, or close it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        for piece in pieces:
            transport.write(piece)
        while drip and not transport.is_closing():
            transport.write(drip)
            await asyncio.sleep(0.01)
        transport.close()
        return web.Response()

    return answer


WRONG_ANSWERS: dict[str, Answer] = {
    "a page": _fixed(_HTML, kind="text/html"),
    "a page as JSON": _fixed(_HTML),
    "a page of a proxy": _fixed(_HTML, 403, "text/html"),
    "not found": _fixed(_HTML, 404, "text/html"),
    "bad request": _fixed(b"", 400),
    "proxy login": _fixed(_HTML, 407, "text/html"),
    "timed out": _fixed(b"", 408),
    "too large": _fixed(_HTML, 413, "text/html"),
    "moved": _fixed(b"", 301, Location="/elsewhere"),
    "found": _fixed(_HTML, 302, "text/html", Location="/api/auth.test"),
    "redirect": _fixed(b"", 307, Location="http://127.0.0.1:9/"),
    "not modified": _fixed(b"", 304),
    "server error": _fixed(_HTML, 500, "text/html"),
    "gateway error": _fixed(_HTML, 502, "text/html"),
    "unavailable": _fixed(b"", 503),
    "unknown server error": _fixed(b'{"ok": true}', 599),
    "nothing": _fixed(b""),
    "no content": _fixed(b"", 204),
    "a space": _fixed(b" \n"),
    "null": _fixed(b"null"),
    "a list": _fixed(b"[]"),
    "a list of objects": _fixed(b'[{"ok": true}]'),
    "an object": _fixed(b"{}"),
    "a number": _fixed(b"7"),
    "a text": _fixed(b'"ok"'),
    "a truth": _fixed(b"true"),
    "cut JSON": _fixed(b'{"ok": true, "ts": "17'),
    "two objects": _fixed(b"{}{}"),
    "deep lists": _fixed(b"[" * _DEEP + b"]" * _DEEP),
    "deep objects": _fixed(b'{"ok": ' * _DEEP + b"1" + b"}" * _DEEP),
    "not UTF-8": _fixed(b'{"ok": "\xff\xfe"}'),
    "UTF-16": _fixed('{"ok": false}'.encode("utf-16")),
    "an endless number": _fixed(b'{"ok": ' + b"9" * 10_000 + b"}"),
    "huge": _fixed(b" " * _HUGE),
    "not compressed": _fixed(b"plain", Content_Encoding="gzip"),
    "neither refused nor done": _fixed(json.dumps({"ok": None}).encode()),
    "refused without a reason": _fixed(json.dumps({"ok": False}).encode()),
    "refused for a number": _fixed(json.dumps({"ok": False, "error": 7}).encode()),
    "refused for a list": _fixed(json.dumps({"ok": False, "error": ["a"]}).encode()),
    "refused with a page": _fixed(json.dumps({"ok": False, "error": _HTML.decode() * 1000}).encode()),
    "too many calls": _fixed(b"", 429),
    "too many calls, soon": _fixed(b"", 429, Retry_After="soon"),
    "too many calls, before": _fixed(b"", 429, Retry_After="-1"),
    "cut body": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "cut chunk": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"),
    "bad chunk": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{"),
    "no HTTP": _raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "closed": _raw(),
    "dripping body": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{", drip=b" "),
    "dripping headers": _raw(b"HTTP/1.1 200 OK\r\nX-Slow: ", drip=b"a"),
}

"""Requests that may use the page: from a browser on this machine, and from the page itself."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.adapters.web.access import LOCAL, set_person

# Names under which a browser reaches this machine only.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# What links of other pages may lead to: frames of pages, without anything that was said or done.
_PAGES = ("/", "/admin")
# A proxy adds them: its clients are on other machines.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

_NOT_HERE = (
    "The chat page has no sign-in yet, so it is served on this machine only: open http://127.0.0.1 with the server's "
    "port there, or forward the port, as with ssh -L 8000:127.0.0.1:8000."
)
_NOT_FROM_THERE = "This request does not come from the page itself."

_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PageGuard:
    """Refuses requests from other machines and other pages; adds the headers that protect the page."""

    def __init__(self, app: ASGIApp, not_here: str = _NOT_HERE) -> None:
        """Protect the page; `not_here` is the answer to another machine."""
        self._app = app
        self._not_here = not_here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"], scope["path"], scope.get("client"))
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        set_person(Request(scope), LOCAL)
        await app(scope, receive, protected)

    def _refusal(self, headers: Headers, method: str, path: str, client: Sequence[object] | None) -> str | None:
        host, origin, site = headers.get("Host", ""), headers.get("Origin"), headers.get("Sec-Fetch-Site")
        name, colon, port = host.rpartition(":")
        if (name if colon and port.isdecimal() else host) not in _LOOPBACK or any(map(headers.get, _FORWARDED)):
            return self._not_here
        if client is None or not ipaddress.ip_address(str(client[0])).is_loopback:
            return self._not_here
        if origin is not None:
            is_allowed = origin == f"http://{host}"
        elif method in ("GET", "HEAD"):
            is_allowed = path in _PAGES or site in (None, "none", "same-origin")
        else:
            is_allowed = site == "same-origin"
        return None if is_allowed else _NOT_FROM_THERE

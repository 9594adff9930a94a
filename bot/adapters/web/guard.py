"""Protection of the pages: who may use them, and from where."""

from functools import partial
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.adapters.web.access import LOCAL, set_person
from bot.adapters.web.requests import language_of
from bot.adapters.web.sign_in.arrival import Arrival, Gate
from bot.adapters.web.sign_in.identity import Identity
from bot.chat.i18n import gettext_noop, translator

# What links of other pages may lead to: frames of pages, without anything that was said or done.
PAGES = ("/", "/admin")
SIGN_IN = "/web/signin"
# Open to people who have not signed in: the page for it, and the way back from a provider.
_OPEN = (SIGN_IN, "/web/oidc/start", "/web/oidc/callback")
# Files of the pages, which have no data.
_FILES = (".js", ".css", ".svg")
# Where a page gets its token.
SESSION = "/web/session"

_NOT_HERE = gettext_noop(
    "This page is served on this machine only, because server.public_url is not set: open http://127.0.0.1 with the "
    "server's port there, or forward the port, as with ssh -L 8000:127.0.0.1:8000."
)
_NOT_UNDER_THIS_NAME = gettext_noop("This page has another address: see server.public_url and server.trusted_proxies.")
_NOT_FROM_THERE = gettext_noop("This request does not come from the page itself.")
_ENDED = gettext_noop("Your session has ended. Please sign in again.")

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
    """Refuses requests of other pages and of people who have not signed in; adds the headers that protect the pages.

    It names the person of a request; see `bot.adapters.web.access`.
    """

    def __init__(
        self, app: ASGIApp, not_here: str = "", gate: Gate | None = None, identity: Identity | None = None
    ) -> None:
        """Protect the pages; without `identity` they are for this machine only, and `not_here` is the answer to others."""
        self._app = app
        self._gate = gate or Gate()
        self._identity = identity
        self._not_here = not_here or (_NOT_HERE if identity is None else _NOT_UNDER_THIS_NAME)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        refusal = self._admit(request)
        await (refusal or self._app)(scope, receive, protected)

    def _admit(self, request: Request) -> Response | None:
        """Name the person of the request; return the answer to a request that may not go on."""
        translate = translator(language_of(request, None))
        arrival = self._gate.arrival(request.headers, request.scope.get("client"))
        if arrival is None:
            return PlainTextResponse(translate(self._not_here), 403)
        path, method = request.url.path, request.method
        if not _is_from_page(request.headers, method, path, arrival):
            return PlainTextResponse(translate(_NOT_FROM_THERE), 403)
        request.state.arrival = arrival
        if arrival.is_local or self._identity is None:
            set_person(request, LOCAL)
            return None
        if path in _OPEN or (path.startswith("/web/") and path.endswith(_FILES)):
            return None
        find = partial(self._identity.person, request, arrival)
        person = find()
        if person is None and path in PAGES and method in ("GET", "HEAD"):
            return RedirectResponse(f"{SIGN_IN}?next={quote(path)}", 303)
        if person is None:
            return PlainTextResponse(translate(_ENDED), 401)
        has_token = self._identity.is_own(person, request.headers.get("X-CSRF-Token", ""))
        if method not in ("GET", "HEAD") and path != SESSION and not has_token:
            return PlainTextResponse(translate(_NOT_FROM_THERE), 403)
        set_person(request, person, find)
        return None


def _is_from_page(headers: Headers, method: str, path: str, arrival: Arrival) -> bool:
    """Return whether one of these pages may have sent the request, or a link to one."""
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
    if origin is not None:
        return origin == arrival.origin
    if method in ("GET", "HEAD"):
        return path in PAGES or path in _OPEN or site in (None, "none", "same-origin")
    return site == "same-origin"

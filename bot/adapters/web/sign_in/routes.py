"""The routes with which people sign in and out: a one-time link, OpenID Connect, the end of a session."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from bot.adapters.web.access import person_of
from bot.adapters.web.guard import PAGES, SIGN_IN
from bot.adapters.web.requests import language_of, read_object
from bot.adapters.web.sign_in.arrival import Arrival, Gate
from bot.adapters.web.sign_in.attempts import Attempts
from bot.adapters.web.sign_in.cookies import PersonCookies
from bot.adapters.web.sign_in.identity import Identity
from bot.adapters.web.sign_in.rules import OidcRefused, Provider
from bot.adapters.web.sign_in.words import sign_in_html
from bot.chat.i18n import translator
from bot.chat.settings import ChatSettings
from bot.chat.sign_in import SignIn
from bot.domain import Author
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Bytes of a request to sign in.
_LONGEST_BODY = 4096

FindSettings = Callable[[], ChatSettings | None]


@dataclass(frozen=True, slots=True)
class SignInParts:
    """What signs people in; `home` is the page that a link leads to."""

    links: SignIn
    cookies: PersonCookies
    identity: Identity
    gate: Gate
    clock: Clock
    home: str = "/"
    oidc: Provider | None = None


def sign_in_routes(parts: SignInParts, find_settings: FindSettings) -> list[Route]:
    """Return the routes; `find_settings` returns None while the platform starts or stops."""
    cookies, attempts = parts.cookies, Attempts(parts.clock)

    def signed_in(response: Response, cookie: str) -> Response:
        response.set_cookie(
            cookies.name, cookie, max_age=cookies.max_age, httponly=True, secure=cookies.is_secure, samesite="lax"
        )
        return response

    def shown(request: Request, said: str = "", status: int = 200) -> Response:
        language = language_of(request, find_settings())
        next = _next(request.query_params.get("next"), parts.home)
        page = sign_in_html(language, translator(language), next, has_oidc=parts.oidc is not None, said=said)
        return HTMLResponse(page, status)

    def refusal(request: Request, why: str) -> tuple[int, str]:
        """Count a failure; return a status and the sentence for it, the same for every reason."""
        translate = translator(language_of(request, find_settings()))
        client = _client(request)
        are_too_many = attempts.are_too_many(client)
        attempts.failed(client, why)
        if are_too_many:
            return 429, translate("Too many attempts to sign in. Please try again in a minute.")
        return 403, translate("This sign-in is not valid: it was used already, or is too old. Please start again.")

    async def page(request: Request) -> Response:
        return shown(request)

    async def enter(request: Request) -> Response:
        body = await read_object(request, _LONGEST_BODY)
        token = body.get("token")
        person = parts.links.redeem(token) if isinstance(token, str) else None
        if person is None:
            status, sentence = refusal(request, "the link is used, too old or unknown")
            raise HTTPException(status, sentence)
        log.info("signed in by a link", person=person.key)
        response = JSONResponse({"next": _next(body.get("next"), parts.home)})
        return signed_in(response, cookies.write(Author(person.platform, person.id, person.name)))

    async def leave(request: Request) -> Response:
        person = person_of(request)
        cookies.end(person.session)
        response = Response(status_code=204)
        response.delete_cookie(cookies.name, httponly=True, secure=cookies.is_secure, samesite="lax")
        return response

    async def start(request: Request) -> Response:
        assert parts.oidc is not None
        if attempts.are_too_many(_client(request)):
            status, sentence = refusal(request, "too many attempts")
            return shown(request, sentence, status)
        try:
            return await parts.oidc.start(request, _next(request.query_params.get("next"), parts.home))
        except OidcRefused as error:
            return shown(request, refusal(request, str(error))[1], 503)

    async def finish(request: Request) -> Response:
        assert parts.oidc is not None
        if attempts.are_too_many(_client(request)):
            status, sentence = refusal(request, "too many attempts")
            return shown(request, sentence, status)
        try:
            person, right, next = await parts.oidc.finish(request)
        except OidcRefused as error:
            status, sentence = refusal(request, str(error))
            return shown(request, sentence, status)
        log.info("signed in by OpenID Connect", right=right.name.lower())
        return signed_in(RedirectResponse(_next(next, parts.home), 303), cookies.write(person, right, parts.oidc.rules))

    oidc = [] if parts.oidc is None else parts.oidc.routes(start, finish)
    return [
        Route(SIGN_IN, page),
        Route(SIGN_IN, enter, methods=["POST"]),
        Route("/web/signout", leave, methods=["POST"]),
        *oidc,
    ]


def _next(asked: object, home: str) -> str:
    """Return the page to which a sign-in leads: never another site."""
    return asked if isinstance(asked, str) and asked in PAGES else home


def _client(request: Request) -> str:
    arrival: Arrival = request.state.arrival
    return arrival.client

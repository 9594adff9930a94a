"""Sign-in by OpenID Connect: the code flow with PKCE, by authlib."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from joserfc.errors import JoseError
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.adapters.web.access import Right
from bot.adapters.web.sign_in.rules import OidcRefused, right_of, rules_of
from bot.config.sign_in import OIDC_PLATFORM, OidcSection
from bot.domain import Author

# Seconds that a call of the provider may take, and that a person may take there.
_CALL_SECONDS = 10.0
_VISIT_SECONDS = 600
_NEXT = "next"

Endpoint = Callable[[Request], Awaitable[Response]]


class Oidc:
    """One provider; `rules` changes with the settings that give rights, so that older sessions end."""

    def __init__(self, section: OidcSection, public_url: str, secret: bytes) -> None:
        assert section.client_secret is not None, "checked with the settings"
        self._section = section
        self._callback = f"{public_url}/web/oidc/callback"
        self._secret = secret
        self._is_secure = public_url.startswith("https:")
        self.rules = rules_of(section)
        self._client: Any = OAuth().register(
            "oidc",
            client_id=section.client_id,
            client_secret=section.client_secret.get_secret_value(),
            server_metadata_url=f"{section.issuer}/.well-known/openid-configuration",
            client_kwargs={
                "scope": " ".join(dict.fromkeys(("openid", *section.scopes))),
                "code_challenge_method": "S256",
                "timeout": _CALL_SECONDS,
            },
        )

    def routes(self, start: Endpoint, finish: Endpoint) -> list[Route]:
        """Return the routes of a sign-in; a signed cookie has its state until the provider sends the person back."""
        session = Middleware(
            SessionMiddleware,
            secret_key=self._secret.hex() + "oidc",
            session_cookie="chat_oidc",
            max_age=_VISIT_SECONDS,
            path="/web/oidc",
            same_site="lax",
            https_only=self._is_secure,
        )
        return [
            Route("/web/oidc/start", start, middleware=[session]),
            Route("/web/oidc/callback", finish, middleware=[session]),
        ]

    async def start(self, request: Request, next: str) -> Response:
        """Send the person to the provider.

        Raises:
            OidcRefused: The provider cannot be asked.
        """
        request.session.clear()  # of one sign-in, else each one that is begun makes the cookie longer
        request.session[_NEXT] = next
        try:
            await self._check_provider()
            response: Response = await self._client.authorize_redirect(request, self._callback)
        except (AuthlibBaseError, httpx2.HTTPError, RuntimeError, ValueError) as error:
            raise OidcRefused(f"the provider cannot be asked ({type(error).__name__})") from error
        return response

    async def finish(self, request: Request) -> tuple[Author, Right, object]:
        """Return the person whom the provider sent back, their right, and the page that they asked for.

        Raises:
            OidcRefused: It is not the answer to a request of this browser, or the person may not use the pages.
        """
        next = request.session.get(_NEXT)
        try:
            await self._check_provider()
            token = await self._client.authorize_access_token(request)
            claims = token.get("userinfo")
            if claims is not None and self._section.claim not in claims:
                more = await self._client.userinfo(token=token)
                if more.get("sub") == claims.get("sub"):  # as the specification demands
                    claims = {**more, **claims}
        except (AuthlibBaseError, JoseError, httpx2.HTTPError, KeyError, RuntimeError, ValueError) as error:
            raise OidcRefused(f"the provider's answer is not valid ({type(error).__name__})") from error
        finally:
            request.session.clear()
        if not claims or not isinstance(claims.get("sub"), str):
            raise OidcRefused("the provider names no person")
        right = right_of(self._section, claims.get(self._section.claim))
        if right is None:
            raise OidcRefused("the person has no value of oidc.users")
        return Author(OIDC_PLATFORM, claims["sub"], _name(claims)), right, next

    async def _check_provider(self) -> None:
        metadata = await self._client.load_server_metadata()
        if str(metadata.get("issuer", "")).rstrip("/") != self._section.issuer:
            raise ValueError("the provider names another issuer")


def _name(claims: dict[str, Any]) -> str:
    names = (claims.get("name"), claims.get("preferred_username"), claims["sub"])
    return next(name for name in names if isinstance(name, str) and name)[:100]

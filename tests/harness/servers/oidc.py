"""A small OpenID Connect provider on loopback: code flow with PKCE, as authlib's client uses it."""

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from joserfc import jwk, jwt

CLIENT_ID, CLIENT_SECRET = "the-bot", "a secret of the client"


class OidcServer:
    """Signs in the person with `claims`, without asking.

    Strict where a real provider is: a code is for one client, one address and one use, and PKCE and
    the secret are checked.  `faults` replaces claims of the signed token; `signs_itself` uses a key
    that the provider does not publish.
    """

    def __init__(self) -> None:
        self.url = ""
        self.claims: dict[str, Any] = {"sub": "mei", "name": "Mei", "groups": ["ops"]}
        self.faults: dict[str, Any] = {}
        self.more: dict[str, Any] = {}  # claims that only the userinfo address names
        self.signs_itself = False
        self.is_down = False
        self.calls: list[str] = []
        self._key = jwk.RSAKey.generate_key(2048, {"kid": "1"})
        self._other = jwk.RSAKey.generate_key(2048, {"kid": "1"})
        self._codes: dict[str, dict[str, str]] = {}
        self._tokens: set[str] = set()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_get("/jwks", self._jwks)
        app.router.add_get("/userinfo", self._userinfo)
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(request.path)
        if self.is_down:
            return web.Response(status=503)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _metadata(self, request: web.Request) -> web.Response:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
        paths |= {"userinfo_endpoint": "userinfo"}
        return web.json_response(
            {
                "issuer": self.url,
                **{name: f"{self.url}/{path}" for name, path in paths.items()},
                "response_types_supported": ["code"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def _authorize(self, request: web.Request) -> web.Response:
        asked = dict(request.query)
        assert asked["client_id"] == CLIENT_ID
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_hex(8)
        self._codes[code] = asked
        back = urlencode({"code": code, "state": asked["state"]})
        raise web.HTTPFound(f"{asked['redirect_uri']}?{back}")

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self._codes.pop(str(form["code"]), None)
        sent = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        verifier = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).decode().rstrip("=")
        if request.headers.get("Authorization") != f"Basic {sent}":
            return web.json_response({"error": "invalid_client"}, status=401)
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        key = self._other if self.signs_itself else self._key
        token = jwt.encode({"alg": "RS256", "kid": "1"}, {**claims, **self.claims, **self.faults}, key)
        access = secrets.token_hex(8)
        self._tokens.add(access)
        return web.json_response({"access_token": access, "token_type": "Bearer", "id_token": token})

    async def _jwks(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [self._key.as_dict(private=False)]})

    async def _userinfo(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._tokens:
            return web.Response(status=401)
        return web.json_response({**self.claims, **self.more})


@asynccontextmanager
async def oidc_server() -> AsyncIterator[OidcServer]:
    """Serve a provider on a free port."""
    server = OidcServer()
    runner = web.AppRunner(server.app(), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()

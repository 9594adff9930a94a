"""Puts the parts of the sign-in together, as config.toml says."""

from dataclasses import dataclass

from bot.adapters.web.guard import SIGN_IN
from bot.adapters.web.sign_in.arrival import Gate
from bot.adapters.web.sign_in.cookies import PersonCookies
from bot.adapters.web.sign_in.identity import Identity
from bot.adapters.web.sign_in.routes import SignInParts
from bot.adapters.web.sign_in.rules import rules_of
from bot.chat.access import Access
from bot.chat.sign_in import SignIn
from bot.config.http import ServerSection
from bot.config.sign_in import OidcSection
from bot.util.clock import Clock


@dataclass(frozen=True, slots=True)
class Entrance:
    """The settings of the sign-in, and the parts of the program that it needs."""

    server: ServerSection
    oidc: OidcSection
    access: Access
    links: SignIn
    clock: Clock


def sign_in_page(server: ServerSection) -> str:
    """Return the address of the page to which links lead; "" if browsers elsewhere cannot reach it."""
    is_served = server.enabled and server.serves_web and server.public_url
    return f"{server.public_url}{SIGN_IN}" if is_served else ""


def open_sign_in(entrance: Entrance, secret: bytes) -> SignInParts | None:
    """Return the parts; None without `server.public_url`."""
    server, oidc = entrance.server, entrance.oidc
    if not server.public_url:
        return None
    cookies = PersonCookies(secret, server.session_hours, is_secure=server.public_url.startswith("https:"))
    identity = Identity(secret, server, entrance.access, cookies, rules_of(oidc) if oidc.issuer else "")
    gate = Gate(server.public_url, server.trusted_proxies)
    home = "/admin" if server.panel else "/"
    provider = None
    if oidc.issuer:
        # authlib takes half a second to import, which those without a provider need not wait for.
        from bot.adapters.web.sign_in.oidc import Oidc

        provider = Oidc(oidc, server.public_url, secret)
    return SignInParts(entrance.links, cookies, identity, gate, entrance.clock, home, provider)

"""Who signed in: from the cookie of a session, or from the header of a trusted proxy."""

import hmac
from dataclasses import replace

from starlette.requests import Request

from bot.adapters.web.access import Person, Right
from bot.adapters.web.sign_in.arrival import Arrival
from bot.adapters.web.sign_in.cookies import PersonCookies, PersonSession
from bot.chat.access import OPERATOR, Access
from bot.config.http import ServerSection
from bot.config.sign_in import OIDC_PLATFORM, PROXY_PLATFORM
from bot.domain import Author

# Characters of a name from a header.
_LONGEST_NAME = 256


class Identity:
    """Finds the person of a request; rights are looked up each time, so that one that is taken away is gone."""

    def __init__(
        self, secret: bytes, server: ServerSection, access: Access, cookies: PersonCookies, oidc_rules: str = ""
    ) -> None:
        """Read sessions from `cookies`; those of OpenID Connect hold while its rules are `oidc_rules`."""
        self._secret = secret
        self._access = access
        self._cookies = cookies
        self._operators = frozenset(server.operators)
        self._header = server.proxy_header
        self._oidc_rules = oidc_rules

    def person(self, request: Request, arrival: Arrival) -> Person | None:
        """Return the person who signed in, or None."""
        if self._header and arrival.is_proxied and (names := request.headers.getlist(self._header)):
            name = names[0].strip().encode("latin-1").decode("utf-8", "replace")
            # Of two headers one is not the proxy's.
            is_one = len(names) == 1 and 0 < len(name) <= _LONGEST_NAME
            return self._known(PersonSession(f"proxy {name}", Author(PROXY_PLATFORM, name, name))) if is_one else None
        session = self._cookies.read(request.cookies.get(self._cookies.name))
        return None if session is None else self._known(session)

    def csrf_token(self, person: Person) -> str:
        """Return what a request of this person's pages carries and other pages cannot know."""
        return "" if person.is_local else hmac.digest(self._secret, f"csrf {person.session}".encode(), "sha256").hex()

    def is_own(self, person: Person, token: str) -> bool:
        """Return whether the token is that of this sign-in."""
        return hmac.compare_digest(self.csrf_token(person).encode(), token.encode("utf-8", "replace"))

    def _known(self, session: PersonSession) -> Person | None:
        who = session.person
        is_admin = self._access.is_admin(who)
        right = Right.ADMIN if is_admin else Right.VISITOR
        if who.platform == OIDC_PLATFORM:
            if session.rules != self._oidc_rules:
                return None
            right = max(right, session.right)
        if who.key in self._operators:
            right = Right.OPERATOR
        if right is Right.VISITOR and who.platform not in (OIDC_PLATFORM, PROXY_PLATFORM):
            return None  # links are for admins
        author = who if is_admin else replace(OPERATOR, name=who.name)
        return Person(right, author, who, session.id)

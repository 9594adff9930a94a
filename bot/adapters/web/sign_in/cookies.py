"""The cookie of a person who signed in: signed, and ended by time or by signing out."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeTimedSerializer

from bot.adapters.web.access import Right
from bot.domain import Author

# Sessions that were ended and are remembered; the oldest goes.
_MOST_ENDED = 10_000


@dataclass(frozen=True, slots=True)
class PersonSession:
    """A sign-in: who it is, and where rights come from elsewhere, which ones; `rules` are those that gave them."""

    id: str
    person: Author
    right: Right = Right.VISITOR
    rules: str = ""


class PersonCookies:
    """Writes and reads the value of the cookie.

    The signature binds it to the secret beside the database, so that a restart ends no session.
    """

    def __init__(self, secret: bytes, hours: float, *, is_secure: bool) -> None:
        # With this prefix browsers take the cookie over https only, and from no other host of the domain.
        self.name = "__Host-chat_person" if is_secure else "chat_person"
        self.is_secure = is_secure
        self.max_age = round(hours * 3600)
        self._signer = URLSafeTimedSerializer(secret, salt="web person")
        self._ended: OrderedDict[str, None] = OrderedDict()

    def write(self, person: Author, right: Right = Right.VISITOR, rules: str = "") -> str:
        """Return the cookie of a new session."""
        fields = [secrets.token_hex(16), person.platform, person.id, person.name, int(right), rules]
        return self._signer.dumps(fields)

    def read(self, cookie: str | None) -> PersonSession | None:
        """Return the session; None for a cookie that is not ours, or whose session has ended.

        >>> cookies = PersonCookies(b"secret", 12, is_secure=False)
        >>> cookie = cookies.write(Author("discord", "1", "Mei"))
        >>> cookies.read(cookie).person.key, cookies.read(cookie[:-1]), cookies.read(None)
        ('discord:1', None, None)
        >>> cookies.end(cookies.read(cookie).id)
        >>> cookies.read(cookie)
        """
        if not cookie:
            return None
        try:
            id, platform, person, name, right, rules = self._signer.loads(cookie, max_age=self.max_age)
        except BadData:
            return None
        return None if id in self._ended else PersonSession(id, Author(platform, person, name), Right(right), rules)

    def end(self, id: str) -> None:
        """End a session before its time, also where its cookie was copied; until the next start."""
        self._ended[id] = None
        while len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)

"""The one browser that may use the page: it has the link that the terminal shows."""

import hmac
import secrets

COOKIE = "setup_session"


class OneTimeLink:
    """A token for the link and, once it is used up, the cookie of the browser that used it.

    >>> link = OneTimeLink()
    >>> link.opens("guess"), link.opens(link.token)
    (False, True)
    >>> token = link.token
    >>> cookie = link.use(token)
    >>> link.knows(cookie), link.opens(token), link.use(token)
    (True, False, None)
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)
        self._is_used = False

    def opens(self, token: str) -> bool:
        """Return whether this is the token, and it was not used yet."""
        return not self._is_used and _equal(token, self.token)

    def use(self, token: str) -> str | None:
        """Use the token up; return the cookie, or None for a token that opens nothing."""
        if not self.opens(token):
            return None
        self._is_used = True
        return self._cookie

    def knows(self, cookie: str | None) -> bool:
        return self._is_used and _equal(cookie or "", self._cookie)


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())

"""The session of a browser: a signed id, which is its user."""

import hmac
import os
import re
import secrets
from pathlib import Path

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

COOKIE = "chat_session"
# Seconds; browsers keep a cookie no longer than 400 days.
MAX_AGE = 400 * 86_400

_SIZE = 32
_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """Issues and reads the value of the cookie.

    >>> sessions = Sessions(b"secret")
    >>> cookie = sessions.issue()
    >>> sessions.user(cookie) == cookie[:32], sessions.user(cookie[:-1] + "!"), sessions.user(None)
    (True, None, None)
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self) -> str:
        """Return the cookie of a new session."""
        id = secrets.token_hex(16)
        return f"{id}.{self._signature(id)}"

    def user(self, cookie: str | None) -> str | None:
        """Return the session's id, or None for a cookie that is not ours."""
        id, _, signature = (cookie or "").partition(".")
        is_ours = _ID.fullmatch(id) and hmac.compare_digest(self._signature(id).encode(), signature.encode())
        return id if is_ours else None

    def id_of(self, person: str) -> str:
        """Return the id of the conversations of a person who signed in, which does not tell who it is."""
        return hmac.digest(self._secret, b"web person " + person.encode("utf-8", "replace"), "sha256").hex()[:32]

    def _signature(self, id: str) -> str:
        return hmac.digest(self._secret, b"web session " + id.encode(), "sha256").hex()


def read_secret(path: Path) -> bytes:
    """Return the secret of the cookies, created for its owner only; one for this run if it cannot be stored."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(file, "wb") as new:
                new.write(secrets.token_bytes(_SIZE))
        secret = path.read_bytes()
    except OSError as error:
        log.warning("the web chat's secret cannot be stored; sessions end with this run", error=str(error))
        return secrets.token_bytes(_SIZE)
    if len(secret) < _SIZE:  # a crash while it was written
        path.unlink(missing_ok=True)
        return read_secret(path)
    return secret

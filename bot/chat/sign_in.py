"""One-time links that sign an admin in to the pages in the browser."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from bot.chat.i18n import Translate
from bot.domain import Author, IncomingMessage
from bot.errors import PlatformError
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for which a link is valid.
LINK_SECONDS = 300.0

# Shows a text to the author of a message and to nobody else; may raise PlatformError.
SendDirect = Callable[[IncomingMessage, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Link:
    person: Author
    ends: float


class SignIn:
    """Makes the links, and takes each one once.

    They are in memory only, as digests: a link that a database, a log or a dump of memory
    shows would sign its reader in.  A restart ends them.  A person has one: a newer link
    replaces it.
    """

    def __init__(self, clock: Clock, page: str = "") -> None:
        """Make links to `page`, the address of the sign-in page; "" makes none."""
        self._clock = clock
        self._page = page
        self._links: dict[bytes, _Link] = {}
        self._senders: dict[str, SendDirect] = {}

    def register(self, platform: str, send: SendDirect) -> None:
        """Let a platform send links."""
        self._senders[platform] = send

    async def send_link(self, message: IncomingMessage, translate: Translate) -> str:
        """Send a link to the author of the message alone; return the sentence that everybody may read."""
        if not self._page:
            return translate(
                "No link was sent: it needs `server.public_url`, the page's address for browsers elsewhere, and "
                "`server.enabled = true` in config.toml."
            )
        send = self._senders.get(message.channel.platform)
        if send is None:
            return translate("No link was sent: it goes in a direct message, which this platform does not have.")
        token = self._new(message.author)
        text = translate(
            "Sign in to the bot's page with this link. It is valid for {minutes} minutes and works once; do not pass it on."
        ).format(minutes=round(LINK_SECONDS / 60))
        try:
            await send(message, f"{text}\n{self._page}#{token}")
        except PlatformError as error:
            log.warning("sign-in link not sent", platform=message.channel.platform, error=str(error))
            return translate(
                "No link was sent: I cannot send you a direct message. Allow them, or write to me there first, and "
                "send /signin again."
            )
        return translate("I have sent you a link that signs you in. Only you can see it.")

    def redeem(self, token: str) -> Author | None:
        """Return the person whose link has this token, and end the link; None if it is used, too old or unknown."""
        link = self._links.pop(_digest(token), None)
        return link.person if link is not None and self._clock.now() < link.ends else None

    def _new(self, person: Author) -> str:
        now = self._clock.now()
        self._links = {
            digest: link for digest, link in self._links.items() if now < link.ends and link.person.key != person.key
        }
        token = secrets.token_urlsafe(32)
        self._links[_digest(token)] = _Link(person, now + LINK_SECONDS)
        return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()

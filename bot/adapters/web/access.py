"""Who a request of a page is from, and what they may do.

The guard of the pages finds out who it is; a route asks with `require`, or is wrapped in `restricted`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bot.adapters.web.requests import language_of
from bot.chat.access import OPERATOR
from bot.chat.i18n import translator
from bot.config.sign_in import PROXY_PLATFORM
from bot.domain import Author


class Right(IntEnum):
    """What a person may do; each right includes the ones before it."""

    VISITOR = 0  # chats
    ADMIN = 1  # sees the panel; changes channels and models, and pauses
    OPERATOR = 2  # also what names a host, a path, a secret, an admin or the server itself


@dataclass(frozen=True, slots=True)
class Person:
    """The person of a request.

    `author` carries out what they do in the panel.  `who` is the person who signed in, and
    `session` tells this sign-in from others; a request from this machine has neither.
    """

    right: Right
    author: Author
    who: Author | None = None
    session: str = ""

    @property
    def is_local(self) -> bool:
        return self.who is None

    @property
    def is_proxied(self) -> bool:
        """Whether a proxy says who it is, so that no session of ours can end."""
        return self.who is not None and self.who.platform == PROXY_PLATFORM


# Every account of this machine: there is no sign-in on loopback.
LOCAL = Person(Right.OPERATOR, OPERATOR)

FindPerson = Callable[[], Person | None]


def set_person(request: Request, person: Person, find_again: FindPerson = lambda: LOCAL) -> None:
    """Say who the request is from; `find_again` does so later.  Only the guard calls this."""
    request.state.person = person
    request.state.find_person = find_again


def person_of(request: Request) -> Person:
    """Return who the request is from."""
    person: Person = request.state.person
    return person


def stays(request: Request) -> bool:
    """Return whether the person of a long request is still signed in, with the right that they had."""
    find: FindPerson = request.state.find_person
    before, now = person_of(request), find()
    return now is not None and (now.session, now.right) == (before.session, before.right)


def require(request: Request, right: Right) -> Person:
    """Return who the request is from, if they have the right.

    Raises:
        HTTPException: They have not (403).

    >>> request = Request({"type": "http", "headers": []})
    >>> set_person(request, Person(Right.ADMIN, Author("discord", "1", "Mei")))
    >>> require(request, Right.ADMIN).author.name
    'Mei'
    >>> require(request, Right.OPERATOR)
    Traceback (most recent call last):
    starlette.exceptions.HTTPException: 403: Only operators may do that: see server.operators.
    """
    person = person_of(request)
    if person.right >= right:
        return person
    translate = translator(language_of(request, None))
    if right is Right.OPERATOR:
        raise HTTPException(403, translate("Only operators may do that: see server.operators."))
    raise HTTPException(403, translate("Only admins may do that."))


Endpoint = Callable[[Request], Awaitable[Response]]


def restricted(right: Right, endpoint: Endpoint) -> Endpoint:
    """Return the endpoint for those who have the right; others get a 403."""

    async def run(request: Request) -> Response:
        require(request, right)
        return await endpoint(request)

    return run

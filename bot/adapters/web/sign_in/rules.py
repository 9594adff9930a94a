"""What the claim of a provider gives a person."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.adapters.web.access import Right
from bot.config.sign_in import OidcSection
from bot.domain import Author

Endpoint = Callable[[Request], Awaitable[Response]]


class OidcRefused(Exception):
    """A sign-in that failed at the provider or after it; the text is for the log."""


class Provider(Protocol):
    """A provider that signs people in; its methods raise OidcRefused."""

    rules: str

    def routes(self, start: Endpoint, finish: Endpoint) -> list[Route]: ...

    async def start(self, request: Request, next: str) -> Response: ...

    async def finish(self, request: Request) -> tuple[Author, Right, object]: ...


def right_of(section: OidcSection, value: object) -> Right | None:
    """Return the right that a claim gives; None if it gives none.

    >>> section = OidcSection(users=["staff"], admins=["ops"], operators=["root"])
    >>> right_of(section, ["staff", "ops"]).name, right_of(section, "root").name, right_of(section, ["guests"])
    ('ADMIN', 'OPERATOR', None)
    >>> right_of(OidcSection(), None).name
    'VISITOR'
    """
    listed = value if isinstance(value, list) else [value]
    values = {each for each in listed if isinstance(each, str)}
    if not values.isdisjoint(section.operators):
        return Right.OPERATOR
    if not values.isdisjoint(section.admins):
        return Right.ADMIN
    return Right.VISITOR if not section.users or not values.isdisjoint(section.users) else None


def rules_of(section: OidcSection) -> str:
    """Return a digest of the settings that give rights."""
    rules = section.model_dump_json(exclude={"client_secret", "scopes"})
    return hashlib.sha256(rules.encode()).hexdigest()[:16]

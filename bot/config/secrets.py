"""Secrets in settings: which values must be redacted from logs and errors."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

_SECRET_NAME = re.compile(r"(^|[_-])(token|secret|password|passwd|api_?key|master_?key)$", re.IGNORECASE)


class Address:
    """Marks a `SecretStr` that holds a URL, which is secret only if it contains a password."""


def secret_values(value: object, *, is_url: bool = False) -> Iterator[str]:
    """Yield every secret in a model, at any depth: in nested models, mappings and sequences.

    >>> list(secret_values({"keys": [SecretStr("a"), SecretStr("b")]}))
    ['a', 'b']
    """
    match value:
        case SecretStr():
            secret = value.get_secret_value()
            yield from passwords(secret) if is_url else [secret]
        case BaseModel():
            for name, each in value:
                yield from secret_values(each, is_url=is_address(type(value).model_fields[name]))
        case Mapping():
            yield from secret_values(list(value.values()), is_url=is_url)
        case list() | tuple() | set() | frozenset():
            for each in value:
                yield from secret_values(each, is_url=is_url)
        case _:
            pass


def is_secret(field: FieldInfo) -> bool:
    """Return True if the value of this setting, or a part of it, must not be shown."""
    return _holds_secret(field.annotation)


def _holds_secret(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(is_secret(field) for field in annotation.model_fields.values())
    return annotation is SecretStr or any(map(_holds_secret, get_args(annotation)))


def is_secret_name(name: str) -> bool:
    """Return True if a setting of this name, also an unknown one, may hold a secret."""
    return bool(_SECRET_NAME.search(name))


def is_address(field: FieldInfo) -> bool:
    """Return True if this setting is a URL, which may be shown if it contains no password."""
    return Address in field.metadata


def environment_secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets that libraries read from the environment: hub token, database and proxy passwords."""
    named = [environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGPASSWORD")]
    proxies = [word for name, value in environ.items() if name.lower().endswith("_proxy") for word in passwords(value)]
    return [secret for secret in [*named, *proxies] if secret]


def has_password(url: str) -> bool:
    """Return True if the URL of a database or proxy contains a password.

    >>> has_password("postgresql+psycopg://bot:secret@db/bot"), has_password("sqlite+aiosqlite:///data/bot.db")
    (True, False)
    >>> has_password("postgresql://bot:sec/ret@db/bot"), has_password("http://proxy:3128")
    (True, False)
    >>> has_password("postgresql://[no address")
    True
    """
    return bool(passwords(url))


def passwords(url: str) -> list[str]:
    """Return the strings to redact: the URL, and its passwords as written and decoded.

    >>> passwords("http://me:p%40ss@proxy:3128")
    ['http://me:p%40ss@proxy:3128', 'me:p%40ss', 'p%40ss', 'me:p@ss', 'p@ss']
    """
    try:
        named = [word for name, words in parse_qs(urlsplit(url).query).items() if "pass" in name for word in words]
    except ValueError:  # not a URL: redact all of it
        return [url]
    user = _login(url)
    if ":" not in user:
        return [url, *named] if named else []
    written = [user, user.partition(":")[2]]
    return _unique([url, *written, *map(unquote, written), *named])


def has_raw_at_sign(url: str) -> bool:
    """Return True if a raw @ in a password would turn the rest of it into a host, which messages show."""
    login = _login(url.rpartition("?")[0] or url)
    return url.startswith("postgres") and ":" in login and "@" in login


def _login(url: str) -> str:
    # Up to the last @, unlike urlsplit: drivers accept passwords that contain a slash.
    return url.partition("://")[2].rpartition("@")[0]


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))

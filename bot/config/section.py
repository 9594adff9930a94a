"""The base of every section of config.toml, and the types of values that several sections share."""

import re
from collections.abc import Iterator
from typing import Annotated, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from bot.config.secrets import Address


def split_list(value: object) -> object:
    """Split a list in an environment variable: `BOT_ACCESS__ADMINS=discord:1,slack:U01`."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def split_pairs(value: object) -> object:
    """Split a table in an environment variable: `BOT_LOGS__LEVELS=bot.engine=debug,alembic=info`."""
    if not isinstance(value, str):
        return dict(_flat(value)) if isinstance(value, dict) else value
    return {key.strip(): word.strip() for key, _, word in (item.partition("=") for item in value.split(","))}


def _flat(table: dict[str, object], parent: str = "") -> Iterator[tuple[str, object]]:
    """Join nested tables: TOML reads bot.engine without quotes as a table in a table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def check_id(value: str) -> str:
    """Return the id of a person or place if it has this form.

    Raises:
        ValueError: It has not.
    """
    platform, colon, id = value.partition(":")
    if not (platform and colon and id) or value.split() != [value]:
        raise ValueError(f'{value!r} is not written "platform:id", as in "discord:1234"')
    return value


def _check_thread(value: str) -> str:
    if value.count(":") < 2:
        raise ValueError(f'{value!r} is not written "platform:channel:thread", as in "discord:123:456"')
    return value


PlatformId = Annotated[str, AfterValidator(check_id)]
ThreadId = Annotated[PlatformId, AfterValidator(_check_thread)]
PlatformIds = Annotated[tuple[PlatformId, ...], BeforeValidator(split_list)]


def _check_http(url: SecretStr) -> SecretStr:
    if not re.match(r"(https?://\S+)?$", url.get_secret_value()):
        raise ValueError('it must begin with http:// or https://, as in "http://proxy:3128"')
    return url


# Secret only if it contains a password.
Proxy = Annotated[SecretStr, AfterValidator(_check_http), Address]
NO_PROXY = SecretStr("")


# Of any setting: larger numbers overflow in dates, databases or timers.
_LARGEST_NUMBER = 1_000_000_000
# Days; earlier dates may have no representation.
CENTURY = 36_500


class Section(BaseModel):
    """A section of config.toml; the description of a field is its comment there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, bool) or info.field_name is None:
            return value
        annotation = cls.model_fields[info.field_name].annotation
        accepted = get_args(annotation) or (annotation,)
        if bool not in accepted and not {int, float}.isdisjoint(accepted):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _reject_overflow(cls, value: object) -> object:
        if isinstance(value, int | float) and value > _LARGEST_NUMBER:
            raise ValueError(f"the number is too large; the maximum is {_LARGEST_NUMBER:,}")
        return value

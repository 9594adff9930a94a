"""The tables, for queries and for migrations."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)


class SafeText(TypeDecorator[str]):
    """Text that every database accepts.

    Lone surrogates are not UTF-8, and PostgreSQL stores no NUL: each becomes U+FFFD.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return (
            value.encode("utf-16-le", "surrogatepass")
            .decode("utf-16-le", "replace")
            .replace("\0", "\N{REPLACEMENT CHARACTER}")
        )

    def process_result_value(self, value: object, dialect: Dialect) -> str | None:
        # In a damaged SQLite file a text may be a number or bytes.
        if value is None:
            return None
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its time zone; SQLite stores it as naive UTC.  Read as None if it is none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a time zone is ambiguous")
        return value and value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        process = super().result_processor(dialect, coltype)

        def read(value: Any) -> datetime | None:
            try:
                return value if process is None else process(value)
            except (TypeError, ValueError):
                return None

        return read

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value and value.astimezone(UTC)


# Constraints have names, because SQLite's migrations rebuild a table to change one.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Marks text and identity of people: deletion blanks it, and the export contains it.
PERSONAL = {"personal": True}

exchanges = Table(
    "exchanges",
    metadata,
    # SQLite increments only an INTEGER by itself.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("platform", SafeText, nullable=False),
    Column("channel", SafeText, nullable=False),
    Column("thread", SafeText),
    Column("message", SafeText, nullable=False),
    Column("kind", SafeText, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("author_platform", SafeText, nullable=False),
    Column("author", SafeText, nullable=False, info=PERSONAL),
    Column("author_name", SafeText, nullable=False, info=PERSONAL),
    Column("author_roles", JSON, nullable=False, info=PERSONAL),
    Column("author_is_bot", Boolean, nullable=False),
    Column("text", SafeText, nullable=False, info=PERSONAL),
    Column("quoted", SafeText, info=PERSONAL),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("server", SafeText),
    Column("is_direct", Boolean, nullable=False),
    Column("locale", SafeText, info=PERSONAL),
    # The answer; `reason` is null until there is one.
    Column("answer", SafeText, info=PERSONAL),
    Column("notice", SafeText, info=PERSONAL),
    Column("reason", SafeText),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    # A list in the row instead of a table: it is only read and written with its exchange.
    Column("parts", JSON, nullable=False),
    Column("failure", SafeText),
    # The claim, see bot/lifecycle.py: the process that works on the exchange, the number of
    # claims so far, and when this one ends (only where several processes share the database).
    Column("owner", SafeText),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("claimed_until", UtcDateTime),
    # The message that `quoted` is the text of, and whether it is one of the bot's own.
    Column("quoted_id", SafeText, info=PERSONAL),
    Column("quotes_bot", Boolean, nullable=False, server_default=false()),
    # A platform's message ids are unique in a channel, threads included.
    UniqueConstraint("platform", "channel", "message"),
    Index(None, "platform", "channel", "thread", "id"),  # history, latest, clear, last_message_ids
    Index(None, "platform", "status"),  # claim_owed
    Index(None, "author_platform", "author"),  # forget
    # Ids order the history, so none may be reused after rows were deleted.
    sqlite_autoincrement=True,
)

# A row for a message that was deleted before it arrived: it tells no author and no platform of one.
IS_TOMBSTONE = exchanges.c.author_platform == ""

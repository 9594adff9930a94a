"""The tables, for queries and for migrations."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine, UserDefinedType

from bot.storage.encryption import clean


class SafeText(TypeDecorator[str]):
    """Text that every database accepts.

    Lone surrogates are not UTF-8, and PostgreSQL stores no NUL: each becomes U+FFFD.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)

    def process_result_value(self, value: object, dialect: Dialect) -> str | None:
        # In a damaged SQLite file a text may be a number or bytes.
        if value is None:
            return None
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class _Json(UserDefinedType[bytes]):
    """What SQLite calls a column that once was JSON."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "JSON"


class Encrypted(TypeDecorator[bytes]):
    """Encrypted text; or, in a row without a key, text as it is.

    On SQLite, where a column may hold any value, one from before the encryption keeps its `declared` type.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, declared: TypeEngine[Any] | None = None) -> None:
        super().__init__()
        self.declared = declared or LargeBinary()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(self.declared if dialect.name == "sqlite" else LargeBinary())

    def process_result_value(self, value: object, dialect: Dialect) -> bytes | None:
        # In a damaged SQLite file it may be a number.
        if value is None or isinstance(value, bytes):
            return value
        return str(value).encode("utf-8", "replace")


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


def encrypted(key: str) -> dict[str, Any]:
    """Mark a personal column whose key's number is in another column."""
    return {**PERSONAL, "key": key}


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
    # A pseudonym, to find what a person said; in a row from before the encryption the id itself.
    Column("author", SafeText, nullable=False, info={"person": "author_id"}),
    Column("author_name", Encrypted(Text()), nullable=False, info=encrypted("question_key")),
    Column("author_roles", Encrypted(_Json()), nullable=False, info=encrypted("question_key")),
    Column("author_is_bot", Boolean, nullable=False),
    Column("text", Encrypted(Text()), nullable=False, info=encrypted("question_key")),
    Column("quoted", Encrypted(Text()), info=encrypted("quotation_key")),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("server", SafeText),
    Column("is_direct", Boolean, nullable=False),
    Column("locale", Encrypted(Text()), info=encrypted("question_key")),
    # The answer; `reason` is null until there is one.
    Column("answer", Encrypted(Text()), info=encrypted("answer_key")),
    Column("notice", Encrypted(Text()), info=encrypted("answer_key")),
    Column("reason", SafeText),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("failure", SafeText),
    # The claim, see bot/lifecycle.py: the process that works on the exchange, the number of
    # claims so far, and when this one ends (only where several processes share the database).
    Column("owner", SafeText),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("claimed_until", UtcDateTime),
    # The message that `quoted` is the text of, and whether it is one of the bot's own.
    Column("quoted_id", SafeText, info=PERSONAL),
    Column("quotes_bot", Boolean, nullable=False, server_default=false()),
    Column("author_id", Encrypted(Text()), info=encrypted("question_key")),
    # The numbers of the keys, one for each thing that is deleted by itself.
    Column("question_key", BigInteger),
    Column("quotation_key", BigInteger),
    Column("answer_key", BigInteger),
    # Attached files and what was read of them, as JSON; NULL for none.
    Column("files", Encrypted(), info=encrypted("question_key")),
    # The names of the model and the persona that the answer is of; see `Answer`.
    Column("model", SafeText),
    Column("persona", SafeText),
    # Pictures among the files, and those of a quoted message, as JSON (pictures.py); NULL for none.
    Column("pictures", Encrypted(), info=encrypted("question_key")),
    Column("quoted_pictures", Encrypted(), info=encrypted("quotation_key")),
    # A platform's message ids are unique in a channel, threads included.
    UniqueConstraint("platform", "channel", "message"),
    Index(None, "author_platform", "author"),  # forget
    # Ids order the history, so none may be reused after rows were deleted.
    sqlite_autoincrement=True,
)

# The messages that carry the parts of a reply, numbered from 0.
parts = Table(
    "parts",
    metadata,
    Column("exchange", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("message", SafeText, nullable=False),
    Index(None, "message"),  # find_by_reply
    sqlite_with_rowid=False,
)

# The channels with exchanges, cleared ones included; `thread` is empty outside threads.
channels = Table(
    "channels",
    metadata,
    Column("platform", SafeText, primary_key=True),
    Column("channel", SafeText, primary_key=True),
    Column("thread", SafeText, primary_key=True),
    # The newest exchange and its message: where a backfill begins.
    Column("last_exchange", BigInteger, nullable=False),
    Column("last_message", SafeText, nullable=False),
    # Whether it was said there that the oldest turns are left out.
    Column("is_shortening_told", Boolean, nullable=False, server_default=false()),
    # Whether it was said there that messages before a question are read.
    Column("is_context_told", Boolean, nullable=False, server_default=false()),
    sqlite_with_rowid=False,
)

# Messages that belong to a question beside its own: more of it, what was said before it, what it links to.
further_messages = Table(
    "further_messages",
    metadata,
    Column("exchange", BigInteger, primary_key=True, autoincrement=False),
    Column("channel", SafeText, primary_key=True),  # where it was said, without the thread
    Column("message", SafeText, primary_key=True),
    Column("platform", SafeText, nullable=False),
    Column("kind", SafeText, nullable=False),
    Column("author_platform", SafeText, nullable=False),
    Column("author", SafeText, nullable=False, info={"person": "author_id"}),  # a pseudonym
    Column("author_id", Encrypted(), nullable=False, info=encrypted("text_key")),
    Column("author_name", Encrypted(), nullable=False, info=encrypted("text_key")),
    Column("text", Encrypted(), nullable=False, info=encrypted("text_key")),
    Column("files", Encrypted(), info=encrypted("text_key")),
    Column("pictures", Encrypted(), info=encrypted("text_key")),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("text_key", BigInteger),
    Column("thread", SafeText),  # where it was said, if that is known
    Index(None, "platform", "channel", "message"),  # edits, deletions, messages that come again
    Index(None, "author_platform", "author"),  # forget
    Index(None, "sent_at"),  # expire
    sqlite_with_rowid=False,
)

_IS_IN_THREAD = further_messages.c.thread.is_not(None)
Index(
    None,
    further_messages.c.platform,
    further_messages.c.channel,
    further_messages.c.thread,
    sqlite_where=_IS_IN_THREAD,
    postgresql_where=_IS_IN_THREAD,
)  # clear

# From when on messages are read as what was said before a question: of a person since /forget me, in a place
# since /clear, of a person in a place ("member") since their own /clear there, everywhere ("all") since a restore.
# `place` is as in `usage`: of a person a pseudonym; that of a member is followed by the place.
readable_since = Table(
    "readable_since",
    metadata,
    Column("level", SafeText, primary_key=True),
    Column("place", SafeText, primary_key=True),
    Column("since", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)

# Settings that were set in the chat.  The newest row of a place and setting is in force, earlier ones can be restored.
settings = Table(
    "settings",
    metadata,
    # Numbered by the insert: it has no use for numbers that are never reused.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("level", SafeText, nullable=False),
    Column("place", SafeText, nullable=False),  # as in config.toml: "discord:123"
    Column("setting", SafeText, nullable=False),
    # A name or a number, or else what people wrote; without both the setting was cleared.
    Column("value", SafeText),
    Column("text", Encrypted(Text()), info=encrypted("text_key")),
    Column("author_platform", SafeText, nullable=False),
    Column("author", SafeText, nullable=False, info={"person": "author_id"}),  # a pseudonym
    Column("author_name", Encrypted(Text()), nullable=False, info=encrypted("text_key")),
    Column("set_at", UtcDateTime, nullable=False),
    Column("author_id", Encrypted(Text()), info=encrypted("text_key")),
    Column("text_key", BigInteger),
    # Who wrote the text that the author restored, as "discord:123"; null if the author did.
    Column("text_author", Encrypted(), info=encrypted("text_key")),
    Index(None, "level", "place", "setting"),
    Index(None, "author_platform", "author"),  # forget
    Index(None, "place", "id"),  # setting_changes
    Index(None, "set_at"),  # expire
)

# What was used of the model, by day (UTC): of a person, a channel with its threads, a server, a platform.
usage = Table(
    "usage",
    metadata,
    Column("level", SafeText, primary_key=True),
    # As in config.toml, "discord:123"; of a person the pseudonym, so that no row tells who it was.
    Column("place", SafeText, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("answers", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    Index(None, "day"),  # end_usage
    sqlite_with_rowid=False,
)

# Votes on answers, one per person and answer: without a vote there is no row.
feedback = Table(
    "feedback",
    metadata,
    Column("exchange", BigInteger, primary_key=True, autoincrement=False),
    # The platform and the pseudonym, as in `usage`: no row tells who it was.
    Column("voter", SafeText, primary_key=True),
    Column("vote", SafeText, nullable=False),
    Column("voted_at", UtcDateTime, nullable=False),
    Index(None, "voter"),  # forget
    sqlite_with_rowid=False,
)

# People who agreed that their questions and the votes on the answers are exported.
consents = Table(
    "consents",
    metadata,
    Column("person", SafeText, primary_key=True),  # as `feedback.voter`
    Column("agreed_at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)

# One row: the database's id, the number of the key of pseudonyms, how many numbers are used,
# up to which exchange the rows from before the encryption are encrypted (null: all), the number of
# the newest deletion (null: rows are to be compared with keys), and that of the newest one which
# the file of keys was known to have begun.
encryption = Table(
    "encryption",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("database", LargeBinary, nullable=False),
    Column("pseudonym_key", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("encrypted_to", BigInteger),
    Column("deletions", BigInteger),
    Column("began", BigInteger, nullable=False, server_default="0"),
)

# On a server: the keys themselves.
text_keys = Table(
    "text_keys",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("key", LargeBinary, nullable=False),
)

# On SQLite: keys that are to be overwritten, or were.
key_deletions = Table(
    "key_deletions",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
)

# Conditions of partial indexes: rows that a query never needs would be read first.  With literals,
# because SQLite uses such an index only for a query that repeats its condition.
IS_KEPT: ColumnElement[bool] = exchanges.c.status != literal_column("'cleared'")
IS_OWED: ColumnElement[bool] = exchanges.c.status.in_([literal_column("'open'"), literal_column("'answered'")])
IS_QUOTING: ColumnElement[bool] = or_(exchanges.c.quoted.is_not(None), exchanges.c.quoted_id.is_not(None))
IS_RESTORED: ColumnElement[bool] = settings.c.text_author.is_not(None)


def _index(name: str, condition: ColumnElement[bool], *columns: str) -> None:
    Index(
        f"ix_exchanges_{name}",
        *(exchanges.c[column] for column in columns),
        sqlite_where=condition,
        postgresql_where=condition,
    )


_index("kept", IS_KEPT, "platform", "channel", "thread", "id")  # history, latest, clear
_index("said", IS_KEPT, "platform", "sent_at")  # said_since
_index("aged", IS_KEPT, "sent_at")  # expire
_index("owed", IS_OWED, "platform", "id")  # claim_owed
_index("quoting", IS_QUOTING, "platform", "channel", "quoted_id")  # quotations of what is deleted
Index(  # forget
    "ix_settings_restored", settings.c.id, sqlite_where=IS_RESTORED, postgresql_where=IS_RESTORED
)


class _PartsOfExchange(FunctionElement[list[str]]):
    """The message ids of an exchange's parts, in order, as a JSON array; also in a RETURNING clause."""

    inherit_cache = True
    type = JSON()


@compiles(_PartsOfExchange, "sqlite")
def _parts_on_sqlite(element: _PartsOfExchange, compiler: SQLCompiler, **options: Any) -> str:
    return (
        "(SELECT json_group_array(message) FROM "
        "(SELECT message FROM parts WHERE parts.exchange = exchanges.id ORDER BY parts.number))"
    )


@compiles(_PartsOfExchange, "postgresql")
def _parts_on_a_server(element: _PartsOfExchange, compiler: SQLCompiler, **options: Any) -> str:
    return (
        "(SELECT coalesce(json_agg(message ORDER BY parts.number), '[]') FROM parts "
        "WHERE parts.exchange = exchanges.id)"
    )


# What is read of an exchange: the columns of its row but for pictures, the message ids of its parts, and whether it
# has further messages: most have none, and to ask for them again would cost a statement.
# Named as text: in a RETURNING clause SQLAlchemy would select from the table again.
PARTS = _PartsOfExchange().label("parts")
_FURTHER = select(literal(1)).where(further_messages.c.exchange == literal_column("exchanges.id"))
HAS_FURTHER = _FURTHER.exists().label("has_further")
EXCHANGE = (
    *(column for column in exchanges.c if column.name not in {"pictures", "quoted_pictures"}),
    PARTS,
    HAS_FURTHER,
)

# A row for a message that was deleted before it arrived: it tells no author and no platform of one.
IS_TOMBSTONE = exchanges.c.author_platform == ""

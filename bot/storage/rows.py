"""Exchanges to rows and back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import JSON
from sqlalchemy.types import TypeEngine

from bot.domain import (
    UNREADABLE,
    Answer,
    Attachment,
    Author,
    ChannelKey,
    Exchange,
    FileFault,
    FinishReason,
    IncomingMessage,
    Kind,
    Status,
    Usage,
)
from bot.storage.encryption import DamagedRow
from bot.storage.pictures import pictures_to_json
from bot.storage.schema import EXCHANGE, Encrypted, SafeText, UtcDateTime, exchanges

UNQUOTED: dict[str, Any] = {
    "quoted": None,
    "quoted_pictures": None,
    "quoted_id": None,
    "quotes_bot": False,
    "quotation_key": None,
}

# Characters of a text.  The files of a message are ten of up to 1,000,000, a line's end is two in JSON.
_LONGEST = 32_000_000

# A cleared exchange keeps its key, its order and the ids of its parts: no text, and nothing
# that tells its author.
BLANK: dict[str, Any] = {
    "author": "",
    "author_id": None,
    "author_name": b"",
    "author_roles": b"",
    "text": b"",
    "files": None,
    "pictures": None,
    "locale": None,
    "question_key": None,
    **UNQUOTED,
    "failure": None,
}

UNANSWERED: dict[str, Any] = {
    "answer": None,
    "notice": None,
    "answer_key": None,
    "reason": None,
    "prompt_tokens": None,
    "completion_tokens": None,
    "model": None,
    "persona": None,
}

# Separates the locale from the reply address in their column.
_ADDRESS = "\x1f"

# Fields of files that versions added after the first that knew files.
_ADDED = frozenset({"is_picture", "id"})

# What tells that an answer is there.
_ANSWERED = ("answer", "notice", "prompt_tokens", "completion_tokens")


def message_values(message: IncomingMessage) -> dict[str, Any]:
    """Return the columns of a message that need no key."""
    return {
        "platform": message.channel.platform,
        "channel": message.channel.channel,
        "thread": message.channel.thread,
        "message": message.id,
        "author_platform": message.author.platform,
        "author_is_bot": message.author.is_bot,
        "quoted_id": message.quoted_id,
        "quotes_bot": message.quotes_bot,
        "sent_at": message.sent_at,
        "server": message.server,
        "is_direct": message.is_direct,
    }


def question_texts(message: IncomingMessage) -> dict[str, str | None]:
    """Return the columns that are encrypted with the key of the question."""
    roles = sorted(message.author.roles)
    return {
        "author_id": message.author.id,
        "author_name": message.author.name,
        "author_roles": json.dumps(roles) if roles else "",
        "text": message.text,
        "files": files_to_json(message.files),
        "pictures": pictures_to_json(message.files, is_quoted=False),
        "locale": _locale_and_address(message),
    }


def _locale_and_address(message: IncomingMessage) -> str | None:
    """Return a locale and, behind it, the address of the reply: to older versions that is a locale too."""
    if message.reply_address is None:
        return message.locale
    return f"{message.locale or ''}{_ADDRESS}{message.reply_address}"


def quotation_texts(quoted: str | None, files: Iterable[Attachment] = ()) -> dict[str, str | None]:
    """Return the columns that are encrypted with the key of the quotation."""
    return {"quoted": quoted, "quoted_pictures": pictures_to_json(files, is_quoted=True)}


def files_to_json(files: Iterable[Attachment]) -> str | None:
    return json.dumps([file_fields(file) for file in files], ensure_ascii=False) if files else None


def file_fields(file: Attachment) -> dict[str, Any]:
    """Return a file without its picture; fields that older versions do not know are left out where they say nothing."""
    fields = asdict(replace(file, picture=None))
    del fields["picture"]
    return {name: value for name, value in fields.items() if value or name not in _ADDED}


def files_from_json(text: str | None) -> tuple[Attachment, ...]:
    try:
        files = tuple(map(_to_file, [] if text is None else json.loads(text)))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedRow("files") from error
    if any(type(value) is not type(usual) for file in files for value, usual in zip(_kinds(file), _USUAL, strict=True)):
        raise DamagedRow("files")
    return files


def _to_file(fields: Mapping[str, Any]) -> Attachment:
    fault = fields["fault"]
    return Attachment(**{**fields, "fault": None if fault is None else FileFault(fault)})


def _kinds(file: Attachment) -> tuple[object, ...]:
    texts = file.name, file.media_type, file.source, file.text, file.id
    return *texts, file.size, file.is_cut, file.is_quoted, file.is_picture


_USUAL = _kinds(Attachment(""))


def answer_values(answer: Answer) -> dict[str, Any]:
    """Return the columns of an answer that need no key."""
    return {
        "reason": answer.reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "model": answer.model or None,
        "persona": answer.persona or None,
    }


def answer_texts(answer: Answer) -> dict[str, str | None]:
    """Return the columns that are encrypted with the key of the answer."""
    return {"answer": answer.text, "notice": answer.notice}


_NULLABLE = {column for column in exchanges.columns if column.nullable}


def to_exchange(row: Mapping[str, Any]) -> Exchange:
    """Convert a row whose texts are decrypted.

    Raises:
        DamagedRow: Another program has written it, or its file is damaged.
    """
    roles = _roles(row["author_roles"])
    for column in EXCHANGE:
        value = row[column.name]
        if not (_is_valid(value, column.type) or (value is None and column in _NULLABLE)):
            raise DamagedRow(column.name)
    if row["seed"] < 0 or (row["reason"] is not None and None in [row[name] for name in _ANSWERED]):
        raise DamagedRow("seed or answer")
    try:
        kind, status = Kind(row["kind"]), Status(row["status"])
        reason = None if row["reason"] is None else FinishReason(row["reason"])
    except ValueError as error:
        raise DamagedRow("kind, status or reason") from error
    # A row from before the encryption has the person's id in place of a pseudonym.
    person = row["author"] if row["author_id"] is None else row["author_id"]
    locale, _, address = (row["locale"] or "").partition(_ADDRESS)
    return Exchange(
        id=row["id"],
        message=IncomingMessage(
            id=row["message"],
            channel=ChannelKey(row["platform"], row["channel"], row["thread"]),
            author=Author(row["author_platform"], person, row["author_name"], roles, row["author_is_bot"]),
            text=row["text"],
            sent_at=row["sent_at"],
            server=row["server"],
            is_direct=row["is_direct"],
            locale=locale or None,
            quoted=row["quoted"],
            quoted_id=row["quoted_id"],
            quotes_bot=row["quotes_bot"],
            files=files_from_json(row["files"]),
            is_addressed=kind is Kind.COMMAND,  # not stored: what was no command when it came is none later
            reply_address=address or None,
        ),
        kind=kind,
        status=status,
        seed=row["seed"],
        answer=None
        if reason is None
        else Answer(
            row["answer"],
            row["notice"],
            reason,
            Usage(row["prompt_tokens"], row["completion_tokens"]),
            row["model"] or "",
            row["persona"] or "",
        ),
        parts=tuple(row["parts"]),
        fence=row["fence"],
        is_unreadable=row["failure"] == UNREADABLE,
    )


def emptied(row: Mapping[str, Any]) -> tuple[Exchange, dict[str, Any]]:
    """Return the exchange of a claimed row that cannot be decrypted, without its texts, and the columns to change.

    Raises:
        DamagedRow: The rest of it is damaged too.
    """
    changed = BLANK | UNANSWERED | {"status": Status.OPEN, "failure": UNREADABLE}
    return to_exchange({**row, **changed, "author_name": "", "author_roles": "", "text": ""}), changed


def _roles(text: object) -> frozenset[str]:
    try:
        roles = json.loads(text) if isinstance(text, str) and text else []
    except (RecursionError, ValueError) as error:
        raise DamagedRow("author_roles") from error
    if not isinstance(roles, list) or not all(isinstance(each, str) for each in roles):
        raise DamagedRow("author_roles")
    return frozenset(roles)


def _is_valid(value: object, kind: TypeEngine[Any]) -> bool:
    match kind:
        case JSON():
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
        case SafeText() | Encrypted():
            return isinstance(value, str) and len(value) <= _LONGEST
        case UtcDateTime():
            return isinstance(value, datetime)
        case _:
            return isinstance(value, kind.python_type)

"""Exchanges to rows and back."""

from typing import Any

from sqlalchemy import Row

from bot.domain import (
    Answer,
    Author,
    ChannelKey,
    Exchange,
    FinishReason,
    IncomingMessage,
    Kind,
    Status,
    Usage,
)

UNQUOTED: dict[str, Any] = {"quoted": None, "quoted_id": None, "quotes_bot": False}

# A cleared exchange keeps its key, its order and the ids of its parts: no text, and nothing
# that tells its author.
BLANK: dict[str, Any] = {
    "author": "",
    "author_name": "",
    "author_roles": [],
    "text": "",
    **UNQUOTED,
    "locale": None,
    "failure": None,
}

UNANSWERED: dict[str, Any] = {
    "answer": None,
    "notice": None,
    "reason": None,
    "prompt_tokens": None,
    "completion_tokens": None,
}


def message_values(message: IncomingMessage) -> dict[str, Any]:
    return {
        "platform": message.channel.platform,
        "channel": message.channel.channel,
        "thread": message.channel.thread,
        "message": message.id,
        "author_platform": message.author.platform,
        "author": message.author.id,
        "author_name": message.author.name,
        "author_roles": sorted(message.author.roles),
        "author_is_bot": message.author.is_bot,
        "text": message.text,
        "quoted": message.quoted,
        "quoted_id": message.quoted_id,
        "quotes_bot": message.quotes_bot,
        "sent_at": message.sent_at,
        "server": message.server,
        "is_direct": message.is_direct,
        "locale": message.locale,
    }


def answer_values(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "notice": answer.notice,
        "reason": answer.reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


def to_exchange(row: Row[Any]) -> Exchange:
    return Exchange(
        id=row.id,
        message=IncomingMessage(
            id=row.message,
            channel=ChannelKey(row.platform, row.channel, row.thread),
            author=Author(
                row.author_platform, row.author, row.author_name, frozenset(row.author_roles), row.author_is_bot
            ),
            text=row.text,
            sent_at=row.sent_at,
            server=row.server,
            is_direct=row.is_direct,
            locale=row.locale,
            quoted=row.quoted,
            quoted_id=row.quoted_id,
            quotes_bot=row.quotes_bot,
        ),
        kind=Kind(row.kind),
        status=Status(row.status),
        seed=row.seed,
        answer=None
        if row.reason is None
        else Answer(row.answer, row.notice, FinishReason(row.reason), Usage(row.prompt_tokens, row.completion_tokens)),
        parts=tuple(row.parts),
        fence=row.fence,
    )

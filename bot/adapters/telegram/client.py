"""Calls to Telegram: the library as we need it, and what its errors mean."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import structlog
from telegram import Bot, Update
from telegram.error import BadRequest, Conflict, Forbidden, RetryAfter, TelegramError
from telegram.request import HTTPXRequest

from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.telegram.settings import TelegramSection
from bot.errors import (
    ChannelGone,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Calls under way at once; one channel has at most one.
_CONNECTIONS = 64

# Telegram tells by these words, and only by them, what is wrong with a request.
_GONE = (
    "message to edit not found",
    "message can't be edited",
    "message to delete not found",
    "message can't be deleted",
    "message_id_invalid",
    "message identifier is not specified",
)
_CHANNEL_GONE = (
    "chat not found",
    "group chat was",
    "chat_write_forbidden",
    "chat_send_plain_forbidden",
    "chat_restricted",
    "chat_admin_required",
    "not enough rights",
    "have no rights",
    "need administrator rights",
    "message thread not found",
    "topic_closed",
    "topic_deleted",
    "peer_id_invalid",
    "user_deactivated",
)


def open_bot(settings: TelegramSection) -> Bot:
    """Make the library's client; it connects with its first call."""
    # The library's own switch: without it each "retry after" brings a warning along.
    os.environ.setdefault("PTB_TIMEDELTA", "true")
    assert settings.token is not None, "an adapter without its token does not run"
    url = settings.api_url.rstrip("/")
    seconds = settings.call_seconds
    bounds: dict[str, Any] = {
        "read_timeout": seconds,
        "write_timeout": seconds,
        "connect_timeout": seconds,
        "pool_timeout": seconds,
        "proxy": settings.proxy.get_secret_value() or None,
    }
    return Bot(
        settings.token.get_secret_value(),
        base_url=f"{url}/bot",
        base_file_url=f"{url}/file/bot",
        request=_Request(_CONNECTIONS, **bounds),
        get_updates_request=_UpdatesRequest(1, **bounds),
    )


@contextmanager
def map_errors() -> Iterator[None]:
    """Let what Telegram answers, and what happens on the way to it, be errors of ours."""
    try:
        yield
    except RetryAfter as error:
        raise RateLimited(_seconds(error.retry_after)) from error
    except Forbidden as error:
        raise ChannelGone(error.message) from error
    except BadRequest as error:  # to the library one of the errors of the network
        raise _meaning(error.message) from error
    except Conflict as error:
        raise PlatformUnavailable(
            "another program asks Telegram for this bot's messages, and only one may: stop the other, or give this "
            "one a token of its own"
        ) from error
    except TelegramError as error:
        # Any 404 is to the library a wrong token; whether it is one, only getMe tells.
        raise PlatformUnavailable(f"Telegram cannot be reached: {type(error).__name__}") from error


def is_unchanged(error: BadRequest) -> bool:
    """Whether an edit was refused because the message looks like that already."""
    return "message is not modified" in error.message.lower()


def _meaning(said: str) -> PlatformError:
    if any(words in said.lower() for words in _GONE):
        return MessageGone(said)
    if any(words in said.lower() for words in _CHANNEL_GONE):
        return ChannelGone(said)
    # What else can be wrong with a text is the markup; plain words are worth a try.
    return MarkupRefused(said)


def _seconds(wait: int | timedelta) -> float:
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


class _Request(HTTPXRequest):
    """Says nothing of an answer that it cannot read: the library would log it, people's words included."""

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(payload.decode("utf-8", "replace"))
        except ValueError:
            raise TelegramError("the answer is no JSON") from None
        if not isinstance(answer, dict) or (answer.get("ok") and "result" not in answer):
            raise TelegramError("the answer is none of the Bot API")
        return answer

    async def do_request(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """Believe the answer and not its status: a refusal that comes with 200 has no result to read."""
        status, payload = await super().do_request(*args, **kwargs)
        if status == HTTPStatus.OK and "result" not in _Request.parse_json_payload(payload):
            return HTTPStatus.BAD_GATEWAY, payload
        return status, payload


class _UpdatesRequest(_Request):
    """Empties updates that the library cannot read, or the first of them would hold up all that follow."""

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        answer = _Request.parse_json_payload(payload)
        if "result" in answer:
            updates = answer["result"]
            if not isinstance(updates, list):
                raise TelegramError("the answer holds no updates")
            answer["result"] = [_readable(update) for update in updates if _has_id(update)]
        return answer


def _has_id(update: object) -> bool:
    return isinstance(update, dict) and isinstance(update.get("update_id"), int)


def _readable(update: dict[str, Any]) -> dict[str, Any]:
    try:
        Update.de_json(dict(update), None)
    except PARSE_ERRORS as error:
        log.warning("an update could not be read", update=update["update_id"], **describe_error(error))
        return {"update_id": update["update_id"]}
    return update

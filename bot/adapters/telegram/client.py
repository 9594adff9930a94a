"""Telegram's Bot API client: set-up of the library, and its errors as ours."""

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from telegram import Bot, Update
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, RetryAfter, TelegramError
from telegram.request import HTTPXRequest

from bot.adapters.malformed import skip_malformed
from bot.adapters.telegram.settings import TelegramSection
from bot.errors import (
    ChannelGone,
    EditRefused,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)

# The most concurrent calls; a channel has one at a time.
_CONNECTIONS = 64

_LOGIN_REFUSED = "Telegram does not know the bot's token: copy the one that @BotFather shows into BOT_TELEGRAM__TOKEN"

# Only the description of a 400 says what is wrong.
_MESSAGE_GONE = re.compile(
    "message to (?:edit|delete) not found|message_id_invalid|message identifier is not specified", re.IGNORECASE
)
_EDIT_REFUSED = re.compile(
    "message can't be (?:edited|deleted)|message_edit_time_expired|message_author_required", re.IGNORECASE
)
_CHANNEL_GONE = re.compile(
    "chat not found|group chat was|chat_write_forbidden|chat_send_plain_forbidden|chat_restricted"
    "|chat_admin_required|not enough rights|have no rights|need administrator rights|message thread not found"
    "|topic_closed|topic_deleted|peer_id_invalid|user_deactivated",
    re.IGNORECASE,
)


def open_bot(settings: TelegramSection) -> Bot:
    """Build the library's client; it connects with its first call."""
    # Without this switch the library warns at every RetryAfter.
    os.environ.setdefault("PTB_TIMEDELTA", "true")
    assert settings.token is not None, "an adapter without its token does not run"
    url = settings.api_url.rstrip("/")
    seconds = settings.call_seconds
    bounds: dict[str, Any] = {f"{step}_timeout": seconds for step in ("read", "write", "connect", "pool")}
    bounds["proxy"] = settings.proxy.get_secret_value() or None
    return Bot(
        settings.token.get_secret_value(),
        base_url=f"{url}/bot",
        base_file_url=f"{url}/file/bot",
        request=_Request(_CONNECTIONS, **bounds),
        get_updates_request=_UpdatesRequest(1, **bounds),
    )


@contextmanager
def map_errors() -> Iterator[None]:
    """Raise Telegram's refusals and network errors as errors of bot.errors."""
    try:
        yield
    except RetryAfter as error:
        raise RateLimited(_seconds(error.retry_after)) from error
    except Forbidden as error:
        raise ChannelGone(error.message) from error
    except BadRequest as error:  # before TelegramError: the library derives it from NetworkError
        raise _bad_request(error.message) from error
    except Conflict as error:
        raise PlatformUnavailable(
            "another program polls Telegram with this token, and only one may: stop the other program, or create a "
            "second bot for it"
        ) from error
    except TelegramError as error:
        # Includes InvalidToken, which the library raises for any 404; `check_token` decides.
        raise PlatformUnavailable(f"Telegram cannot be reached: {type(error).__name__}") from error


async def check_token(call: Callable[[], Awaitable[object]]) -> None:
    """Await a call of getMe.

    Raises:
        LoginRefused: The token is wrong.
    """
    try:
        await call()
    except InvalidToken:
        raise LoginRefused(_LOGIN_REFUSED) from None  # the library's message contains the token


def is_unchanged(error: BadRequest) -> bool:
    """Return whether an edit was refused because the message has this content already."""
    return "message is not modified" in error.message.lower()


def _bad_request(description: str) -> PlatformError:
    if _MESSAGE_GONE.search(description):
        return MessageGone(description)
    if _EDIT_REFUSED.search(description):
        return EditRefused(description)
    if _CHANNEL_GONE.search(description):
        return ChannelGone(description)
    # Any other BadRequest is treated as refused markup; the caller retries as plain text.
    return MarkupRefused(description)


def _seconds(wait: int | timedelta) -> float:
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


class _Request(HTTPXRequest):
    """Reports a malformed response without its content, which the library would log."""

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(payload.decode("utf-8", "replace"))
        except ValueError:
            raise TelegramError("the response is not JSON") from None
        if not isinstance(answer, dict) or (answer.get("ok") and "result" not in answer):
            raise TelegramError("the response is not from the Bot API")
        return answer

    async def do_request(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """Treat a refusal with status 200 as an error; the library expects a result there."""
        status, payload = await super().do_request(*args, **kwargs)
        if status == HTTPStatus.OK and "result" not in _Request.parse_json_payload(payload):
            return HTTPStatus.BAD_GATEWAY, payload
        return status, payload


class _UpdatesRequest(_Request):
    """Empties updates that the library cannot parse; one would block all updates after it."""

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        answer = _Request.parse_json_payload(payload)
        if "result" in answer:
            updates = answer["result"]
            if not isinstance(updates, list):
                raise TelegramError("the response contains no updates")
            answer["result"] = [_readable(update) for update in updates if _has_id(update)]
        return answer


def _has_id(update: object) -> bool:
    return isinstance(update, dict) and isinstance(update.get("update_id"), int)


def _readable(update: dict[str, Any]) -> dict[str, Any]:
    id, is_readable = update["update_id"], False
    with skip_malformed("telegram", update=id):
        Update.de_json(dict(update), None)
        is_readable = True
    return update if is_readable else {"update_id": id}

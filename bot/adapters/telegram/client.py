"""Telegram's Bot API client: set-up of the library, and its errors as ours."""

import asyncio
import json
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx
from telegram import Bot
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    EndPointNotFound,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
    TimedOut,
)
from telegram.request import HTTPXRequest

from bot.adapters.login import confirm
from bot.adapters.malformed import PARSE_ERRORS
from bot.adapters.proxy import find_proxy
from bot.adapters.response import parse_response, read_response
from bot.adapters.telegram.rich import plain_text
from bot.adapters.telegram.settings import TelegramSection
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)
from bot.util.clock import Clock
from bot.util.retry import retry_after
from bot.util.unreachable import why_unreachable

# The most concurrent calls; a channel has one at a time.
_CONNECTIONS = 64
# Methods that never return just True.
_RETURN_OBJECTS = (
    "sendMessage",
    "sendRichMessage",
    "answerGuestQuery",
    "editMessageText",
    "editMessageReplyMarkup",
    "getMe",
    "getWebhookInfo",
    "getChat",
    "getChatMember",
    "getFile",
    "createForumTopic",
)
# A chat with the fields that the library needs.
_CHAT: dict[str, Any] = {
    "id": 0,
    "type": "supergroup",
    "accent_color_id": 0,
    "max_reaction_count": 0,
    "accepted_gift_types": None,
}
# Seconds to wait after a 429 that does not say how long.
_RATE_LIMIT = 5.0
# Seconds between two questions whether the token is valid.
_SECOND_LOOK = 2.0
# Headers that say how a body was transferred.
_FRAMING = {"content-encoding", "content-length", "transfer-encoding"}
# An update as it was received, and Telegram's time then (seconds, or None), as unknown fields of the library's Update.
RAW, RECEIVED_AT = "raw", "received_at"

_LOGIN_REFUSED = "Telegram does not know the bot's token: copy the one that @BotFather shows into BOT_TELEGRAM__TOKEN"

# Characters of a refusal that are kept for the log.
_LONGEST_DESCRIPTION = 200
_QUOTED = re.compile(r'".*"|[^ -~]+', re.DOTALL)

# Only the description says what is wrong; in capitals where Telegram passes an error of its core through.
_MESSAGE_GONE = re.compile(
    "message to (?:edit|delete|be replied|reply) not found|message_id_invalid|message identifier is not specified"
    "|repl(?:y|ied) message not found|reply_message_id_invalid",
    re.IGNORECASE,
)
_EDIT_REFUSED = re.compile(
    "message can't be (?:edited|deleted)|message_edit_time_expired|message_author_required|message_delete_forbidden"
    "|there is no text in the message to edit",
    re.IGNORECASE,
)
_CHANNEL_GONE = re.compile(
    "chat not found|group chat was|chat was deleted|message thread not found|topic_deleted|topic_id_invalid"
    "|peer_id_invalid|chat_id_invalid|channel_invalid|user_deactivated|user is deactivated|user_is_bot"
    "|query is too old|query_id_invalid|can't initiate conversation|can't send messages to bots|chat_id is empty|user not found",
    re.IGNORECASE,
)
_ACCESS_DENIED = re.compile(
    "not enough rights|have no rights|need administrator rights|administrator rights are required|topic_closed"
    "|topic is closed|_forbidden|chat_restricted|chat_admin_required|user_banned_in_channel|channel_private"
    "|user_is_blocked|bot was (?:kicked|blocked|banned)|is not a member|payment_required|premium_required",
    re.IGNORECASE,
)
# Bot API 10.1 knows rich messages without blocks; an edit of older servers has neither text nor blocks.
_NO_BLOCKS = re.compile("rich message must be non-empty|message text is empty", re.IGNORECASE)
_TOO_LONG = re.compile("message is too long|message_too_long", re.IGNORECASE)


async def open_bot(settings: TelegramSection) -> Bot:
    """Build the library's client; it connects with its first call.

    Raises:
        ConfigError: The environment names a proxy of a kind that cannot be used.
    """
    # Without this switch the library warns at every RetryAfter.
    os.environ.setdefault("PTB_TIMEDELTA", "true")
    assert settings.token is not None, "an adapter without its token does not run"
    url = settings.api_url.rstrip("/")
    seconds = settings.call_seconds
    proxy = find_proxy("telegram", settings.proxy.get_secret_value(), url)
    # Reading the certificates of all authorities takes 20 ms, and httpx reads them for each transport.
    trusted = await asyncio.to_thread(httpx.create_ssl_context)
    bounds: dict[str, Any] = {f"{step}_timeout": seconds for step in ("read", "write", "connect", "pool")}
    return Bot(
        settings.token.get_secret_value(),
        base_url=f"{url}/bot",
        base_file_url=f"{url}/file/bot",
        request=_Request(_CONNECTIONS, proxy, trusted, **bounds),
        get_updates_request=_UpdatesRequest(1, proxy, trusted, **bounds),
    )


@contextmanager
def map_errors() -> Iterator[None]:
    """Raise Telegram's refusals and network errors as errors of bot.errors."""
    try:
        yield
    except RetryAfter as error:
        raise RateLimited(_seconds(error.retry_after)) from error
    except Forbidden as error:
        # An unknown refusal may pass.
        is_gone = _CHANNEL_GONE.search(error.message)
        raise (ChannelGone if is_gone else AccessDenied)(_for_log(error.message)) from error
    except BadRequest as error:  # before TelegramError: the library derives it from NetworkError
        raise _bad_request(error.message) from error
    except Conflict as error:
        raise PlatformUnavailable(
            "another program polls Telegram with this token, and only one may: stop the other program, or create a "
            "second bot for it"
        ) from error
    except TelegramError as error:
        if isinstance(error.__cause__, PlatformUnavailable):  # by `read_response`
            raise error.__cause__ from None
        # Includes InvalidToken, raised for any 401 or 404; `check_token` decides.
        cause = TimeoutError() if isinstance(error, TimedOut) else error.__cause__
        reason = error.message if cause is None else why_unreachable(cause)
        raise PlatformUnavailable(f"Telegram cannot be reached: {reason}") from error
    except PARSE_ERRORS as error:
        raise PlatformUnavailable(f"Telegram's response cannot be read: {type(error).__name__}") from error


async def check_token(call: Callable[[], Awaitable[object]], clock: Clock) -> None:
    """Await a call of getMe, a second time if the first one is refused.

    Raises:
        LoginRefused: The token is wrong.
    """

    async def ask() -> None:
        try:
            await call()
        except InvalidToken:
            raise LoginRefused(_LOGIN_REFUSED) from None  # the library's message contains the token

    await confirm(ask, clock, _SECOND_LOOK)


async def knows_rich_messages(bot: Bot) -> bool:
    """Ask the Bot API server, with a call that sends nothing, whether it is of version 10.1 or newer."""
    try:
        await bot.do_api_request("sendRichMessage")
    except EndPointNotFound:
        return False
    except BadRequest:  # there is no chat in the call
        return True
    raise TelegramError("the response is not from the Bot API")


def is_unchanged(error: BadRequest) -> bool:
    """Return whether an edit was refused because the message has this content already."""
    return "message is not modified" in error.message.lower() or "message_not_modified" in error.message.lower()


def knows_no_blocks(error: BadRequest) -> bool:
    """Return whether a server older than Bot API 10.2 has passed over the blocks of a rich message."""
    return bool(_NO_BLOCKS.search(error.message))


def _bad_request(description: str) -> PlatformError:
    refusals: tuple[tuple[re.Pattern[str], type[PlatformError]], ...] = (
        (_MESSAGE_GONE, MessageGone),
        (_EDIT_REFUSED, EditRefused),
        (_CHANNEL_GONE, ChannelGone),
        (_ACCESS_DENIED, AccessDenied),
        (_TOO_LONG, ContentRefused),
    )
    # Any other one is treated as refused markup: the caller sends the text once more, without.
    kind = next((kind for pattern, kind in refusals if pattern.search(description)), MarkupRefused)
    return kind(_for_log(description))


def _for_log(description: str) -> str:
    """Return a description without what it quotes, which may be a part of the message."""
    return _QUOTED.sub('"…"', description)[:_LONGEST_DESCRIPTION]


def _seconds(wait: int | timedelta) -> float:
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


class _Transport(httpx.AsyncHTTPTransport):
    """Reads each response to its end, decoded; httpx itself would read one of any length."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        try:
            body = await read_response(response.aiter_bytes(), "Telegram")
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _FRAMING]
        return httpx.Response(response.status_code, headers=headers, content=body, extensions=response.extensions)


class _Response(bytes):
    """A successful response, already parsed and checked."""

    answer: dict[str, Any]


class _Request(HTTPXRequest):
    """Bounds each whole call, and checks responses, whose content the library would log."""

    def __init__(self, connections: int, proxy: str | None, trusted: ssl.SSLContext, **options: Any) -> None:
        # With a transport of its own the client does not look for proxies itself.
        transport = _Transport(verify=trusted, proxy=proxy, limits=httpx.Limits(max_connections=connections))
        options["httpx_kwargs"] = {"transport": transport, "event_hooks": {"response": [self._note_date]}}
        self._received_at: float | None = None
        super().__init__(connections, **options)

    async def _note_date(self, response: httpx.Response) -> None:
        self._received_at = None
        with suppress(*PARSE_ERRORS):
            self._received_at = parsedate_to_datetime(response.headers["Date"]).timestamp()

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        assert isinstance(payload, _Response), "only successful responses get here"
        return payload.answer

    async def do_request(self, url: str, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        # The library's timeouts are those of single reads: a server that sends a byte now and then meets them all.
        given = kwargs.get("read_timeout")
        try:
            async with asyncio.timeout(given if isinstance(given, int | float) else self.read_timeout):
                status, payload = await super().do_request(url, *args, **kwargs)
        except TimeoutError:
            raise TimedOut from None
        answer = await parse_response(payload, _parsed)
        if answer.get("ok") is not True or status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _refusal(status, answer)
        response = _Response()
        response.answer = {"ok": True, "result": self._checked(url.rpartition("/")[2], answer.get("result"))}
        return status, response

    def _checked(self, method: str, result: Any) -> Any:
        """Return the result of a call as the library can read it.

        Raises:
            TelegramError: It is not what the Bot API returns.
        """
        match method, result:
            case (("sendMessage" | "sendRichMessage" | "editMessageText"), {"message_id": int(id)}) if id > 0:
                # Only the id is used, and the library could fail on the rest.
                return {"message_id": int(id), "date": 0, "chat": {"id": 0, "type": "private"}}
            case "editMessageText", True:  # of a message that was sent by a guest
                return result
            case "answerGuestQuery", {"inline_message_id": str(id)} if id:
                return {"inline_message_id": id}
            case "getMe", {"id": int(), "username": str(), "first_name": str()}:
                return result
            case "getWebhookInfo", {"url": str()}:
                return result
            case "getChatMember", {"status": str(status)}:
                # Only whether they administer the group is used; an administrator's rights change with each version.
                rank = "creator" if status in ("creator", "administrator") else "left"
                may = status == "creator" or result.get("can_manage_topics") is True
                person = {"id": 0, "is_bot": False, "first_name": ""}
                return {"status": rank, "is_anonymous": False, "user": person, "can_manage_topics": may}
            case "getChat", {"id": int()}:
                # Only whether it has topics is used; what a chat is described with grows with each version.
                return _CHAT | {"is_forum": result.get("is_forum") is True}
            case "createForumTopic", {"message_thread_id": int(id)} if id > 0:
                return {"message_thread_id": id, "name": "", "icon_color": 0}
            case "getFile", {"file_path": str(path)}:
                return {"file_id": "", "file_unique_id": "", "file_path": path}
            case "editMessageReplyMarkup", {"message_id": int(id)} if id > 0:
                # What a message replies to in another topic of its group is an external reply.
                replied = result.get("external_reply") or result.get("reply_to_message")
                text = result.get("text")
                if isinstance(rich := result.get("rich_message"), dict):
                    text = plain_text(rich.get("blocks"))
                message: dict[str, Any] = {"message_id": int(id), "date": 0, "chat": {"id": 0, "type": "private"}}
                if isinstance(text, str):
                    message["text"] = text
                if isinstance(replied, dict) and type(number := replied.get("message_id")) is int:
                    message["reply_to_message"] = {**message, "message_id": number}
                return message
            case (method, _) if method in _RETURN_OBJECTS:
                pass
            case _ if result is True:
                return result
        raise TelegramError("the response is not from the Bot API")


class _UpdatesRequest(_Request):
    """Passes updates on as they are; the library fails on a page if it cannot parse a part of one update."""

    def _checked(self, method: str, result: Any) -> Any:
        if not isinstance(result, list):
            raise TelegramError("the response contains no updates")
        return [
            {"update_id": id, RAW: update, RECEIVED_AT: self._received_at}
            for update in result
            if isinstance(update, dict) and type(id := update.get("update_id")) is int
        ]


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise TelegramError("the response is not JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise TelegramError("the response is not from the Bot API")
    return answer


def _refusal(status: int, answer: dict[str, Any]) -> TelegramError:
    """Return the library's error for a refusal; the library itself fails on unexpected types."""
    code = answer.get("error_code")
    # A proxy may have replaced the status.
    code = code if status < HTTPStatus.BAD_REQUEST and type(code) is int else status
    parameters = answer.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    description = answer.get("description")
    description = description if isinstance(description, str) else f"error {code}"
    match code, parameters:
        case _, {"migrate_to_chat_id": int(chat)} if chat < 0:
            return ChatMigrated(chat)
        case HTTPStatus.TOO_MANY_REQUESTS, _:
            seconds = retry_after(parameters.get("retry_after"), _RATE_LIMIT)
            return RetryAfter(timedelta(seconds=seconds))
        case HTTPStatus.BAD_REQUEST, _:
            return BadRequest(description)
        case ((HTTPStatus.UNAUTHORIZED | HTTPStatus.NOT_FOUND), _):
            return InvalidToken(description)
        case HTTPStatus.FORBIDDEN, _:
            return Forbidden(description)
        case HTTPStatus.CONFLICT, _:
            return Conflict(description)
        case _:
            return NetworkError(f"it answered {code}")

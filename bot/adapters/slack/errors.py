"""Slack's error codes as errors of bot.errors."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_slack_response import AsyncSlackResponse

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

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Errors after which a call is worth repeating.
TRANSIENT = (PlatformUnavailable, RateLimited)

# Seconds to wait when a rate limit has no Retry-After.
_DEFAULT_WAIT = 30.0

_CODES: dict[type[PlatformError], str] = {
    RateLimited: "ratelimited rate_limited message_limit_exceeded",
    PlatformUnavailable: (
        "internal_error fatal_error service_unavailable request_timeout team_added_to_org accesslimited"
    ),
    LoginRefused: "invalid_auth not_authed account_inactive token_revoked token_expired not_allowed_token_type",
    MarkupRefused: (
        "invalid_blocks invalid_blocks_format msg_too_long msg_blocks_too_long no_text invalid_attachments"
    ),
    MessageGone: "message_not_found is_inactive",
    EditRefused: "cant_update_message cant_delete_message edit_window_closed",
    ChannelGone: (
        "channel_not_found not_in_channel user_not_in_channel is_archived thread_not_found thread_locked "
        "restricted_action restricted_action_thread_locked restricted_action_read_only_channel "
        "restricted_action_thread_only_channel restricted_action_non_threadable_channel messages_tab_disabled "
        "cannot_dm_bot ekm_access_denied no_permission missing_scope user_not_found expired_url"
    ),
}
_ERRORS = {code: error for error, codes in _CODES.items() for code in codes.split()}


@contextmanager
def map_errors() -> Iterator[None]:
    """Raise the Web API's refusals and network errors as errors of bot.errors."""
    try:
        yield
    except SlackApiError as error:
        raise error_of(error.response) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PlatformUnavailable(f"Slack cannot be reached: {type(error).__name__}") from error


async def try_call(call: Awaitable[T], seconds: float) -> T | None:
    """Return the response of a call that is not essential; None if it fails or takes longer."""
    try:
        with map_errors():
            async with asyncio.timeout(seconds):
                return await call
    except PlatformError as error:
        log.warning("slack: optional call failed", error=str(error))
        return None


def error_of(response: object) -> PlatformError:
    """Return the error that a refusal by the Web API means."""
    if not isinstance(response, AsyncSlackResponse) or not isinstance(response.data, dict):
        return PlatformUnavailable("Slack's response cannot be parsed")
    code = str(response.data.get("error", ""))
    return error_for(response.status_code, code, response.headers.get("Retry-After"))


def error_for(status: int, code: str, retry_after: str | None) -> PlatformError:
    """Return the error that a status and an error code mean.

    >>> error_for(429, "ratelimited", "30")
    RateLimited('the platform asks to wait 30 s')
    >>> error_for(200, "channel_not_found", None)
    ChannelGone('Slack says channel_not_found')
    """
    error = RateLimited if status == 429 else _ERRORS.get(code, PlatformError)
    if error is RateLimited:
        return RateLimited(_seconds(retry_after))
    if status >= 500:
        error = PlatformUnavailable
    return error(f"Slack says {code or status}")


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or _DEFAULT_WAIT))
    except ValueError:
        return _DEFAULT_WAIT

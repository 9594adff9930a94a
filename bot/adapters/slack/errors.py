"""What Slack's refusals mean, in the words of bot.errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.errors import (
    ChannelGone,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)

# Where Slack says "wait" and not how long.
_WAIT = 30.0

_BUSY = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})
_LOGIN = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "not_allowed_token_type"}
)
_MARKUP = frozenset(
    {"invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "no_text", "invalid_attachments"}
)
_GONE = frozenset(
    {"message_not_found", "cant_update_message", "cant_delete_message", "edit_window_closed", "is_inactive"}
)
_CHANNEL_GONE = frozenset(
    {
        "channel_not_found",
        "not_in_channel",
        "user_not_in_channel",
        "is_archived",
        "thread_not_found",
        "thread_locked",
        "restricted_action",
        "restricted_action_thread_locked",
        "restricted_action_read_only_channel",
        "restricted_action_thread_only_channel",
        "restricted_action_non_threadable_channel",
        "messages_tab_disabled",
        "cannot_dm_bot",
        "ekm_access_denied",
        "no_permission",
        "missing_scope",
        "user_not_found",
        "expired_url",
    }
)
_PASSING = frozenset(
    {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org", "accesslimited"}
)

_MEANINGS: dict[type[PlatformError], frozenset[str]] = {
    LoginRefused: _LOGIN,
    MarkupRefused: _MARKUP,
    MessageGone: _GONE,
    ChannelGone: _CHANNEL_GONE,
}


@contextmanager
def map_errors() -> Iterator[None]:
    """Let what the Web API answers, and what happens on the way to it, be errors of ours."""
    try:
        yield
    except SlackApiError as error:
        raise of_response(error.response) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PlatformUnavailable(f"Slack cannot be reached: {type(error).__name__}") from error


def of_response(response: object) -> PlatformError:
    """The error that the Web API's answer stands for, if it is one of its answers."""
    if not isinstance(response, AsyncSlackResponse) or not isinstance(response.data, dict):
        return PlatformUnavailable("Slack's answer cannot be read")
    said = str(response.data.get("error", ""))
    return meaning(response.status_code, said, response.headers.get("Retry-After"))


def meaning(status: int, said: str, retry_after: str | None) -> PlatformError:
    """The error that an answer stands for.

    >>> meaning(429, "ratelimited", "30")
    RateLimited('the platform asks to wait 30 s')
    >>> meaning(200, "channel_not_found", None)
    ChannelGone('Slack says channel_not_found')
    """
    if status == 429 or said in _BUSY:
        return RateLimited(_seconds(retry_after))
    sentence = f"Slack says {said or status}"
    if status >= 500 or said in _PASSING:
        return PlatformUnavailable(sentence)
    for error, words in _MEANINGS.items():
        if said in words:
            return error(sentence)
    return PlatformError(sentence)


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or _WAIT))
    except ValueError:
        return _WAIT

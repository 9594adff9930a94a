"""Slack's error codes as errors of bot.errors."""

import asyncio
import re
from collections.abc import Awaitable
from typing import TypeVar

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_slack_response import AsyncSlackResponse

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
from bot.util.retry import retry_after

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Errors after which a call is worth repeating.
TRANSIENT = (PlatformUnavailable, RateLimited)

# Seconds to wait when a rate limit has no Retry-After.
_DEFAULT_WAIT = 30.0

_CODES: dict[type[PlatformError], str] = {
    RateLimited: "ratelimited rate_limited message_limit_exceeded",
    PlatformUnavailable: (
        "internal_error fatal_error service_unavailable request_timeout team_added_to_org org_login_required "
        "external_channel_migrating streaming_state_conflict messaging_processing_failed "
        # The methods that are called exist: a server that does not know them is not Slack's, or is being changed.
        "unknown_method"
    ),
    LoginRefused: "invalid_auth not_authed account_inactive token_revoked token_expired",
    MarkupRefused: (
        "invalid_blocks invalid_blocks_format msg_too_long msg_blocks_too_long no_text invalid_attachments "
        "too_many_attachments attachment_payload_limit_exceeded too_many_contact_cards markdown_text_conflict"
    ),
    ContentRefused: "slack_connect_blocked_file_type",
    MessageGone: "message_not_found",
    EditRefused: (
        "edit_window_closed cant_update_message update_failed as_user_not_supported cant_delete_message cant_broadcast_message block_mismatch "
        "no_dual_broadcast_content_update compliance_exports_prevent_deletion message_not_owned_by_app"
    ),
    AccessDenied: (
        "access_denied not_in_channel no_permission missing_scope ekm_access_denied posting_to_channel_denied "
        "thread_locked not_authorized accesslimited not_allowed_token_type two_factor_setup_required "
        # An archived channel may be opened again.
        "team_access_not_granted enterprise_is_restricted is_archived"
    ),
    ChannelGone: (
        "channel_not_found is_inactive user_not_in_channel user_not_found thread_not_found "
        "cannot_reply_to_message channel_type_not_supported messages_tab_disabled cannot_dm_bot"
    ),
}
_ERRORS = {code: error for error, codes in _CODES.items() for code in codes.split()}

# Codes that have many variants: restricted_action_read_only_channel, slack_connect_canvas_sharing_blocked.
_PREFIX, _SUFFIX = "restricted_action", "_blocked"

# Other codes are not logged: a proxy may answer with a page.
_CODE = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)


async def try_call(call: Awaitable[T], seconds: float) -> T | None:
    """Return the response of a call that is not essential; None if it fails or takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await call
    except (PlatformError, TimeoutError) as error:
        log.warning("slack: optional call failed", error=str(error) or "timeout")
        return None


def error_of(response: object) -> PlatformError:
    """Return the error that a refusal by the Web API means."""
    if not isinstance(response, AsyncSlackResponse) or not isinstance(response.data, dict):
        return PlatformUnavailable("Slack's response cannot be parsed")
    return error_for(response.status_code, response.data.get("error"), response.headers.get("Retry-After"))


def error_for(status: int, code: object, wait: str | None) -> PlatformError:
    """Return the error that a status and an error code mean; `wait` is the Retry-After.

    >>> error_for(429, "ratelimited", "30")
    RateLimited('the platform asks to wait 30 s')
    >>> error_for(200, "channel_not_found", None)
    ChannelGone('Slack says channel_not_found')
    >>> error_for(404, "<html>", None)
    PlatformUnavailable("Slack's response cannot be parsed (status 404)")
    """
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else ""
    kind = RateLimited if status == 429 else _ERRORS.get(code) or _variant_of(code)
    if kind is RateLimited:
        return RateLimited(retry_after(wait, _DEFAULT_WAIT))
    if status >= 500:
        return PlatformUnavailable(f"Slack says {code or status}")
    if not code or 300 <= status < 400:
        return PlatformUnavailable(f"Slack's response cannot be parsed (status {status})")
    return kind(f"Slack says {code}")


def code_of(error: PlatformError) -> str:
    """Return the code of the refusal that an error of a call stands for; "" without one."""
    cause = error.__cause__
    return str(cause.response.get("error")) if isinstance(cause, SlackApiError) else ""


def _variant_of(code: str) -> type[PlatformError]:
    if code.startswith(_PREFIX):
        return AccessDenied
    return ContentRefused if code.endswith(_SUFFIX) else PlatformError

"""Discord's refusals, unreadable answers and network errors as errors of bot.errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import discord

from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
    ReplyFull,
)
from bot.util.retry import retry_after
from bot.util.text import clean
from bot.util.unreachable import why_unreachable

LOGIN_REFUSED = (
    "Discord rejects the token: create a new one (Developer Portal, your application, Bot, Reset Token) "
    "and put it into BOT_DISCORD__TOKEN or the secret file discord__token"
)

# Seconds, where a rate limit names none: messages older than an hour allow about 3 edits in 20 s.
DEFAULT_WAIT = 20.0


class UnreadableAnswer(PlatformUnavailable):
    """The answer is not built as documented; the call may have had its effect."""


class ReferenceRefused(ContentRefused):
    """The message may not be a reply; without the reference it may pass."""


class UnknownRefusal(ContentRefused):
    """A code that is not listed here; another text may pass, an edit of this message will not."""


class UnknownDenial(AccessDenied):
    """A 403 with a code that is not listed here, which may concern the channel or this message only."""


class ThreadArchived(ChannelGone):
    """No message can be edited; sending reopens the thread unless it is locked as well."""


class TokenExpired(MessageGone):
    """The interaction is unknown, or its token is taken no more."""


class FollowUpsUsedUp(ReplyFull):
    """An interaction takes no further message: where the bot is no member, five are the most."""


class ThreadExists(PlatformError):
    """The message has a thread already."""


# Answers that stay the same for this call, and do not concern the connection.
REFUSALS = (AccessDenied, ChannelGone, ContentRefused, EditRefused, MessageGone)

# https://discord.com/developers/docs/topics/opcodes-and-status-codes#json; other codes go by the status.
_CODES: dict[type[PlatformError], frozenset[int]] = {
    # Too many edits of an old message, slow mode, announcements, writes to a channel or server, direct channels.
    RateLimited: frozenset({30046, 20016, 20022, 20028, 20029, 40003, 40062}),
    # Sending or a feature is disabled for now, Cloudflare, overloaded.
    PlatformUnavailable: frozenset({40004, 40006, 40333, 130000}),
    # No permission to read the history; a system message.
    ReferenceRefused: frozenset({160002, 50021}),
    # Channel or server unknown, not a text channel.
    ChannelGone: frozenset({10003, 10004, 50008}),
    ThreadArchived: frozenset({50083}),
    ThreadExists: frozenset({160004}),
    FollowUpsUsedUp: frozenset({40094}),
    MessageGone: frozenset({10008}),
    # Webhook or interaction unknown, token of an interaction expired.
    TokenExpired: frozenset({10015, 10062, 50027}),
    # No access, no permission, direct messages closed, verification level too low, no two-factor login, locked thread.
    AccessDenied: frozenset({50001, 50013, 50007, 50009, 60003, 160005}),
    # Written by another user, not editable.
    EditRefused: frozenset({50005, 50146}),
    # Explicit content, forbidden words, AutoMod (text, title), harmful links.
    ContentRefused: frozenset({20009, 20031, 200000, 200001, 240000}),
}
_ERRORS = {code: error for error, codes in _CODES.items() for code in codes}
_INVALID_FORM = 50035

# What the library raises for an answer that is not built as documented.
_UNREADABLE = tuple(error for error in PARSE_ERRORS if error is not OSError)


@contextmanager
def map_errors() -> Iterator[None]:
    """Raise the library's errors as errors of bot.errors.

    A 401 is PlatformUnavailable here: one alone does not prove that the token is wrong.

    Raises:
        LoginRefused: The login itself was refused.
        PlatformError: Any other refusal; PlatformUnavailable for an answer that cannot be parsed.
    """
    try:
        yield
    except discord.RateLimited as exc:
        raise RateLimited(retry_after(exc.retry_after, DEFAULT_WAIT)) from exc
    except discord.LoginFailure as exc:
        raise LoginRefused(LOGIN_REFUSED) from exc
    except discord.HTTPException as exc:
        raise _refusal(exc) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise PlatformUnavailable(f"Discord cannot be reached: {why_unreachable(exc)}") from exc
    except (discord.InvalidData, *_UNREADABLE) as exc:
        found = describe_error(exc)
        raise UnreadableAnswer(f"Discord's answer cannot be read: {found['error']} at {found['at']}") from exc
    except RuntimeError as exc:
        if exc.args != ("Session is closed",):
            raise
        raise PlatformUnavailable("the connection to Discord was closed") from exc


def _refusal(exc: discord.HTTPException) -> PlatformError:
    given: object = exc.code  # any JSON value
    code = given if isinstance(given, int) else 0
    said = f"Discord answered {exc.status}, code {code}: {clean(str(exc.text))[:200]}"
    error = _ERRORS.get(code)
    if error is RateLimited:
        return RateLimited(DEFAULT_WAIT)
    if error is not None:
        return error(said)
    # Without a code it comes from something in front of the API, and says nothing about this call.
    if exc.status == 401 or not code or not 400 <= exc.status < 500:
        return PlatformUnavailable(said)
    if exc.status == 403:
        return UnknownDenial(said)
    if exc.status == 404:
        return MessageGone(said)
    if code == _INVALID_FORM and "message_reference" in exc.text:
        return ReferenceRefused(said)
    return UnknownRefusal(said)

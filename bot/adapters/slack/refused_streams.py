"""Where Slack has refused streams, for an hour."""

import structlog

from bot.adapters.slack.errors import code_of
from bot.adapters.slack.sessions import NoStopControl
from bot.errors import PlatformError
from bot.util.clock import Clock
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds: an app may become an agent, and a channel may be opened again.
_REMEMBERED = 3600.0
# Refusals that concern the app, and those that concern one thread, message or user; others concern a channel.
_OF_THE_APP = frozenset({"missing_scope", "not_allowed_token_type", "not_authorized", "unknown_method"})
_OF_ONE_CALL = frozenset({"thread_not_found", "message_not_found", "user_not_found"})


class RefusedStreams:
    """Remembers refusals for good, so that Slack is not asked for each reply; logs each reason once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reasons: RecentDict[str, tuple[float, str]] = RecentDict()  # with the end, by channel; "" for all

    def holds(self, channel: str) -> bool:
        """Return whether streams are refused there."""
        now = self._clock.now()
        return any(self._reasons[place][0] > now for place in ("", channel) if place in self._reasons)

    def note(self, channel: str, error: PlatformError) -> None:
        """Remember a refusal, unless another thread of the channel may have a stream."""
        code, now, reason = code_of(error), self._clock.now(), str(error)
        place = "" if code in _OF_THE_APP or isinstance(error, NoStopControl) else channel
        if all(reason != known or until <= now for until, known in self._reasons.values()):
            log.info("slack: replies are edited, streams are refused", channel=place or "all", error=reason)
        if code not in _OF_ONE_CALL:
            self._reasons[place] = now + _REMEMBERED, reason

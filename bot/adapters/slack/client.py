"""The Web API, called as Slack asks: what was told to wait is not called before its time."""

import math
from collections.abc import Mapping
from typing import Any

from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.adapters.slack.errors import of_response
from bot.errors import RateLimited
from bot.util.clock import Clock

# What Slack counts for each channel by itself; all else it counts for the method, over all channels.
_PER_CHANNEL = frozenset({"chat.postMessage"})

# Of channels that were told to wait so many are remembered before those whose time is over are dropped.
_REMEMBERED = 1024


class PatientWebClient(AsyncWebClient):
    """The library's client; `api_call`, which all methods end in, refuses what Slack would refuse.

    Else each channel would hear for itself that all have to wait.

    Raises:
        RateLimited: The method was told to wait, and that time is not over.
    """

    def __init__(self, clock: Clock, token: str, **given: Any) -> None:
        super().__init__(token, **given)
        self._clock = clock
        self._not_before: dict[tuple[str, object], float] = {}

    async def api_call(self, api_method: str, **given: Any) -> AsyncSlackResponse:
        lane = api_method, _channel(given) if api_method in _PER_CHANNEL else None
        wait = self._not_before.get(lane, -math.inf) - self._clock.now()
        if wait > 0:
            raise RateLimited(wait)
        try:
            return await super().api_call(api_method, **given)
        except SlackApiError as error:
            refusal = of_response(error.response)
            if isinstance(refusal, RateLimited):
                self._note(lane, self._clock.now() + refusal.seconds)
            raise

    def _note(self, lane: tuple[str, object], until: float) -> None:
        if len(self._not_before) >= _REMEMBERED:
            now = self._clock.now()
            self._not_before = {lane: time for lane, time in self._not_before.items() if time > now}
        self._not_before[lane] = max(until, self._not_before.get(lane, until))


def _channel(given: Mapping[str, Any]) -> object:
    arguments = given.get("json") or given.get("params") or given.get("data") or {}
    return arguments.get("channel") if isinstance(arguments, Mapping) else None

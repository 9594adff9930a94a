"""Refusals of a request; each API writes them in its own form."""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus

from starlette.responses import Response

from bot.errors import EngineBusy, EngineError, EngineUnavailable, PicturesRefused, PromptTooLong

# Seconds; OpenAI's clients ignore a longer Retry-After, and repeat the request within 8 s.
_LONGEST_RETRY_AFTER = 60


class ApiError(Exception):
    """A request that gets no answer: HTTP status, sentence, and OpenAI's code and parameter.

    Where OpenAI's clients would repeat it in vain, `x-should-retry: false` stops them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status == HTTPStatus.NOT_IMPLEMENTED or int(self.headers.get("Retry-After", 0)) > _LONGEST_RETRY_AFTER:
            self.headers["x-should-retry"] = "false"
        super().__init__(message)


WriteError = Callable[[ApiError], Response]
"""The form of one API's errors."""


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)


def of_engine(error: EngineError) -> ApiError:
    """Translate the engine's refusals; a fault names nothing of the request."""
    match error:
        case EngineBusy():
            seconds = str(max(1, math.ceil(error.wait or 1)))
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": seconds})
        case PromptTooLong():
            return ApiError(400, str(error), code="context_length_exceeded", param="messages")
        case PicturesRefused():
            return ApiError(400, str(error), param="messages")
        case EngineUnavailable():
            return ApiError(503, "the model is not ready", headers={"Retry-After": "10"})
        case _:
            return ApiError(500, "the model failed on this request")

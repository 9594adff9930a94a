"""The polling API: `POST /chat` starts an answer, `POST /get_response` returns the text so far.

Requests and responses are those of a 2023 fork of THUDM/ChatGLM-6B; every answer has status 200.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bot.domain import ChatRequest, Delta, Fallback, Finished
from bot.server.errors import ApiError, bad_request
from bot.server.generation import Backend, Client
from bot.server.requests import chat_of, history, text
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock

# Seconds for which a finished answer can be read, and the number that is kept.
_KEPT_SECONDS = 3600.0
_KEPT = 1000
# Characters, or digits, of a client's id: it is kept as long as the answer.
_LONGEST_ID = 256
# Answers in progress, beyond which the original is busy: 10 at work and 20 waiting.
_MOST_OPEN = 30

_BUSY, _KNOWN, _UNKNOWN, _BAD = 100, 101, 102, 103

# A client's own id; a number and the string of its digits are two ids.
_Id = tuple[str, str | int]


@dataclass(slots=True)
class _Result:
    timestamp: float = field(default_factory=time.time)
    text: str = ""
    is_handled: bool = False
    is_finished: bool = False
    fallback: str = ""  # the model that answers, if it is another than the default one
    error: str = ""
    ended: float = 0.0

    def as_json(self) -> dict[str, Any]:
        response = {
            "is_finished": self.is_finished,
            "is_handled": self.is_handled,
            "response": self.text,
            "timestamp": self.timestamp,
        }
        response |= {"model": self.fallback} if self.fallback else {}
        return response | ({"error": self.error} if self.error else {})


class Polling:
    """Answers in progress and finished ones, by client and the id that it chose."""

    def __init__(self, tasks: BackgroundTasks, clock: Clock) -> None:
        self._tasks = tasks
        self._clock = clock
        self._results: dict[_Id, _Result] = {}

    async def start(self, request: Request, body: Mapping[str, Any], backend: Backend) -> Response:
        """Begin an answer to `query`, in the background."""
        id = _id_of(request, body)
        query, turns = text(body, "query"), history(body)
        self._forget_old()
        if self._open > _MOST_OPEN or backend.engine.load.waiting >= backend.max_waiting:
            return _code(_BUSY, "busy now")
        if id in self._results:
            return _code(_KNOWN, "request_id already exists")
        if len(self._results) >= _KEPT:
            finished = {id: result.ended for id, result in self._results.items() if result.is_finished}
            del self._results[min(finished, key=finished.__getitem__)]
        # Its own, because the answer outlives this request.
        client = replace(request.state.client)
        result = self._results[id] = _Result()
        try:
            call = await backend.accept(client, chat_of(turns, query), backend.settings.params)
        except BaseException:
            backend.release(client)
            del self._results[id]
            raise
        self._tasks.start(self._answer(result, backend, client, call))
        return _code(0, "start process")

    async def read(self, request: Request, body: Mapping[str, Any], backend: Backend) -> Response:
        """Return the text so far."""
        self._forget_old()
        result = self._results.get(_id_of(request, body))
        if result is None:
            return _code(_UNKNOWN, "request_id not exists")
        return _code(0, "success", response=result.as_json())

    async def _answer(self, result: _Result, backend: Backend, client: Client, call: ChatRequest) -> None:
        try:
            async with aclosing(backend.generate(call)) as events:
                async for event in events:
                    match event:
                        case Fallback(model):
                            result.fallback = backend.id_of(model)
                        case Delta(more):
                            result.is_handled = True
                            result.text += more
                        case Finished():
                            result.is_handled = True
        except ApiError as error:
            result.error = error.message
        except asyncio.CancelledError:
            result.error = "the server is stopping"
            raise
        finally:
            backend.release(client)
            result.is_handled = result.is_finished = True
            result.ended = self._clock.now()

    @property
    def _open(self) -> int:
        return sum(not result.is_finished for result in self._results.values())

    def _forget_old(self) -> None:
        oldest = self._clock.now() - _KEPT_SECONDS
        for id, result in list(self._results.items()):
            if result.is_finished and result.ended <= oldest:
                del self._results[id]


def polling_error(error: ApiError) -> Response:
    """Write a refusal as a code: clients of this API read no status."""
    return _code(_BUSY if error.status in {429, 503} else _BAD, error.message)


def _id_of(request: Request, body: Mapping[str, Any]) -> _Id:
    id = body.get("request_id")
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise bad_request("request_id is missing, or neither a string nor a whole number", "request_id")
    if len(str(id)) > _LONGEST_ID:
        raise bad_request(f"request_id is longer than {_LONGEST_ID} characters", "request_id")
    return (request.state.client.name, id)


def _code(code: int, message: str, **more: object) -> Response:
    return JSONResponse({"code": code, "msg": message, **more}, HTTPStatus.OK)

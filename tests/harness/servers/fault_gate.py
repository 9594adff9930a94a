"""What stands before a loopback server, and may keep a call waiting or answer it in the server's place."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

# Told of each call before the server is; an answer of its own is all that the caller gets.
Guard = Callable[[web.Request], Awaitable[web.Response | None]]

# Turns of the event loop in which the end of a connection is read that stands behind the call.
_TURNS = 3


async def is_client_connected(request: web.Request) -> bool:
    """Whether the caller still waits for the answer.

    On a busy machine calls are given up before their turn comes; a wait that nobody was told of
    binds nobody.
    """
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return request.transport is not None and not request.transport.is_closing()


class FaultGate:
    """A middleware of aiohttp's whose guard can be set, and changed, at any time."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    def app(self) -> web.Application:
        """An application behind this gate; web sockets pass unseen."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await handler(request)
            try:
                await request.read()  # aiohttp keeps it for who reads it next
            except (ConnectionError, web.RequestPayloadError):
                return web.Response(status=400)  # the caller is gone, in the middle of a word
            answer = await self.guard(request) if self.guard is not None else None
            return answer if answer is not None else await handler(request)

        return web.Application(middlewares=[guarded])

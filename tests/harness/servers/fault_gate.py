"""A middleware that delays or answers calls in place of a loopback server."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

# Called before the server; a response of the guard replaces the server's.
Guard = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
# Called in place of the server, with its handler.
Wrapper = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
# Called with the server's response, which it may replace: the call has been executed.
Rewrite = Callable[[web.Request, web.StreamResponse], Awaitable[web.StreamResponse]]

# Turns of the event loop until the end of a connection behind the call is read.
_TURNS = 3


async def is_client_connected(request: web.Request) -> bool:
    """Return whether the caller still waits for the response.

    On a busy machine calls time out before the server processes them; a Retry-After that
    was not received is not binding.
    """
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return request.transport is not None and not request.transport.is_closing()


class FaultGate:
    """An aiohttp middleware whose `guard`, `wrapper` and `rewrite` can be changed at any time."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self.wrapper: Wrapper | None = None
        self.rewrite: Rewrite | None = None

    def app(self) -> web.Application:
        """Return an application with this middleware; web sockets bypass it."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await handler(request)
            try:
                await request.read()  # aiohttp caches it
            except (ConnectionError, web.RequestPayloadError):
                return web.Response(status=400)  # the caller closed the connection within the body
            answer = await self.guard(request) if self.guard is not None else None
            if answer is not None:
                return answer
            answer = await (handler(request) if self.wrapper is None else self.wrapper(request, handler))
            return answer if self.rewrite is None else await self.rewrite(request, answer)

        return web.Application(middlewares=[guarded])

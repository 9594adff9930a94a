"""What stands before a loopback server, and may keep a call waiting or answer it in the server's place."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

# Told of each call before the server is; an answer of its own is all that the caller gets.
Guard = Callable[[web.Request], Awaitable[web.Response | None]]


class Gate:
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

"""Files that a loopback platform hands out."""

import asyncio
from contextlib import suppress

from aiohttp import web


class FileShelf:
    """Files by path; with `token` only to who names it.  `elsewhere` redirects each request there."""

    def __init__(self, token: str = "") -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failures = 0  # remaining 500 responses
        self.elsewhere = ""
        self.is_open = asyncio.Event()  # while cleared, a file stops after its first byte
        self.is_open.set()
        self._token = token

    async def hand_out(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.asked.append(path)
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        if self.failures:
            self.failures -= 1
            return web.Response(status=500)
        if self.elsewhere:
            raise web.HTTPFound(self.elsewhere)
        if path not in self.files:
            return web.Response(status=404)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.files[path][:1])
        await self.is_open.wait()
        with suppress(ConnectionError):  # its reader was killed meanwhile
            await response.write(self.files[path][1:])
        return response

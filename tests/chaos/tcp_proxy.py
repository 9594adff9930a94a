"""A TCP proxy that can cut connections in the middle of a byte stream."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

Cut = Literal["reset", "hole", "stall", "mute", "deaf"]
CUTS: tuple[Cut, ...] = ("reset", "hole", "stall", "mute", "deaf")

# Real seconds of a blocked connection: some calls time out meanwhile, some do not.
_SHORTEST, _LONGEST = 0.05, 0.7
_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; closing then resets


class _End:
    """The writing side of one end of a connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._has_ended = False

    async def write(self, data: bytes) -> None:
        """Write, or drop the data if the end is closed."""
        if not (self._has_ended or self._writer.transport.is_closing()):
            self._writer.write(data)
            await self._writer.drain()

    def finish(self) -> None:
        if not (self._has_ended or self._writer.transport.is_closing()):
            self._has_ended = True
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        with suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()


class TcpProxy:
    """All connections between the bot and one server.

    A cut happens after a given number of bytes, in either direction, and affects all
    connections:

        reset   both ends are reset
        hole    nothing passes for a moment, then both ends are reset
        stall   nothing passes for a moment, then everything held back
        mute    the server's direction ends; the bot reads an end of file
        deaf    the bot's direction ends
    """

    def __init__(self, seed: int) -> None:
        self.cuts: dict[Cut, int] = dict.fromkeys(CUTS, 0)
        self.torn = 0  # cuts within the data of a call
        self.latency = 0.0  # seconds that data takes longer, in each direction
        self._chance = random.Random(seed)
        self._connections: set[tuple[_End, _End]] = set()  # the bot's end and the server's
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._left = 0
        self._next: Cut | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._has_cut = asyncio.Event()

    async def cut(self, kind: Cut, after: int) -> None:
        """Cut after this many bytes; return when the cut is over."""
        self._has_cut.clear()
        self._left, self._next = after, kind
        await self._has_cut.wait()
        if self._recovery is not None:
            await self._recovery
            self._recovery = None

    def block(self) -> None:
        """Let nothing pass until `unblock`, in neither direction; no connection ends."""
        self._is_open.clear()

    def unblock(self) -> None:
        self._is_open.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        bot, server = connection = _End(writer), _End(far_writer)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server))
                pumps.create_task(self._pump(far_reader, bot))
        finally:
            self._connections.discard(connection)
            bot.close()
            server.close()

    async def _pump(self, reader: asyncio.StreamReader, to: _End) -> None:
        # Broken connections are expected; both ends notice.
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.latency:
                    await asyncio.sleep(self.latency)
                await self._is_open.wait()
                if self._next is not None and self._left < len(data):
                    await to.write(data[: self._left])
                    self.torn += self._left > 0
                    data = data[self._left :]
                    self._apply(self._next)
                    await self._is_open.wait()
                self._left -= len(data)
                await to.write(data)
            to.finish()

    def _apply(self, kind: Cut) -> None:
        self._next = None
        self.cuts[kind] += 1
        match kind:
            case "reset":
                self._reset()
            case "hole" | "stall":
                self._is_open.clear()
                self._recovery = asyncio.create_task(self._recover(kind))
            case "mute" | "deaf":
                for bot, server in self._connections:
                    (bot if kind == "mute" else server).finish()
        self._has_cut.set()

    async def _recover(self, kind: Cut) -> None:
        await asyncio.sleep(self._chance.uniform(_SHORTEST, _LONGEST))
        if kind == "hole":
            self._reset()
        self._is_open.set()

    def _reset(self) -> None:
        for end in [end for connection in self._connections for end in connection]:
            end.reset()


@asynccontextmanager
async def open_tcp_proxy(platform: Any, seed: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy in front of a platform; the bot must start after it."""
    async with open_proxy_to(platform.server_port, seed) as (proxy, port):
        platform.set_port(port)
        yield proxy


@asynccontextmanager
async def open_proxy_to(port: int, seed: int) -> AsyncIterator[tuple[TcpProxy, int]]:
    """Run a proxy in front of a port of this machine; yield it and its own port."""
    proxy = TcpProxy(seed)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(proxy.connect(reader, writer, port))
        connections.add(connection)
        connection.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield proxy, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

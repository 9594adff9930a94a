"""A TCP line between the bot and a loopback platform, that can be cut in the middle of a byte stream."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

Cut = Literal["reset", "hole", "stall", "mute", "deaf"]
CUTS: tuple[Cut, ...] = ("reset", "hole", "stall", "mute", "deaf")

# Real seconds for which nothing passes: some calls are given up meanwhile, some are not.
_SHORTEST, _LONGEST = 0.05, 0.7
_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; closing then resets


class _End:
    """One end of a connection, as something to write to."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._has_ended = False

    async def write(self, data: bytes) -> None:
        """What is sent where nothing can be sent any more is lost, as elsewhere."""
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

    A cut comes when a given number of bytes has passed, in either direction, and hits
    every connection there is:

        reset   each end hears that the other is gone
        hole    nothing passes for a moment, then all is reset
        stall   nothing passes for a moment, then all that was held up
        mute    the server's words end, the bot's go on: it hears the end of a file
        deaf    the bot's words end, the server's go on
    """

    def __init__(self, seed: int) -> None:
        self.cuts: dict[Cut, int] = dict.fromkeys(CUTS, 0)
        self.torn = 0  # how many cuts fell into the middle of what was being sent
        self._chance = random.Random(seed)
        self._lines: set[tuple[_End, _End]] = set()  # the bot's end, the server's
        self._flows = asyncio.Event()
        self._flows.set()
        self._left = 0
        self._next: Cut | None = None
        self._healing: asyncio.Task[None] | None = None
        self._was_cut = asyncio.Event()

    async def cut(self, kind: Cut, after: int) -> None:
        """Wait for the next cut, which comes after so many bytes, until its moment is over."""
        self._was_cut.clear()
        self._left, self._next = after, kind
        await self._was_cut.wait()
        if self._healing is not None:
            await self._healing
            self._healing = None

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        bot, server = line = _End(writer), _End(far_writer)
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server))
                pumps.create_task(self._pump(far_reader, bot))
        finally:
            self._lines.discard(line)
            bot.close()
            server.close()

    async def _pump(self, reader: asyncio.StreamReader, to: _End) -> None:
        # A broken line is what we are for; both ends get to know of it.
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows.wait()
                if self._next is not None and self._left < len(data):
                    await to.write(data[: self._left])
                    self.torn += self._left > 0
                    data = data[self._left :]
                    self._strike(self._next)
                    await self._flows.wait()
                self._left -= len(data)
                await to.write(data)
            to.finish()

    def _strike(self, kind: Cut) -> None:
        self._next = None
        self.cuts[kind] += 1
        match kind:
            case "reset":
                self._reset()
            case "hole" | "stall":
                self._flows.clear()
                self._healing = asyncio.create_task(self._heal(kind))
            case "mute" | "deaf":
                for bot, server in self._lines:
                    (bot if kind == "mute" else server).finish()
        self._was_cut.set()

    async def _heal(self, kind: Cut) -> None:
        await asyncio.sleep(self._chance.uniform(_SHORTEST, _LONGEST))
        if kind == "hole":
            self._reset()
        self._flows.set()

    def _reset(self) -> None:
        for end in [end for line in self._lines for end in line]:
            end.reset()


@asynccontextmanager
async def open_tcp_proxy(platform: Any, seed: int) -> AsyncIterator[TcpProxy]:
    """Put a wire between a platform and the bot that is about to come."""
    wire, port = TcpProxy(seed), platform.server_port
    lines: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(wire.connect(reader, writer, port))
        lines.add(line)
        line.add_done_callback(lines.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    platform.set_port(server.sockets[0].getsockname()[1])
    try:
        yield wire
    finally:
        server.close()
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)

"""HTTP servers with bounded connections."""

import asyncio
import random
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import h11
import structlog
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bot.errors import AddressUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Connections, as a share of the files that the process may open.  A silent one costs some KiB; closing it early
# costs more, because its client comes again.
_LIMIT, _SHARE = 4_096, 8
# Seconds that each may take from its start to its last response, less up to this part: those of clients that came
# together end at different times.
_SECONDS, _SPREAD = 15.0, 0.3
# The part of these after which a response is the last one of its connection: the rest is for that one.
_LAST_RESPONSE = 0.3
_CLOSE = (b"connection", b"close")

# A body takes this many seconds at most for so many bytes, and in all once its response is complete: 1 KiB/s.
_BODY_SECONDS, _BODY_BYTES = 16.0, 2**14
# Seconds in which a client reads the 48 KiB between the marks of asyncio's buffer, at 1 KiB/s too.
_READ_SECONDS = 60.0

# Seconds between two log lines about closed connections.
_LOG_INTERVAL = 600.0

# Seconds for open requests on shutdown.
_SHUTDOWN_SECONDS = 1
# Connections that one pass of the event loop accepts, and those that wait in the kernel.  asyncio's `backlog` is
# both; a few hundred accepted at once would hold up everything else.
ACCEPTED_AT_ONCE = 4
WAITING = 128

_END_OF_HEADERS = b"\r\n\r\n"


@asynccontextmanager
async def serve_app(
    app: ASGIApp, section: str, host: str, port: int, *, limit: int | None = None, seconds: float = _SECONDS
) -> AsyncIterator[int]:
    """Serve the application inside the block; yield the port.

    `section` of config.toml has its settings; `limit` and `seconds` are those of `BoundedConnections`.

    Raises:
        AddressUnavailable: The port is in use, or the host is not an address of this machine.
    """
    with _listening(section, host, port) as listener:
        port = listener.getsockname()[1]
        connections = BoundedConnections(HttpProtocol, section, limit=limit, seconds=seconds)
        server = _Server(
            uvicorn.Config(
                app,
                http=connections,  # type: ignore[arg-type]  # a factory of protocols
                backlog=ACCEPTED_AT_ONCE,
                log_level="error",  # a warning for each request that is not HTTP could fill the disk
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]), name=section)
        log.info("HTTP server listening", section=section, host=host, port=port)
        try:
            yield port
        finally:
            server.should_exit = True
            connections.close()
            await asyncio.wait([task])
            task.result()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: app.py handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(WAITING)


def check_address(section: str, host: str, port: int) -> None:
    """Check that a server of `[section]` could listen now.

    Raises:
        AddressUnavailable: The port is in use, or the host is not an address of this machine.
    """
    with _listening(section, host, port):
        pass


@contextmanager
def _listening(section: str, host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python appends the address in its own form
        raise AddressUnavailable(
            f"the HTTP server of [{section}] cannot listen on {host}:{port} ({reason}); change "
            f"{section}.port (0 = any free port) or {section}.host, or set {section}.enabled = false"
        ) from error
    with listener:
        yield listener


class HttpProtocol(H11Protocol):
    """uvicorn's protocol, which closes a connection whose body does not come, or whose response is not read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._body_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._is_old = False

    def retire(self) -> None:
        """Make the response of the next request the last one: the client opens another connection for the one after it."""
        self._is_old = True

    @property
    def is_busy(self) -> bool:
        """Return whether the client waits for its response, or reads it."""
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]  # None before a request
            return False
        return self.conn.their_state is not h11.SEND_BODY and not self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch_body()
        if not self._is_old or self.cycle is None:  # before a request
            return
        if _CLOSE not in self.cycle.default_headers:
            self.cycle.default_headers = [*self.cycle.default_headers, _CLOSE]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._body_timer, self._read_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(_READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _watch_body(self) -> None:
        is_open = self.conn.their_state is h11.SEND_BODY
        if is_open and self._body_timer is None:
            self._received = 0
            self._body_timer = self.loop.call_later(_BODY_SECONDS, self._check_body)
        elif not is_open and self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _check_body(self) -> None:
        self._body_timer = None
        if self._received < _BODY_BYTES or self.cycle.response_complete:
            self.transport.close()
        else:
            self._watch_body()


class BoundedConnections:
    """A protocol factory that closes connections beyond `limit`, or older than `seconds`.

    Silent or slow clients would otherwise use up the file descriptors of the process.  Of too
    many connections, the oldest that has sent no complete headers is closed first, then the
    oldest that is not busy, and the new one only if all others are.
    """

    def __init__(
        self,
        create: Callable[..., asyncio.Protocol],
        server: str,
        *,
        limit: int | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        self._create = create
        self._server = server
        self._limit = limit or min(_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)
        self._seconds = seconds
        self._waiting: dict[_Connection, None] = {}
        self._serving: dict[_Connection, None] = {}
        self._next_log = 0.0

    def __call__(self, *args: Any, **options: Any) -> asyncio.Protocol:
        return _Connection(partial(self._create, *args, **options), self)

    def close(self) -> None:
        """Close the connections that have sent nothing: the server does not know them."""
        for connection in [*self._waiting]:
            if connection.is_silent:
                connection.abort()

    def opened(self, connection: "_Connection") -> Sequence[asyncio.TimerHandle]:
        self._waiting[connection] = None
        if len(self._waiting) + len(self._serving) > self._limit:
            waiting = (each for each in self._waiting if each is not connection)
            idle = (each for each in self._serving if not each.is_busy)
            next(chain(waiting, idle), connection).abort()
            self._log()
        seconds = self._seconds * random.uniform(1 - _SPREAD, 1)
        call_later = asyncio.get_running_loop().call_later
        return call_later(_LAST_RESPONSE * seconds, connection.retire), call_later(seconds, connection.abort)

    def has_sent_headers(self, connection: "_Connection") -> None:
        if self._waiting.pop(connection, connection) is None:
            self._serving[connection] = None

    def closed(self, connection: "_Connection") -> None:
        self._waiting.pop(connection, None)
        self._serving.pop(connection, None)

    def _log(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_log:
            self._next_log = now + _LOG_INTERVAL
            log.warning("too many connections, closing the oldest", server=self._server, limit=self._limit)


class _Connection(asyncio.Protocol):
    """One connection: passes everything on to the server's own protocol, which is made for the first byte.

    A silent client thereby costs neither a parser nor a task.
    """

    def __init__(self, create: Callable[[], asyncio.Protocol], all_connections: BoundedConnections) -> None:
        self._create = create
        self._all = all_connections
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.BaseTransport | None = None
        self._timers: Sequence[asyncio.TimerHandle] = ()
        self._tail: bytes | None = b""  # None once the first headers are complete

    @property
    def is_silent(self) -> bool:
        return self._inner is None

    @property
    def is_busy(self) -> bool:
        """Return whether its request is complete and its response is not; unknown of other protocols, which are fast."""
        return isinstance(self._inner, HttpProtocol) and self._inner.is_busy

    def retire(self) -> None:
        if isinstance(self._inner, HttpProtocol):
            self._inner.retire()

    def abort(self) -> None:
        self._all.closed(self)
        if isinstance(self._transport, asyncio.Transport):
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._timers = self._all.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._all.closed(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._tail is not None:
            seen = self._tail + data
            self._tail = None if _END_OF_HEADERS in seen else seen[-3:]
            if self._tail is None:
                self._all.has_sent_headers(self)
        if self._inner is None:
            assert self._transport is not None, "connected"
            self._inner = self._create()
            self._inner.connection_made(self._transport)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()


async def end_unread(request: Request, error: Exception) -> Response:
    """Handle ClientDisconnect: the client left before its body had arrived, so nobody reads the response."""
    return Response(status_code=499)  # as in the metrics; there is no code of HTTP for it

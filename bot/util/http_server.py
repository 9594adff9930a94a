"""HTTP servers with bounded connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bot.errors import AddressUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Connections, and seconds that each may take from its start to its last response.
_LIMIT = 128
_SECONDS = 15.0

# Seconds between two log lines about closed connections.
_LOG_INTERVAL = 600.0

# Seconds for open requests on shutdown.
_SHUTDOWN_SECONDS = 1
# Connections that one pass of the event loop accepts; uvicorn's default is 2048.
_BACKLOG = 64

_END_OF_HEADERS = b"\r\n\r\n"


@asynccontextmanager
async def serve_app(
    app: ASGIApp, section: str, host: str, port: int, *, limit: int = _LIMIT, seconds: float = _SECONDS
) -> AsyncIterator[int]:
    """Serve the application inside the block; yield the port.

    `section` of config.toml has its settings; `limit` and `seconds` are those of `BoundedConnections`.

    Raises:
        AddressUnavailable: The port is in use, or the host is not an address of this machine.
    """
    with _listening(section, host, port) as listener:
        port = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                app,
                http=BoundedConnections(H11Protocol, section, limit=limit, seconds=seconds),  # type: ignore[arg-type]  # a factory of protocols
                backlog=_BACKLOG,
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
            await asyncio.wait([task])
            task.result()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: app.py handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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


class BoundedConnections:
    """A protocol factory that closes connections beyond `limit`, or older than `seconds`.

    Silent or slow clients would otherwise use up the file descriptors of the process.  Of too
    many connections, the oldest that has sent no complete headers is closed first.
    """

    def __init__(
        self, create: Callable[..., asyncio.Protocol], server: str, *, limit: int = _LIMIT, seconds: float = _SECONDS
    ) -> None:
        self._create = create
        self._server = server
        self._limit = limit
        self._seconds = seconds
        self._waiting: dict[_Connection, None] = {}
        self._serving: dict[_Connection, None] = {}
        self._next_log = 0.0

    def __call__(self, *args: Any, **options: Any) -> asyncio.Protocol:
        return _Connection(self._create(*args, **options), self)

    def opened(self, connection: "_Connection") -> asyncio.TimerHandle:
        self._waiting[connection] = None
        if len(self._waiting) + len(self._serving) > self._limit:
            next(iter(self._waiting or self._serving)).abort()
            self._log()
        return asyncio.get_running_loop().call_later(self._seconds, connection.abort)

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
    """One connection: passes everything on to the server's own protocol."""

    def __init__(self, inner: asyncio.Protocol, all_connections: BoundedConnections) -> None:
        self._inner = inner
        self._all = all_connections
        self._transport: asyncio.BaseTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tail: bytes | None = b""  # None once the first headers are complete

    def abort(self) -> None:
        self._all.closed(self)
        if isinstance(self._transport, asyncio.Transport):
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._timer = self._all.opened(self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._all.closed(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._tail is not None:
            seen = self._tail + data
            self._tail = None if _END_OF_HEADERS in seen else seen[-3:]
            if self._tail is None:
                self._all.has_sent_headers(self)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

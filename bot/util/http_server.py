"""Bounded connections for HTTP servers."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Connections, and seconds that each may take from its start to its last response.
_LIMIT = 128
_SECONDS = 15.0

# Seconds between two log lines about closed connections.
_LOG_INTERVAL = 600.0

_END_OF_HEADERS = b"\r\n\r\n"


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

"""HTTP server for operations: /livez, /readyz and /metrics."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

import structlog
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from bot.config.schema import OperationsSection
from bot.errors import AddressUnavailable
from bot.observability.health import Health
from bot.util.http_server import BoundedConnections

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for open requests on shutdown.
_SHUTDOWN_SECONDS = 1
# A running bot answers within a second.
_QUERY_SECONDS = 4.0
# Connections that one pass of the event loop accepts; uvicorn's default is 2048.
_BACKLOG = 64
_NO_STORE = {"Cache-Control": "no-store"}


def create_app(health: Health, figures: CollectorRegistry) -> Starlette:
    """Create the application with all routes."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_NO_STORE)

    async def readyz(request: Request) -> Response:
        states = await health.readiness()
        is_ready = all(state.reason is None for state in states if state.is_needed)
        body = {"ready": is_ready, "parts": {state.component: state.reason or "ok" for state in states}}
        return JSONResponse(body, status_code=200 if is_ready else 503, headers=_NO_STORE)

    async def metrics(request: Request) -> Response:
        write, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(write(figures), headers={"Content-Type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


@asynccontextmanager
async def serve_operations(settings: OperationsSection, app: Starlette) -> AsyncIterator[int]:
    """Serve the application inside the block; yield the port.

    Raises:
        AddressUnavailable: The port is in use, or the host is not an address of this machine.
    """
    with _listening(settings) as listener:
        port: int = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                app,
                http=BoundedConnections(H11Protocol, "operations"),  # type: ignore[arg-type]  # a factory of protocols
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
        task = asyncio.create_task(server.serve(sockets=[listener]), name="operations")
        log.info("operations server listening", host=settings.host, port=port)
        try:
            yield port
        finally:
            server.should_exit = True
            await asyncio.wait([task])
            task.result()


def query_readiness(settings: OperationsSection) -> tuple[bool, str]:
    """Ask a running bot; return whether it is ready, and a line per component."""
    # A server that listens on all addresses is queried on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, settings.port, timeout=_QUERY_SECONDS)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        parts: dict[str, str] = json.load(reply)["parts"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False, f"no bot answers on {host}:{settings.port}: it is not running, or operations.enabled = false"
    finally:
        connection.close()
    return reply.status == HTTPStatus.OK, "\n".join(f"{part}: {state}" for part, state in parts.items())


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: app.py handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _listening(settings: OperationsSection) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # Python appends the address in its own form
        raise AddressUnavailable(
            f"the operations server cannot listen on {settings.host}:{settings.port} ({reason}); change "
            "operations.port (0 = any free port) or operations.host, or set operations.enabled = false"
        ) from error
    with listener:
        yield listener

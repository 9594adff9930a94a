"""The operations server: /livez, /readyz and /metrics, for whatever watches over this program."""

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

from bot.config.schema import OperationsSection
from bot.errors import AddressUnavailable
from bot.observability.health import Health

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for answers under way when the program ends.
_GRACE = 1
# Seconds that a running bot has to say whether it is ready; it takes one at most.
_PATIENCE = 4.0
_NOT_KEPT = {"Cache-Control": "no-store"}


def create_app(health: Health, figures: CollectorRegistry) -> Starlette:
    """The pages of the operations server."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_NOT_KEPT)

    async def readyz(request: Request) -> Response:
        states = await health.readiness()
        is_ready = all(state.reason is None for state in states)
        body = {"ready": is_ready, "parts": {state.component: state.reason or "ok" for state in states}}
        return JSONResponse(body, status_code=200 if is_ready else 503, headers=_NOT_KEPT)

    async def metrics(request: Request) -> Response:
        write, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(write(figures), headers={"Content-Type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


@asynccontextmanager
async def serve_operations(settings: OperationsSection, app: Starlette) -> AsyncIterator[int]:
    """Serve these pages as long as the block lasts; yield the port.

    Raises:
        AddressUnavailable: The port is taken, or the host is no address of this machine.
    """
    with _listening(settings) as listener:
        port: int = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]), name="operations")
        log.info("operations server listens", host=settings.host, port=port)
        try:
            yield port
        finally:
            server.should_exit = True
            await asyncio.wait([task])
            task.result()


def query_readiness(settings: OperationsSection) -> tuple[bool, str]:
    """Ask the server of a running bot whether it is ready; return that, and what it says of each part."""
    # Where it listens everywhere, it is asked here.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, settings.port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        parts: dict[str, str] = json.load(reply)["parts"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False, f"no bot answers on {host}:{settings.port}: it does not run, or operations.enabled is off"
    finally:
        connection.close()
    return reply.status == HTTPStatus.OK, "\n".join(f"{part}: {state}" for part, state in parts.items())


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: how the program ends is decided elsewhere."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _listening(settings: OperationsSection) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # without the address, in Python's own form
        raise AddressUnavailable(
            f"the operations server cannot listen on {settings.host}:{settings.port} ({reason}); choose "
            "another operations.port (0 is any free one) or operations.host, or set operations.enabled = false"
        ) from error
    with listener:
        yield listener

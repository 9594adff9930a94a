"""HTTP server for operations: /livez, /readyz and /metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bot.config.http import OperationsSection
from bot.observability.health import Health
from bot.util.http_server import serve_app

_NO_STORE = {"Cache-Control": "no-store"}


def create_app(health: Health, figures: CollectorRegistry) -> Starlette:
    """Create the application with all routes."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_NO_STORE)

    async def readyz(request: Request) -> Response:
        states = await health.readiness()
        is_ready = all(state.reason is None for state in states if state.is_needed)
        body = {"ready": is_ready, "parts": {state.component: state.word for state in states}}
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
    async with serve_app(app, "operations", settings.host, settings.port) as port:
        yield port

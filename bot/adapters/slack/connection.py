"""Slack's event connections: socket mode, and an HTTP server for signed requests."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from slack_bolt.adapter.aiohttp import to_aiohttp_response
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_sdk.signature import SignatureVerifier
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.malformed import skip_malformed
from bot.adapters.slack.parse import PLATFORM, fields, text_of
from bot.adapters.slack.settings import SlackSection
from bot.errors import LoginRefused, PlatformError, PlatformUnavailable
from bot.util.clock import Clock
from bot.util.http_server import ACCEPTED_AT_ONCE, WAITING, BoundedConnections

# Seconds between pings; after four without a pong the socket is lost.
_PING_SECONDS = 5.0
# Shorter than the ping interval, after which the library would reuse the URL; it is valid once.
_CONNECT_SECONDS = 4.0

# The socket is closed for a moment while the library replaces it at Slack's request, so it is lost
# only after this many checks, one second apart.
_LOST_CHECKS = 3

# Slack's requests have some kilobytes.
_MOST_BYTES = 2**20

# aiohttp logs a traceback for each request that is not HTTP: a flood of them could fill the disk.
_HTTP_LOG = logging.getLogger(f"{__name__}.http")
_HTTP_LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


class SocketConnection(AsyncSocketModeHandler):
    """Bolt's handler for one connection; closing it also ends its listeners."""

    def __init__(self, app: AsyncApp, app_token: str, api: AsyncWebClient) -> None:
        super().__init__(app, app_token, web_client=api, proxy=api.proxy, ping_interval=_PING_SECONDS)
        # The adapter reconnects.
        self.client.auto_reconnect_enabled = self.client.default_auto_reconnect_enabled = False
        self._enqueue = self.client.enqueue_message
        self.client.enqueue_message = self._filter  # type: ignore[method-assign]  # the only hook before the library parses
        self._listeners: set[asyncio.Task[None]] = set()

    async def handle(  # type: ignore[override]  # as in Bolt's own, which narrows the client too
        self, client: SocketModeClient, req: SocketModeRequest
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if client.closed:
            return
        self._listeners.add(task)
        task.add_done_callback(self._listeners.discard)
        # Slack redelivers an event whose acknowledgement is lost with the connection.
        with skip_malformed(PLATFORM), suppress(ConnectionError):
            await super().handle(client, req)

    async def _filter(self, message: str) -> None:
        """Drop frames that are no envelope: the library would log an error for each."""
        with skip_malformed(PLATFORM):
            envelope = json.loads(message)
            if isinstance(envelope, dict) and isinstance(envelope.get("payload", {}), dict):
                await self._enqueue(message)

    async def wait_lost(self, clock: Clock) -> None:
        """Wait until the connection is closed for good."""
        failures = 0
        while failures < _LOST_CHECKS:
            await clock.sleep(1.0)
            failures = 0 if await self.client.is_connected() else failures + 1

    async def close(self) -> None:
        """Disconnect and end the library's tasks; the database is closed next."""
        await self.close_async()  # type: ignore[no-untyped-call]  # Bolt has no annotation
        for task in self._listeners:
            task.cancel()
        client = self.client
        tasks = [client.message_processor, client.message_receiver, client.current_session_monitor, *self._listeners]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


@asynccontextmanager
async def open_socket(app: AsyncApp, settings: SlackSection, api: AsyncWebClient) -> AsyncIterator[SocketConnection]:
    """Connect with a new URL; disconnect on exit.

    Raises:
        LoginRefused: The app token is wrong.
        PlatformUnavailable: The connection fails.
    """
    url = await socket_url(api, settings)
    # Each connection has its own handler: the library retries a used URL forever.
    connection = SocketConnection(app, _app_token(settings), api)
    connection.client.wss_uri = url
    try:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await connection.connect_async()  # type: ignore[no-untyped-call]  # Bolt has no annotation
        except TimeoutError:
            raise PlatformUnavailable("Slack's web socket cannot be opened") from None
        yield connection
    finally:
        await connection.close()


async def socket_url(api: AsyncWebClient, settings: SlackSection) -> str:
    """Request the URL of a web socket; it is valid once.

    Raises:
        LoginRefused: The app token is wrong.
        PlatformUnavailable: The response names no URL.
    """
    try:
        url = text_of(fields(await api.apps_connections_open(app_token=_app_token(settings))), "url")
    except LoginRefused as error:
        raise LoginRefused(
            f"{error}: adapters.slack.app_token is wrong. Create one with the scope connections:write (Basic "
            "Information, App-Level Tokens) and put it into BOT_SLACK__APP_TOKEN."
        ) from error
    if not url.startswith(("wss://", "ws://")):
        raise PlatformUnavailable("Slack names no URL of a web socket")
    return url


def _app_token(settings: SlackSection) -> str:
    return settings.app_token.get_secret_value() if settings.app_token else ""


@asynccontextmanager
async def http_server(app: AsyncApp, settings: SlackSection) -> AsyncIterator[None]:
    """Listen for Slack's requests.

    Raises:
        PlatformError: The port cannot be used.
    """
    secret, host = settings.signing_secret, settings.host
    requests = web.Application(client_max_size=_MOST_BYTES)
    requests.router.add_post(
        settings.path, partial(_answer, app, SignatureVerifier(secret.get_secret_value() if secret else ""))
    )
    # The default shutdown waits a minute for listeners; Slack waits 3 s for their responses.
    runner = web.AppRunner(requests, access_log=None, logger=_HTTP_LOG, shutdown_timeout=3.0)
    await runner.setup()
    assert runner.server is not None
    connections = BoundedConnections(runner.server, PLATFORM)
    try:
        try:
            listener = socket.create_server(
                (host, settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
            server = await asyncio.get_running_loop().create_server(
                connections, sock=listener, backlog=ACCEPTED_AT_ONCE
            )
            listener.listen(WAITING)
        except OSError as error:
            raise PlatformError(
                f"adapters.slack cannot listen on {host}:{settings.port} ({error.strerror}); choose another "
                "adapters.slack.port"
            ) from error
        async with server:
            yield
    finally:
        connections.close()
        await runner.cleanup()


async def _answer(app: AsyncApp, verifier: SignatureVerifier, request: web.Request) -> web.StreamResponse:
    """Pass a signed request to Bolt; nothing of an unsigned one is parsed."""
    response: web.StreamResponse = web.Response(status=400)
    with skip_malformed(PLATFORM), suppress(web.RequestPayloadError, ConnectionError):
        body = await request.read()
        if _is_signed(verifier, body, request.headers):
            parsed = AsyncBoltRequest(body=body.decode(), query=request.query_string, headers=dict(request.headers))
            response = await to_aiohttp_response(await app.async_dispatch(parsed))
        else:
            response = web.Response(status=401)
    response.force_close()
    return response


def _is_signed(verifier: SignatureVerifier, body: bytes, headers: Mapping[str, str]) -> bool:
    stamp, signature = headers.get("X-Slack-Request-Timestamp"), headers.get("X-Slack-Signature")
    try:
        return verifier.is_valid(body, stamp, signature)
    except (OverflowError, TypeError, ValueError):
        return False  # a body that is not UTF-8, a time that is no number, a signature that is not ASCII

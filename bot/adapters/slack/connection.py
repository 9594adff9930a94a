"""How Slack's events come in: over a web socket that we open, or by requests that Slack signs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from aiohttp import web
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.slack.errors import map_errors
from bot.errors import LoginRefused, PlatformError, PlatformUnavailable
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Slack's socket is pinged this often, and lost after four pings without an answer.
_PING_SECONDS = 5.0
# Below a ping's interval: the library would try the same ticket again then, and it serves once.
_CONNECT_SECONDS = 4.0

# A socket that Slack asks us to replace is gone for a moment: this many looks, a second apart.
_LOOKS = 3


class _Handler(AsyncSocketModeHandler):
    """Bolt's handler, which leaves no listener behind.

    What cannot be acknowledged any more comes again, and is nothing to report.
    """

    def __init__(self, app: AsyncApp, app_token: str, api: AsyncWebClient) -> None:
        super().__init__(app, app_token, web_client=api, proxy=api.proxy, ping_interval=_PING_SECONDS)
        # Whether a lost connection is made anew is decided here alone.
        self.client.auto_reconnect_enabled = self.client.default_auto_reconnect_enabled = False
        self._enqueue = self.client.enqueue_message
        self.client.enqueue_message = self._take  # type: ignore[method-assign]  # the one place before its own reading
        self._listening: set[asyncio.Task[None]] = set()

    async def handle(  # type: ignore[override]  # as in Bolt's own, which narrows the client too
        self, client: SocketModeClient, req: SocketModeRequest
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if client.closed:
            return
        self._listening.add(task)
        task.add_done_callback(self._listening.discard)
        try:
            with suppress(ConnectionError):
                await super().handle(client, req)
        except PARSE_ERRORS as error:
            log.warning("slack sent an event that cannot be read", **describe_error(error))

    async def _take(self, message: str) -> None:
        """Pass on what is an envelope, and what has none: of all else the library makes errors in its log."""
        try:
            told = json.loads(message)
        except (ValueError, RecursionError) as error:
            log.warning("slack sent a frame that cannot be read", **describe_error(error))
            return
        if isinstance(told, dict) and isinstance(told.get("payload", {}), dict):
            await self._enqueue(message)

    async def close(self) -> None:
        """Disconnect, and end all that the library has begun: the database is closed next."""
        await self.close_async()  # type: ignore[no-untyped-call]  # Bolt says nothing of it
        for task in self._listening:
            task.cancel()
        client = self.client
        tasks = [client.message_processor, client.message_receiver, client.current_session_monitor, *self._listening]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


class Socket:
    """One connection in socket mode, with the library's replacement when Slack refreshes it."""

    def __init__(self, handler: _Handler, clock: Clock) -> None:
        self._handler = handler
        self._clock = clock

    async def lost(self) -> None:
        """Wait until it is of no use any more."""
        missing = 0
        while missing < _LOOKS:
            await self._clock.sleep(1.0)
            missing = 0 if await self._handler.client.is_connected() else missing + 1


@asynccontextmanager
async def socket(app: AsyncApp, app_token: str, api: AsyncWebClient, clock: Clock) -> AsyncIterator[Socket]:
    """Connect with a new ticket; on leaving, disconnect.

    Each connection has a handler of its own.  Left to itself, the library tries a ticket
    that is used up for ever.

    Raises:
        LoginRefused: The app token is wrong.
        PlatformUnavailable: There is no connection.
    """
    url = await ticket(api, app_token)
    handler = _Handler(app, app_token, api)
    handler.client.wss_uri = url
    try:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await handler.connect_async()  # type: ignore[no-untyped-call]  # Bolt says nothing of it
        except TimeoutError:
            raise PlatformUnavailable("Slack's web socket cannot be opened") from None
        yield Socket(handler, clock)
    finally:
        await handler.close()


async def ticket(api: AsyncWebClient, app_token: str) -> str:
    """Ask for the address of a web socket; it serves once.

    Raises:
        LoginRefused: The app token is wrong.
    """
    try:
        with map_errors():
            return str((await api.apps_connections_open(app_token=app_token))["url"])
    except PlatformError as error:
        if isinstance(error, LoginRefused) or "missing_scope" in str(error):
            raise LoginRefused(
                f"{error}: adapters.slack.app_token is wrong. Make one with the scope connections:write (Basic "
                "Information, App-Level Tokens) and put it into BOT_SLACK__APP_TOKEN."
            ) from error
        raise


@asynccontextmanager
async def requests(app: AsyncApp, host: str, port: int, path: str) -> AsyncIterator[int]:
    """Listen for Slack's requests; yield the port."""
    # Listeners end before Slack loses its patience; the default waits for them for a minute.
    runner = web.AppRunner(app.web_app(path=path, port=port), access_log=None, shutdown_timeout=3.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise PlatformError(
                f"adapters.slack cannot listen on {host}:{port} ({error.strerror}); choose another adapters.slack.port"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()

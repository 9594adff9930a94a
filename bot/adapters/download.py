"""Fetch files from a platform's own hosts, counted while they stream."""

from collections.abc import AsyncIterator, Collection, Mapping
from types import MappingProxyType

import aiohttp
import yarl

from bot.chat.reading.fault import Unreadable
from bot.errors import PlatformUnavailable, RateLimited
from bot.util.retry import retry_after
from bot.util.unreachable import why_unreachable

_CHUNK = 2**16
# Seconds until the first byte, and between two.
_SECONDS = 20.0
_RATE_LIMIT = 5.0


def is_at(url: str, origins: Collection[str]) -> bool:
    """Return whether the URL has scheme, host and port of one of these.

    >>> is_at("https://cdn.example/a", ["https://cdn.example"]), is_at("https://cdn.example@evil.example/", ["https://cdn.example"])
    (True, False)
    """
    try:
        parsed = yarl.URL(url)
        return (
            bool(parsed.host) and not parsed.user and parsed.origin() in {yarl.URL(each).origin() for each in origins}
        )
    except ValueError:
        return False


async def download(
    url: str,
    origins: Collection[str],
    *,
    proxy: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    is_page_refused: bool = False,
) -> AsyncIterator[bytes]:
    """Yield the bytes of a file; redirects are not followed, and the headers go to these origins only.

    With `is_page_refused` an HTML page in place of the file is a request to log in.

    Raises:
        Unreadable: It is elsewhere, or the platform has it no more.
        PlatformUnavailable, RateLimited: It may be had later.
    """
    if not is_at(url, origins):
        raise Unreadable("missing")
    timeout = aiohttp.ClientTimeout(sock_connect=_SECONDS, sock_read=_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.get(
                url, headers={"Accept-Encoding": "identity", **headers}, proxy=proxy, allow_redirects=False
            ) as response,
        ):
            if response.status == 429:
                raise RateLimited(retry_after(response.headers.get("Retry-After"), _RATE_LIMIT))
            if response.status >= 500:
                raise PlatformUnavailable(f"the server of the file answered {response.status}")
            if response.status != 200 or (is_page_refused and response.content_type == "text/html"):
                raise Unreadable("missing")
            async for chunk in response.content.iter_chunked(_CHUNK):
                yield chunk
    except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
        raise PlatformUnavailable(f"a file cannot be fetched: {why_unreachable(error)}") from error

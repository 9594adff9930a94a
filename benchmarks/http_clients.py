"""Clients of the HTTP APIs, in a process of their own: those that read answers, and those that are slow or hang."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import cycle, islice

_HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """Seconds until the first text and until the end, and the answer's tokens."""

    first: float
    whole: float
    tokens: int


def read_answers(port: int, count: int, question: str, tokens: int) -> list[ReadAnswer]:
    """Ask `count` times at once, and read the streams."""
    return asyncio.run(_read_all(port, count, question, tokens))


def hang(port: int, count: int, seconds: float) -> None:
    """Keep `count` slow or hanging clients connected for some seconds, as far as the server lets them."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a warning for each byte to a connection that is closed
    asyncio.run(_hang_all(port, count, seconds))


async def _read_all(port: int, count: int, question: str, tokens: int) -> list[ReadAnswer]:
    return await asyncio.gather(*(_read(port, question, tokens) for _ in range(count)))


async def _read(port: int, question: str, tokens: int) -> ReadAnswer:
    began, first = time.perf_counter(), 0.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_post(question, tokens))
    usage = 0
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            usage = event["usage"]["completion_tokens"] if event["usage"] else usage
    whole = time.perf_counter() - began
    writer.close()
    return ReadAnswer(first, whole, usage)


def _post(question: str, tokens: int) -> bytes:
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": tokens,
        }
    ).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def _hang_all(port: int, count: int, seconds: float) -> None:
    kinds: list[Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]] = [
        _silent,
        _drips,
        _half,
        _reads_nothing,
    ]
    clients = [asyncio.create_task(_client(port, kind)) for kind in islice(cycle(kinds), count)]
    await asyncio.sleep(seconds)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def _client(port: int, behave: Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]) -> None:
    """Behave like this until the server closes the connection."""
    own = socket.socket()
    own.setblocking(False)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a reader of nothing must not have it all in the kernel
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    _, writer = await asyncio.open_connection(sock=own, limit=1024)
    try:
        behaving = asyncio.create_task(behave(writer))
        await asyncio.wait([behaving, asyncio.create_task(writer.wait_closed())], return_when=asyncio.FIRST_COMPLETED)
    finally:
        writer.close()


async def _silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _drips(writer: asyncio.StreamWriter) -> None:
    """Send headers without an end, one byte after the other."""
    for byte in cycle(b"X-Slow: and so on\r\n"):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


async def _half(writer: asyncio.StreamWriter) -> None:
    """Announce a megabyte, and send it slowly."""
    writer.write(b"POST / HTTP/1.1\r\n" + _HEAD + b"Content-Length: 1048576\r\n\r\n{")
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.2)


async def _reads_nothing(writer: asyncio.StreamWriter) -> None:
    """Ask for an answer and do not read it."""
    writer.write(_post("Tell me everything about this bot " * 20, 2000))
    await asyncio.Event().wait()

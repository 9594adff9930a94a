"""Thousands of idle and dripping connections to a port, from a process of their own.

`python -m tests.chaos.idle_clients PORT IDLE DRIPPING` prints a line once each client has been
connected, and goes on until it is killed.  A client whose connection ends opens another one
after a second.  Plain sockets: the process takes a few percent of a core, not the time of
those who measure.
"""

import heapq
import resource
import selectors
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

_AGAIN_SECONDS = 1.0
_DRIP_SECONDS = 0.2
# Seconds in which the first connections are opened: all at once would only fill the kernel's queue.
_OPENING_SECONDS = 3.0
_HEAD = b"POST /slack/events HTTP/1.1\r\nHost: a\r\nX-Long: "


@dataclass(eq=False)
class _Client:
    """One client: its present connection, if it has one."""

    drips: bool
    line: socket.socket | None = None
    was_connected: bool = False


class _Clients:
    """All clients of a port, and what each does next."""

    def __init__(self, port: int, idle: int, dripping: int) -> None:
        self._port = port
        self._all = [_Client(drips=number < dripping) for number in range(idle + dripping)]
        self._selector = selectors.DefaultSelector()
        self._numbers = count()
        # When a client opens a connection, or sends a byte on the one that it has.
        self._due: list[tuple[float, int, _Client, socket.socket | None]] = []
        self._unconnected = len(self._all)

    def run(self) -> None:
        """Keep the connections, for ever."""
        for number, client in enumerate(self._all):
            self._later(_OPENING_SECONDS * number / len(self._all), client)
        while True:
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, client, line = heapq.heappop(self._due)
                if line is None:
                    self._connect(client)
                elif line is client.line:
                    self._drip(client, line, b"x")
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, events in self._selector.select(wait):
                if events & selectors.EVENT_WRITE:
                    self._begin(key.data)
                if events & selectors.EVENT_READ:
                    self._read(key.data)

    def _later(self, seconds: float, client: _Client, line: socket.socket | None = None) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), client, line))

    def _connect(self, client: _Client) -> None:
        client.line = socket.socket()
        client.line.setblocking(False)
        client.line.connect_ex(("127.0.0.1", self._port))
        self._selector.register(client.line, selectors.EVENT_READ | selectors.EVENT_WRITE, client)

    def _begin(self, client: _Client) -> None:
        assert client.line is not None
        self._selector.modify(client.line, selectors.EVENT_READ, client)
        if not client.was_connected:
            client.was_connected = True
            self._unconnected -= 1
            if not self._unconnected:
                print("connected", flush=True)
        if client.drips:
            self._drip(client, client.line, _HEAD)

    def _drip(self, client: _Client, line: socket.socket, data: bytes) -> None:
        with suppress(OSError):  # its end is read next
            line.send(data)
            self._later(_DRIP_SECONDS, client, line)

    def _read(self, client: _Client) -> None:
        line = client.line
        assert line is not None
        with suppress(ConnectionError):
            try:
                if line.recv(4096):
                    return
            except BlockingIOError:
                return
        self._selector.unregister(line)
        line.close()
        client.line = None
        self._later(_AGAIN_SECONDS, client)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


if __name__ == "__main__":
    port, idle, dripping = map(int, sys.argv[1:])
    _allow_files(idle + dripping + 64)
    _Clients(port, idle, dripping).run()

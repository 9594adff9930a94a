"""Reserved loopback ports without a server."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port; it refuses connections until a server listens on it.

    A free port that is only looked up can be given to another process before its server listens.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":  # elsewhere a socket that does not listen keeps servers off its port, too
            holder.close()
        yield port

"""Reasons why a server cannot be reached, for operators."""

import socket
import ssl
from collections.abc import Iterator


def why_unreachable(error: BaseException) -> str:
    """Return the reason behind a library's error, without its addresses and class names.

    >>> why_unreachable(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"))
    'the connection was refused'
    >>> why_unreachable(ValueError())
    'the connection failed'
    """
    for cause in _causes(error):
        match cause:
            case socket.gaierror():
                return "its name cannot be resolved; is there a network, or a proxy to set?"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted ({cause.verify_message})"
            case ssl.SSLError():
                return "the TLS handshake failed"
            case ConnectionRefusedError():
                return "the connection was refused"
            case TimeoutError():
                return "there was no answer in time"
            case OSError() if cause.errno and cause.strerror:
                return cause.strerror.partition(" (")[0]
    return "the connection failed"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and all behind it, the innermost first: libraries wrap one that names no reason."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error
        for inner in getattr(error, "exceptions", ()):
            yield from _causes(inner)

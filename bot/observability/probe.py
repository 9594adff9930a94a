"""`bot health` for container health checks: imports next to nothing, so that a check costs 40 ms of CPU."""

import os
import socket
from collections.abc import Mapping, Sequence

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 9464

# A running bot answers within a second.
_QUERY_SECONDS = 4.0
_OK = 200
_LONGEST_ANSWER = 1 << 20


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Carry out `bot health` with these arguments; return the exit code.

    None if that takes the whole program: for --help, or to explain settings that cannot be read.
    """
    match arguments:
        case []:
            path, is_optional = environ.get("BOT_CONFIG") or "config.toml", not environ.get("BOT_CONFIG")
        case ["--config", path]:
            is_optional = False
        case _:
            return None
    try:
        host, port = _address(path, environ, is_optional=is_optional)
    except (OSError, ValueError, TypeError):
        return None
    is_ready, answer = query_readiness(host, port)
    os.write(1, f"{answer}\n".encode())
    return 0 if is_ready else 1


def query_readiness(host: str, port: int) -> tuple[bool, str]:
    """Ask a running bot; return whether it is ready, and a line per component."""
    # A server that listens on all addresses is queried on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        status, body = _get(host, port, "/readyz")
        import json

        parts: dict[str, str] = json.loads(body)["parts"]
        return status == _OK, "\n".join(f"{part}: {state}" for part, state in parts.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False, (
            f"no bot answers on {host}:{port}: it is not running, or it has no health check, which operations.enabled = "
            'true turns on ("auto" does so only with a chat platform)'
        )


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Return the status and the body of an HTTP answer.

    Raises:
        OSError: No connection, or no answer in time.
        ValueError: The answer is not HTTP.
    """
    # As bytes: the codec for names in other scripts takes a while to load.
    address = (host.encode(), port)
    with socket.create_connection(address, timeout=_QUERY_SECONDS) as connection:  # type: ignore[arg-type]  # the stubs know text only
        # HTTP 1.0: the server ends the answer by closing the connection.
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while len(answer) < _LONGEST_ANSWER and (received := connection.recv(65536)):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    _version, status, *_ = head.split(maxsplit=2)
    return int(status), body


def _address(path: str, environ: Mapping[str, str], *, is_optional: bool) -> tuple[str, int]:
    """Return where the bot listens: as `load_config` reads it, from the environment, secret files and config.toml.

    Raises:
        OSError, ValueError, TypeError: A file cannot be read, or has no valid address.
    """
    in_file: Mapping[str, object] = {}
    if os.path.exists(path) or not is_optional:
        in_file = _operations(_read(path))
    mounted, beside = "/run/secrets", os.path.join(os.path.dirname(path), "secrets")
    folder = environ.get("BOT_SECRETS_DIR") or (mounted if os.path.isdir(mounted) else beside)

    def value(name: str, default: object) -> object:
        secret = f"{folder}/operations__{name}"
        return (
            environ.get(f"BOT_OPERATIONS__{name.upper()}")
            or (_read(secret).strip() if os.path.isfile(secret) else "")
            or in_file.get(name, default)
        )

    return str(value("host", DEFAULT_HOST)), int(str(value("port", DEFAULT_PORT)))


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().removeprefix("\ufeff")


def _operations(text: str) -> Mapping[str, object]:
    """Return the table [operations]: read here if it is written plainly, else by the TOML parser, which costs more."""
    found: dict[str, object] = {}
    section, is_plain = "", '"""' not in text and "'''" not in text
    for written in text.splitlines():
        line = written.partition("#")[0].strip()
        if line.startswith("["):
            section = line
        elif section == "[operations]" and line:
            name, _, value = (word.strip() for word in line.partition("="))
            found[name] = value.strip('"')
            is_quoted = value.count('"') == 2 == len(value) - len(value.strip('"'))
            is_plain = is_plain and (value.isdecimal() or is_quoted)
        is_plain = is_plain and ("operations" not in line or line == "[operations]")
    if is_plain:
        return found
    import tomllib

    table: dict[str, object] = tomllib.loads(text).get("operations", {})
    return table

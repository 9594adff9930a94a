"""Logging to standard error: events with ids, without secrets and message texts."""

import base64
import json
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, WrappedLogger

from bot.config.schema import LogsSection
from bot.domain import Answer, Author, ChatMessage, ChatRequest, Delta, Exchange, IncomingMessage, Notice

# At debug level libraries log raw traffic: messages, and headers with tokens.
_MIN_LIBRARY_LEVEL = logging.INFO

# Keys at the start of each line, in this order.
_FIRST_KEYS = ("timestamp", "level", "logger", "event", "exchange")

_TEXT_KEYS = frozenset(
    {
        "answer",
        "author",
        "body",
        "content",
        "messages",
        "message",
        "name",
        "notice",
        "prompt",
        "quoted",
        "reply",
        "text",
    }
)
_TEXT_TYPES = (Answer, Author, ChatMessage, ChatRequest, Delta, Exchange, IncomingMessage, Notice)
WITHHELD = "(not logged)"
REDACTED = "(secret)"

_TOKEN_SHAPES = re.compile(
    r"""
      \b[\w-]{23,28}\.[\w-]{6,7}\.[\w-]{27,}      # Discord
    | (?<!\d)\d{8,12}:[\w-]{35}(?![\w-])          # Telegram; also in the URL of each call: /bot123:ABC/getMe
    | \bx(?:ox[a-z]|app)-[\w-]{10,}               # Slack
    | \bhf_[A-Za-z0-9]{20,}                       # Hugging Face
    | (?<=://)[^\s/:@]*:[^\s/@]+(?=@)             # user:password in a URL
    | (?i:(?<=\bbearer\ )|(?<=\bauthorization:\ bot\ ))[^\s'"]+
    """,
    re.VERBOSE,
)
# Control characters but newline and tab, which tracebacks have; a terminal obeys them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f]")
# C1 controls, and characters that hide or reverse text; no renderer writes them.
_INVISIBLE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
# Lines that are kept in memory, and characters of each.
KEPT_LINES = 200
_KEPT_CHARACTERS = 20_000
# SQLAlchemy appends the parameters of a failed statement to its message.
_STATEMENT_PARAMETERS = re.compile(r"\[parameters: .*?\](?=$|\n|\\n)")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A finished line, redacted; `number` counts them, `at` is its time in seconds since the epoch."""

    number: int
    at: float
    level: str
    text: str


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, and keeps the last ones."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._kept: deque[LogLine] = deque(maxlen=KEPT_LINES)
        self._count = 0

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        self._count += 1
        self._kept.append(LogLine(self._count, record.created, record.levelname.lower(), line[:_KEPT_CHARACTERS]))
        return line

    def lines(self, after: int) -> list[LogLine]:
        """Return the kept lines with higher numbers, oldest first."""
        self.acquire()  # other threads log too
        try:
            return [line for line in self._kept if line.number > after]
        finally:
            self.release()


def recent_lines(*, after: int = 0) -> list[LogLine]:
    """Return the last lines of this process with numbers above `after`, oldest first; none before `configure_logging`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            return handler.lines(after)
    return []


def configure_logging(settings: LogsSection, redact: "Redaction | None" = None, stream: TextIO | None = None) -> None:
    """Send all log records, also those of libraries, to `stream` (default: stderr) in one format.

    `redact` removes secrets from every line, also those that are added to it later.
    """
    target = stream or sys.stderr
    handler = LineHandler(target)
    handler.setFormatter(_formatter(settings, redact or Redaction(()), target))
    root = logging.getLogger()
    root.handlers = [handler]
    for name, level in _levels(settings).items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def set_levels(settings: LogsSection, before: LogsSection) -> None:
    """Change the log levels from those of `before`; format and stream stay."""
    for name in before.levels:
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in _levels(settings).items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def log_context(**ids: object) -> Iterator[None]:
    """Add these ids to every line that is logged inside the block, also by libraries.

    Not for async generators: another task may run their end.

    >>> with log_context(exchange=7):
    ...     structlog.contextvars.get_contextvars()
    {'exchange': 7}
    """
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def _levels(settings: LogsSection) -> dict[str, int]:
    levels = logging.getLevelNamesMapping()
    ours = levels[settings.level.upper()]
    chosen = {"": max(ours, logging.WARNING), "bot": ours}
    for name, level in settings.levels.items():
        is_ours = name == "bot" or name.startswith("bot.")
        chosen[name] = levels[level.upper()] if is_ours else max(levels[level.upper()], _MIN_LIBRARY_LEVEL)
    return chosen


def _formatter(
    settings: LogsSection, redact: Callable[[str], str], target: TextIO
) -> structlog.stdlib.ProcessorFormatter:
    on_terminal = target.isatty()
    for_people = settings.format == "console" or (settings.format == "auto" and on_terminal)
    render: Callable[[WrappedLogger, str, EventDict], str | bytes]
    if for_people:
        # Not the rich traceback: it shows local variables, such as messages and tokens.
        render = structlog.dev.ConsoleRenderer(
            colors=on_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
        stamp = structlog.processors.TimeStamper(fmt="iso")

    def redacted(logger: WrappedLogger, method: str, event: EventDict) -> str:
        first = {key: event[key] for key in _FIRST_KEYS if key in event}
        return escape_invisible(redact(str(render(logger, method, {**first, **event}))))

    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            stamp,
            structlog.processors.format_exc_info,
            withhold,
            _escape_controls,
            redacted,
        ]
    )


def withhold(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace values that may be message texts; a safety net, the rule is to log only ids."""
    return {
        key: WITHHELD if key in _TEXT_KEYS or isinstance(value, _TEXT_TYPES) else value for key, value in event.items()
    }


def _escape_controls(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return {
        _escaped(_CONTROLS, key): _escaped(_CONTROLS, value) if isinstance(value, str) else value
        for key, value in event.items()
    }


def escape_invisible(text: str) -> str:
    """Write characters that hide or reverse text as JSON does."""
    return _escaped(_INVISIBLE, text)


def _escaped(what: re.Pattern[str], text: str) -> str:
    """Write these characters as JSON and Python do."""
    return what.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Redaction:
    """Removes secrets from a finished line, in any field or traceback.

    >>> Redaction(["a secret/1"])("said a%20secret%2F1 and YSBzZWNyZXQvMQ==")
    'said (secret) and (secret)'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets: frozenset[str] = frozenset()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Redact these too, and go on with those before: an old key may still be valid elsewhere."""
        # Shorter ones are not tokens, but may be common words.
        long = self._secrets = self._secrets | {secret for secret in secrets if len(secret) >= 6}
        # Secrets also appear as repr, as JSON or both, URL-encoded, and as base64 in headers.
        encoded = [base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode() for secret in long]
        escaped = [form for secret in long for form in (quote(secret, safe=""), quote(secret), quote_plus(secret))]
        quoted = {form for secret in [*long, *encoded, *escaped] for form in (secret, repr(secret)[1:-1])}
        forms = quoted | {json.dumps(form, ensure_ascii=False)[1:-1] for form in quoted}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, line: str) -> str:
        line = self._known.sub(REDACTED, line)
        line = _TOKEN_SHAPES.sub(REDACTED, line)
        return _STATEMENT_PARAMETERS.sub(f"[parameters: {WITHHELD}]", line)

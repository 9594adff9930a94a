"""Logs on standard error: events with ids, never a secret, never what people wrote."""

import base64
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, WrappedLogger

from bot.config.schema import LogsSection
from bot.domain import Answer, Author, ChatMessage, ChatRequest, Delta, Exchange, IncomingMessage, Notice

# What a library writes at "debug" is raw traffic: messages, and headers with tokens.
_LEAST_OF_LIBRARIES = logging.INFO

# What everybody looks for in a line stands at the same place in each.
_FIRST = ("timestamp", "level", "logger", "event", "exchange")

_PEOPLES_WORDS = frozenset(
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
_PEOPLES_VALUES = (Answer, Author, ChatMessage, ChatRequest, Delta, Exchange, IncomingMessage, Notice)
WITHHELD = "(not logged)"
REDACTED = "(secret)"

_TOKEN_SHAPES = re.compile(
    r"""
      \b[\w-]{23,28}\.[\w-]{6,7}\.[\w-]{27,}      # Discord
    | (?<!\d)\d{8,12}:[\w-]{35}(?![\w-])          # Telegram; also in the address of each call: /bot123:ABC/getMe
    | \bx(?:ox[a-z]|app)-[\w-]{10,}               # Slack
    | \bhf_[A-Za-z0-9]{20,}                       # the hub that weights come from
    | (?<=://)[^\s/:@]*:[^\s/@]+(?=@)             # user:password in a URL
    | (?i:(?<=\bbearer\ )|(?<=\bauthorization:\ bot\ ))[^\s'"]+
    """,
    re.VERBOSE,
)
# SQLAlchemy adds the values of a failed statement to its message, unless told not to.
_STATEMENT_VALUES = re.compile(r"\[parameters: .*?\](?=$|\n|\\n)")


def configure_logging(settings: LogsSection, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Send everything that is logged, by this program and by libraries, to one place in one form.

    `secrets` are blotted out wherever they turn up; `stream` is standard error if not given.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(settings, Redaction(secrets), target))
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
    """Log from other levels on than `before`; form and place stay."""
    for name in before.levels:
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in _levels(settings).items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def log_context(**ids: object) -> Iterator[None]:
    """Put these ids into every line that is logged inside, whoever logs it.

    For one task's own code; in an async generator another task may run the end.

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
        chosen[name] = levels[level.upper()] if is_ours else max(levels[level.upper()], _LEAST_OF_LIBRARIES)
    return chosen


def _formatter(
    settings: LogsSection, redact: Callable[[str], str], target: TextIO
) -> structlog.stdlib.ProcessorFormatter:
    on_terminal = target.isatty()
    for_people = settings.format == "console" or (settings.format == "auto" and on_terminal)
    render: Callable[[WrappedLogger, str, EventDict], str | bytes]
    if for_people:
        # The plain traceback: the pretty one shows local variables, and with them messages and tokens.
        render = structlog.dev.ConsoleRenderer(
            colors=on_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
        stamp = structlog.processors.TimeStamper(fmt="iso")

    def redacted(logger: WrappedLogger, method: str, event: EventDict) -> str:
        first = {key: event[key] for key in _FIRST if key in event}
        return redact(str(render(logger, method, {**first, **event})))

    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            stamp,
            structlog.processors.format_exc_info,
            withhold,
            _inert,
            redacted,
        ]
    )


def withhold(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Drop what may be a person's words: the net below the rule that only ids are logged."""
    return {
        key: WITHHELD if key in _PEOPLES_WORDS or isinstance(value, _PEOPLES_VALUES) else value
        for key, value in event.items()
    }


def _inert(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Take from texts what a terminal would obey."""
    return {key: value.replace("\x1b", "\\x1b") if isinstance(value, str) else value for key, value in event.items()}


class Redaction:
    """Blots secrets out of a finished line, in whatever field or traceback they stand.

    >>> Redaction(["a secret/1"])("said a%20secret%2F1 and YSBzZWNyZXQvMQ==")
    'said (secret) and (secret)'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # A shorter one is no token, but may be a common word.
        long = [secret for secret in secrets if len(secret) >= 6]
        # A line may hold it as Python quotes it, as JSON does, or as both do; as URLs and headers have it.
        encoded = [base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode() for secret in long]
        escaped = [form for secret in long for form in (quote(secret, safe=""), quote(secret), quote_plus(secret))]
        quoted = {form for secret in [*long, *encoded, *escaped] for form in (secret, repr(secret)[1:-1])}
        forms = quoted | {json.dumps(form, ensure_ascii=False)[1:-1] for form in quoted}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, line: str) -> str:
        line = self._known.sub(REDACTED, line)
        line = _TOKEN_SHAPES.sub(REDACTED, line)
        return _STATEMENT_VALUES.sub(f"[parameters: {WITHHELD}]", line)

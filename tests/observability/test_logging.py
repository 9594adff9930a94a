import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bot.config.schema import LogsSection
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.observability.logging import (
    KEPT_LINES,
    REDACTED,
    WITHHELD,
    Redaction,
    configure_logging,
    log_context,
    recent_lines,
)

CANARY = "canary-7f3a91"
log: structlog.stdlib.BoundLogger = structlog.get_logger("bot.part")


@pytest.fixture(autouse=True)
def _logging_is_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("bot", "bot.part", "bot.engine", "library")
    levels = [logging.getLogger(name).level for name in names]
    configuration = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)
    structlog.configure(**configuration)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logging_to(stream: io.StringIO, *secrets: str, **section: Any) -> io.StringIO:
    configure_logging(LogsSection(**section), Redaction(secrets), stream)
    return stream


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_unless_a_terminal_reads_them() -> None:
    stream = logging_to(io.StringIO())
    log.info("exchange answered", exchange=7)
    (event,) = events(stream)
    assert datetime.fromisoformat(event.pop("timestamp")).tzinfo is not None
    assert event == {"event": "exchange answered", "exchange": 7, "level": "info", "logger": "bot.part"}


@pytest.mark.parametrize(
    ("stream", "form", "is_json", "is_coloured"),
    [
        (io.StringIO(), "auto", True, False),
        (Terminal(), "auto", False, True),
        (Terminal(), "json", True, False),
        (io.StringIO(), "console", False, False),
    ],
)
def test_the_format_follows_the_setting_then_the_terminal(
    stream: io.StringIO, form: str, is_json: bool, is_coloured: bool
) -> None:
    logging_to(stream, format=form)
    log.info("ready")
    assert stream.getvalue().startswith("{") == is_json
    assert ("\x1b[" in stream.getvalue()) == is_coloured


def test_logs_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogsSection())
    log.info("ready")
    out, err = capsys.readouterr()
    assert not out
    assert "ready" in err


def test_libraries_and_warnings_log_in_the_same_format() -> None:
    stream = logging_to(io.StringIO(), level="debug")
    logging.getLogger("library").warning("%d of %d", 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = events(stream)
    assert (first["event"], first["logger"], first["level"]) == ("1 of 2", "library", "warning")
    assert "DeprecationWarning: old" in second["event"]


def test_lines_inside_a_log_context_have_its_ids_also_those_of_libraries() -> None:
    stream = logging_to(io.StringIO())
    with log_context(exchange=7):
        log.info("inside")
        logging.getLogger("library").error("also inside")
    log.info("outside")
    assert [event.get("exchange") for event in events(stream)] == [7, 7, None]


def test_levels_are_set_per_logger() -> None:
    stream = logging_to(io.StringIO(), level="warning", levels={"bot.engine": "debug"})
    log.info("not heard")
    structlog.get_logger("bot.engine").debug("heard")
    assert [event["event"] for event in events(stream)] == ["heard"]


def test_libraries_log_at_warning_unless_configured_and_never_at_debug() -> None:
    stream = logging_to(io.StringIO(), level="debug")
    logging.getLogger("library").info("not heard")
    logging_to(stream, level="debug", levels={"library": "debug"})
    logging.getLogger("library").info("heard")
    logging.getLogger("library").debug("raw traffic")
    assert [event["event"] for event in events(stream)] == ["heard"]


def test_message_texts_are_withheld_even_if_logged() -> None:
    stream = logging_to(io.StringIO())
    message = IncomingMessage(
        "1", ChannelKey("x", "1"), Author("x", "1", CANARY), CANARY, datetime(2026, 1, 1, tzinfo=UTC)
    )
    log.info("received", text=CANARY, content=CANARY, prompt=CANARY, reply=CANARY, message=CANARY, name=CANARY)
    log.info("received", incoming=message, by=message.author)
    assert CANARY not in stream.getvalue()
    assert events(stream)[0]["text"] == WITHHELD


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_known_secret_is_redacted_in_every_field(form: str) -> None:
    secret = 'pass"wörd\\7f3a91'
    stream = logging_to(io.StringIO(), secret, "", "abc", format=form)
    log.info("with %s", secret, url=f"x://{secret}", headers={"a": [secret]})
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("failed")
    assert "7f3a91" not in stream.getvalue()
    assert REDACTED in stream.getvalue()
    log.info("abc")
    assert "abc" in stream.getvalue()  # too short to be a token


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=6))
def test_no_line_contains_a_known_secret(secret: str) -> None:
    assume(secret not in REDACTED)
    for form in ("json", "console"):
        stream = logging_to(io.StringIO(), secret, format=form)
        log.info("using %s", secret, url=f"x://{secret}", headers=[secret, {"a": secret}], error=ValueError(secret))
        logging.getLogger("library").error("using %r", secret)
        assert stream.getvalue().count(REDACTED) >= 5
        assert secret not in stream.getvalue()
        assert repr(secret)[1:-1] not in stream.getvalue()


@pytest.mark.parametrize(
    "token",
    [
        "M" * 24 + "." + "G" * 6 + "." + "x" * 38,
        "bot123456789:AA" + "h" * 33,
        "xoxb-" + "1" * 12 + "-abc",
        "xapp-1-A0-" + "1" * 12,
        "hf_" + "a" * 34,
    ],
)
def test_strings_with_the_shape_of_a_token_are_redacted(token: str) -> None:
    stream = logging_to(io.StringIO())
    log.info("refused", address=f"https://host.example/{token}/getMe")
    logging.getLogger("library").error("refused: %s", token)
    assert token not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) == 2


def test_passwords_and_authorization_headers_are_redacted() -> None:
    stream = logging_to(io.StringIO())
    log.info("postgresql+psycopg://bot:hush-hush@db/bot")
    log.info("Authorization: Bearer hush-hush")
    log.info("Authorization: Bot hush-hush")
    assert "hush" not in stream.getvalue()
    assert "@db/bot" in stream.getvalue()


def test_ids_and_times_are_not_redacted() -> None:
    stream = logging_to(io.StringIO())
    log.info("slack:C01:1718.2 at 2026-11-20T18:00:00.000000Z", channel="discord:123456789012345678")
    assert REDACTED not in stream.getvalue()


def test_the_parameters_of_a_failed_statement_are_withheld() -> None:
    failure = f"no such table\n[SQL: INSERT]\n[parameters: ('{CANARY}', '] x')]\n(Background: …)"
    stream = io.StringIO()
    for form in ("console", "json"):
        logging_to(stream, format=form)
        try:
            raise ValueError(failure)
        except ValueError:
            log.exception("failed")
    assert CANARY not in stream.getvalue()
    assert stream.getvalue().count("(Background: …)") == 2


def test_escape_sequences_in_texts_do_not_reach_the_terminal() -> None:
    stream = logging_to(io.StringIO(), format="console")
    logging.getLogger("library").error("refused: \x1b[2J")
    log.error("refused", channel="\x1b[2J")
    assert "\x1b" not in stream.getvalue()


def test_a_traceback_shows_no_local_variables() -> None:
    stream = logging_to(Terminal())
    local = CANARY
    try:
        raise ValueError(len(local))
    except ValueError:
        log.exception("failed")
    assert "ValueError" in stream.getvalue()
    assert CANARY not in stream.getvalue().replace("local = CANARY", "")


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "character", ["\x07", "\r", "\x7f", "\x85", "\x9b", "\x9d", "\u200b", "\u202e", "\u2066", "\ufeff", "\u2028"]
)
def test_controls_and_invisible_characters_are_escaped_everywhere(form: str, character: str) -> None:
    stream = logging_to(io.StringIO(), format=form)
    text = f"a{character}b"
    log.error(text, channel=text, shards=[text], **{f"k{character}": {text: text}})
    logging.getLogger("library").error("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    assert character not in stream.getvalue()
    if form == "json":
        assert len(events(stream)) == 3


def test_the_last_finished_lines_are_kept_redacted_and_numbered() -> None:
    stream = logging_to(io.StringIO(), "a secret word")
    for number in range(KEPT_LINES + 5):
        log.warning("a secret word", number=number)
    lines = recent_lines()
    assert [line.text for line in lines] == stream.getvalue().splitlines()[5:]
    assert "a secret word" not in lines[-1].text
    assert (lines[-1].number, lines[-1].level) == (KEPT_LINES + 5, "warning")
    assert recent_lines(after=lines[-2].number) == lines[-1:]


def test_a_secret_that_is_added_later_is_redacted_and_the_one_before_it_too() -> None:
    stream, redact = io.StringIO(), Redaction(["the first key"])
    configure_logging(LogsSection(format="json"), redact, stream)
    redact.add(["the second key", "dot"])
    log.info("refused", reason="neither the first key nor the second key, full stop.")
    (event,) = events(stream)
    assert event["reason"] == f"neither {REDACTED} nor {REDACTED}, full stop."

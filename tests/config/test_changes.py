"""Changes between two contents of config.toml, without secrets."""

import pytest

from bot.adapters import SETTINGS
from bot.config.changes import ValueChange, changes_between


def changed(before: str, after: str) -> list[tuple[str, str | None, str | None]]:
    return [(each.setting, each.before, each.after) for each in changes_between(before, after, SETTINGS)]


def test_only_settings_whose_value_differs_are_named() -> None:
    before = "# one\n[limits]\nrequests_per_minute = 9\nanswer_seconds = 60\n"
    after = '[limits]\nanswer_seconds = 60  # two\n[channels."discord:1"]\nwho = ["discord:2"]\n'
    assert changed(before, after) == [
        ("limits.requests_per_minute", "9", None),
        ("channels.discord:1.who", None, '["discord:2"]'),
    ]


@pytest.mark.parametrize(
    "table",
    [
        '[adapters.discord]\ntoken = "a-word"\n',
        '[engine]\nkey = "a-word"\n',
        '[models.big]\nkey = "a-word"\n',
        '[server.keys.bot]\nkey = "a-word"\n',
        '[storage]\nurl = "postgresql://bot:a-word@db/bot"\n',
        '[engine]\nurls = ["http://bot:a-word@host/v1"]\n',
        '[[unknown]]\ntoken = "a-word"\n',
        '[unknown.token]\ndeep = "a-word"\n',
    ],
)
def test_no_secret_is_shown(table: str) -> None:
    for shown in (changed("", table), changed(table, ""), changed(table, table.replace("a-word", "another"))):
        assert len(shown) == 1
        assert "a-word" not in str(shown)
        assert "another" not in str(shown)


def test_a_content_that_is_no_toml_has_no_settings() -> None:
    assert changed("[engine\n", '[engine]\nmodel = "b"\n') == [("engine.model", None, '"b"')]


def test_values_that_no_setting_has_are_shown_too() -> None:
    before = "odd = 2026-11-30\nlist = [1.0, [true], {a = 1}]\n"
    assert changes_between(before, "", SETTINGS) == (
        ValueChange("odd", "2026-11-30", None),
        ValueChange("list", "[1, [true], {…}]", None),
    )

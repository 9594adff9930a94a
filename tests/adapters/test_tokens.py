"""Tokens of the wrong kind are rejected at the start; all others are accepted."""

from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.config.sources import load_config
from bot.errors import ConfigError

SLACK = {"BOT_SLACK__BOT_TOKEN": "xoxb-123456789012-abc", "BOT_SLACK__APP_TOKEN": "xapp-1-A0-123456789012-abc"}


def load(folder: Path, **variables: str) -> list[str]:
    """Return the enabled platforms."""
    file = folder / "config.toml"
    file.touch()
    return list(load_config(file, SETTINGS, environ=variables).config.enabled_adapters)


def mistakes(folder: Path, **variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, **variables)
    assert not any(token in str(caught.value) for name, token in variables.items() if name.endswith("TOKEN"))
    return caught.value.mistakes


def test_swapped_slack_tokens_are_named(tmp_path: Path) -> None:
    bot_token, app_token = SLACK.values()
    assert mistakes(tmp_path, BOT_SLACK__BOT_TOKEN=app_token, BOT_SLACK__APP_TOKEN=bot_token) == (
        "BOT_SLACK__BOT_TOKEN: expected a bot token (xoxb-…), got an app token (xapp-…)",
        "BOT_SLACK__APP_TOKEN: expected an app token (xapp-…), got a bot token (xoxb-…)",
    )


def test_a_slack_user_token_is_rejected(tmp_path: Path) -> None:
    assert mistakes(tmp_path, **SLACK | {"BOT_SLACK__BOT_TOKEN": "xoxp-123456789012-abc"}) == (
        "BOT_SLACK__BOT_TOKEN: expected a bot token (xoxb-…), got a user token (xoxp-…)",
    )


def test_an_error_names_the_token_file(tmp_path: Path) -> None:
    file = tmp_path / "slack__app_token"
    file.write_text("xoxb-123456789012-abc\n")
    (mistake,) = mistakes(tmp_path, BOT_SECRETS_DIR=str(tmp_path))
    assert mistake.startswith(f"{file}: expected an app token")


@pytest.mark.parametrize("bot_token", ["xoxb-1", "xoxe.xoxb-1-abc", "a-new-kind"])
def test_possible_slack_tokens_are_accepted(tmp_path: Path, bot_token: str) -> None:
    assert load(tmp_path, **SLACK | {"BOT_SLACK__BOT_TOKEN": bot_token}) == ["slack"]


@pytest.mark.parametrize("token", ["AAExampleExampleExampleExampleExample", "@glm_bot", "987654:", "987654: AAExample"])
def test_a_malformed_telegram_token_is_rejected(tmp_path: Path, token: str) -> None:
    (mistake,) = mistakes(tmp_path, BOT_TELEGRAM__TOKEN=token)
    assert mistake.startswith("BOT_TELEGRAM__TOKEN: not a Telegram token: copy it from @BotFather as 123456:ABC-…")


@pytest.mark.parametrize("token", ["123456:" + "A" * 35, "1234567890:short_one", "123456:" + "A" * 35 + "/test"])
def test_possible_telegram_tokens_are_accepted(tmp_path: Path, token: str) -> None:
    assert load(tmp_path, BOT_TELEGRAM__TOKEN=token) == ["telegram"]

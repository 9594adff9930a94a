"""Tokens that cannot be what they are set as are refused before a platform is asked; all others are let through."""

from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.config.sources import load_config
from bot.errors import ConfigError

SLACK = {"BOT_SLACK__BOT_TOKEN": "xoxb-123456789012-abc", "BOT_SLACK__APP_TOKEN": "xapp-1-A0-123456789012-abc"}


def load(folder: Path, **variables: str) -> list[str]:
    """The platforms that would run."""
    file = folder / "config.toml"
    file.touch()
    return list(load_config(file, SETTINGS, environ=variables).enabled_adapters)


def mistakes(folder: Path, **variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, **variables)
    assert not any(token in str(caught.value) for name, token in variables.items() if name.endswith("TOKEN"))
    return caught.value.mistakes


def test_swapped_tokens_of_slack_are_told_apart(tmp_path: Path) -> None:
    bot_token, app_token = SLACK.values()
    assert mistakes(tmp_path, BOT_SLACK__BOT_TOKEN=app_token, BOT_SLACK__APP_TOKEN=bot_token) == (
        "BOT_SLACK__BOT_TOKEN: this is an app token (xapp-…), and here belongs a bot token (xoxb-…)",
        "BOT_SLACK__APP_TOKEN: this is a bot token (xoxb-…), and here belongs an app token (xapp-…)",
    )


def test_a_users_token_of_slack_is_no_bots(tmp_path: Path) -> None:
    assert mistakes(tmp_path, **SLACK | {"BOT_SLACK__BOT_TOKEN": "xoxp-123456789012-abc"}) == (
        "BOT_SLACK__BOT_TOKEN: this is a user token (xoxp-…), and here belongs a bot token (xoxb-…)",
    )


def test_a_token_file_with_the_wrong_token_is_named(tmp_path: Path) -> None:
    file = tmp_path / "slack__app_token"
    file.write_text("xoxb-123456789012-abc\n")
    (mistake,) = mistakes(tmp_path, BOT_SECRETS_DIR=str(tmp_path))
    assert mistake.startswith(f"{file}: this is a bot token")


@pytest.mark.parametrize("bot_token", ["xoxb-1", "xoxe.xoxb-1-abc", "a-kind-to-come"])
def test_all_tokens_of_slack_that_may_be_right_are_let_through(tmp_path: Path, bot_token: str) -> None:
    assert load(tmp_path, **SLACK | {"BOT_SLACK__BOT_TOKEN": bot_token}) == ["slack"]


@pytest.mark.parametrize("token", ["AAExampleExampleExampleExampleExample", "@glm_bot", "987654:", "987654: AAExample"])
def test_what_is_no_token_of_telegrams_is_refused(tmp_path: Path, token: str) -> None:
    (mistake,) = mistakes(tmp_path, BOT_TELEGRAM__TOKEN=token)
    assert mistake.startswith(
        "BOT_TELEGRAM__TOKEN: this is no token of Telegram's: @BotFather shows it as 123456:ABC-…"
    )


@pytest.mark.parametrize("token", ["123456:" + "A" * 35, "1234567890:short_one", "123456:" + "A" * 35 + "/test"])
def test_all_tokens_of_telegram_that_may_be_right_are_let_through(tmp_path: Path, token: str) -> None:
    assert load(tmp_path, BOT_TELEGRAM__TOKEN=token) == ["telegram"]

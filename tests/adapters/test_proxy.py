"""The proxy of the environment: which URLs it is for, and which kinds are refused."""

import pytest

from bot.adapters import SETTINGS, inspect, open_adapter
from bot.adapters.proxy import find_proxy
from bot.errors import ConfigError
from bot.util.clock import MonotonicClock
from tests.harness.servers.telegram import TelegramPlatform

TOKENS = {
    "discord": {"token": "x" * 70},
    "telegram": {"token": "1:x"},
    "slack": {"bot_token": "xoxb-1", "app_token": "xapp-1"},
}
API, GATEWAY = "https://discord.com/api/v10", "wss://gateway.discord.gg/"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, API, None),
        ({"HTTPS_PROXY": "http://p:1"}, API, "http://p:1"),
        ({"https_proxy": "http://p:1"}, GATEWAY, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, API, None),
        ({"HTTP_PROXY": "http://p:1"}, "ws://elsewhere/", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, GATEWAY, "http://p:1"),
        ({"ALL_PROXY": "socks5://p:1", "HTTPS_PROXY": "p:2"}, API, "http://p:2"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, API, None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "example.org,discord.com"}, API, None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": ".discord.com"}, GATEWAY, "http://p:1"),
        ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "discord.com"}, API, None),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.0.2:8080/api", None),
        ({"ALL_PROXY": "http://p:1"}, "http://[::1]:8080/api", None),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost/api", None),
    ],
)
def test_a_proxy_is_found(
    environment: pytest.MonkeyPatch, variables: dict[str, str], url: str, expected: str | None
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert find_proxy("discord", "", url) == expected
    assert find_proxy("discord", "http://mine:3128", url) == "http://mine:3128"


@pytest.mark.parametrize("platform", ["discord", "telegram", "slack"])
@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
async def test_an_adapter_names_a_proxy_that_it_cannot_use(
    environment: pytest.MonkeyPatch, platform: str, name: str
) -> None:
    environment.setenv(name, "socks5h://127.0.0.1:1080")
    settings = SETTINGS[platform].model_validate(TOKENS[platform])
    with pytest.raises(ConfigError, match=f"{name.upper()}.*adapters.{platform}.proxy"):
        open_adapter(platform, settings, MonotonicClock())
    (finding,) = [finding async for finding in inspect(platform, settings)]
    assert (finding.is_ok, name.upper() in finding.text) == (False, True)


async def test_telegram_is_called_through_the_proxy_of_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("bot.adapters.telegram.adapter._SECOND_POLLER", 0.0)
    async with TelegramPlatform() as telegram:
        environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{telegram.server_port}")
        settings = telegram.settings().model_copy(update={"api_url": "http://telegram.invalid"})
        findings = [finding.text async for finding in inspect("telegram", settings)]
    assert "@glm_bot" in findings[0]


@pytest.mark.parametrize("proxy", ["http://[::", "http://p:99999", "http://:3128"])
def test_a_proxy_that_is_no_url_is_named(environment: pytest.MonkeyPatch, proxy: str) -> None:
    environment.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        find_proxy("slack", "", API)


@pytest.mark.parametrize("proxy", ["socks5://me:secret@p:1", "socks4://p:1", "SOCKS5h://p:1", "ftp://p"])
def test_a_proxy_of_another_kind_is_named(environment: pytest.MonkeyPatch, proxy: str) -> None:
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"ALL_PROXY.*adapters\.slack\.proxy") as caught:
        find_proxy("slack", "", API)
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_is_used_where_the_library_can(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALL_PROXY", "socks5://p:1")
    assert find_proxy("telegram", "", API, allow_socks=True) == "socks5://p:1"

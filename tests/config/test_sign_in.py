"""Settings of the sign-in: those that would let others in are refused at the start, with a sentence."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from bot.adapters.web.sign_in.opening import sign_in_page
from bot.config.http import KeySection, ServerSection
from tests.config.test_config import load, mistakes

HTTPS = 'public_url = "https://bot.example.org"'
PROVIDER = 'issuer = "https://id.example.org"\nclient_id = "bot"'


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets").mkdir()


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        (
            '[server]\nproxy_header = "X-Forwarded-User"',
            (
                "line 2, server.proxy_header: anybody could send this header: name the proxies whose header counts in "
                "server.trusted_proxies"
            ),
        ),
        (
            f"[server]\n{HTTPS}",
            (
                "line 2, server.public_url: https is the work of a proxy: name its address in server.trusted_proxies, such as "
                "127.0.0.1"
            ),
        ),
        (
            '[server]\npublic_url = "https://bot.example.org/bot"',
            'line 2, server.public_url: it is not written "https://host" or "https://host:port", without a path',
        ),
        (
            '[server]\ntrusted_proxies = ["10.0.0.1/8"]',
            (
                "line 2, server.trusted_proxies: '10.0.0.1/8' is not an address or a network, as in \"127.0.0.1\" or "
                '"10.0.0.0/8"'
            ),
        ),
        (
            '[oidc]\nissuer = "http://id.example.org"',
            "line 2, oidc.issuer: it must begin with https://; http:// is for a server on this machine only",
        ),
        (
            f'[server]\n{HTTPS}\ntrusted_proxies = ["127.0.0.1"]\n[oidc]\nissuer = "https://id.example.org"',
            "oidc.client_id: it is needed with oidc.issuer",
        ),
    ],
)
def test_a_wrong_setting_is_named(toml: str, sentence: str) -> None:
    assert any(mistake.endswith(sentence) for mistake in mistakes(toml)), mistakes(toml)


def test_a_provider_needs_an_address_to_send_people_back_to() -> None:
    (sentence,) = mistakes(f"[oidc]\n{PROVIDER}", BOT_OIDC__CLIENT_SECRET="a secret")
    assert sentence.endswith("the provider sends people back to server.public_url, which is not set")


def test_the_secret_of_a_provider_is_not_in_config_toml() -> None:
    (sentence, *_) = mistakes(f'[oidc]\n{PROVIDER}\nclient_secret = "a secret"')
    assert "BOT_OIDC__CLIENT_SECRET" in sentence
    assert "a secret" not in sentence


def test_a_secret_file_has_it() -> None:
    Path("secrets/oidc__client_secret").write_text("from a file\n", encoding="utf-8")
    config = load(f'[server]\n{HTTPS}\ntrusted_proxies = ["127.0.0.1"]\n[oidc]\n{PROVIDER}')
    assert config.oidc.client_secret is not None
    assert config.oidc.client_secret.get_secret_value() == "from a file"
    assert "from a file" in config.secrets


@pytest.mark.parametrize(
    ("settings", "is_served"),
    [
        ({}, True),
        ({"web": False}, False),
        ({"web": True}, True),
        ({"enabled": False}, False),
        ({"public_url": ""}, False),
        ({"host": "0.0.0.0", "keys": {"app": KeySection(secret=SecretStr("sha256:0"))}}, True),
    ],
)
def test_links_lead_to_a_page_that_is_served(settings: dict[str, object], is_served: bool) -> None:
    usual = {"enabled": True, "public_url": "http://bot.test"}
    server = ServerSection.model_validate(usual | settings)
    assert sign_in_page(server) == ("http://bot.test/web/signin" if is_served else "")

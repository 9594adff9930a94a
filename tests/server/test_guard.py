"""Who may use the server: keys, host names, and web pages."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from bot.adapters import SETTINGS
from bot.chat.access import Access
from bot.cli.key import key
from bot.config.http import KeySection, ServerSection
from bot.config.schema import LimitsSection
from bot.config.sources import load_config
from bot.errors import ConfigError
from bot.server.app import own_limits
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine

PATHS = ["/v1/models", "/", "/chat", "/get_response", "/chat-stream", "/v1/chat/completions", "/nothing"]
BOBS_DIGEST = "sha256:" + hashlib.sha256(b"bob's secret").hexdigest()
BODY = json.dumps({"prompt": "a", "request_id": "1"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", PATHS)
async def test_a_web_page_cannot_use_a_server_without_keys(
    http: aiohttp.ClientSession, engine: ScriptedEngine, headers: dict[str, str], path: str
) -> None:
    async with http.post(path, data=BODY, headers=headers) as response:
        assert response.status == 403
    assert engine.requests == []


class TestKeys:
    @pytest.fixture
    def settings(self) -> ServerSection:
        return ServerSection(
            port=0,
            hosts=("bot.example.org",),
            origins=("https://chat.example.org",),
            keys={
                "alice": KeySection(secret=SecretStr("alice's secret")),
                "bob": KeySection(secret=SecretStr(BOBS_DIGEST), models=("other",), requests_per_minute=1),
            },
        )

    @pytest.mark.parametrize("key", [None, "", "wrong", "Bearer", "alice", BOBS_DIGEST, BOBS_DIGEST.upper()])
    @pytest.mark.parametrize("path", PATHS)
    async def test_every_path_needs_one(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, path: str, key: str | None
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with http.post(path, data=BODY, headers=headers) as response:
            assert response.status == 401
            assert "API key" in await response.text()
        assert engine.requests == []

    async def test_the_name_of_the_key_is_the_client(self, http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
        async with http.post("/", data=BODY, headers={"Authorization": "Bearer alice's secret"}) as response:
            assert response.status == 200
        assert [request.user for request in engine.requests] == ["api:alice"]

    @pytest.mark.parametrize(("scheme", "status"), [("bearer", 200), ("BEARER ", 200), ("Basic", 401), ("", 401)])
    async def test_the_scheme_is_bearer_in_any_case(
        self, http: aiohttp.ClientSession, scheme: str, status: int
    ) -> None:
        async with http.post("/", data=BODY, headers={"Authorization": f"{scheme} alice's secret"}) as response:
            assert response.status == status

    async def test_a_key_may_use_its_models_only(self, http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
        for path in ("/", "/chat-stream", "/tokenize", "/v1/completions"):
            async with http.post(path, data=BODY, headers={"Authorization": "Bearer bob's secret"}) as response:
                assert response.status == 403
                assert "may not use the model" in await response.text()
        assert engine.requests == []

    async def test_polled_answers_belong_to_their_client(self, http: aiohttp.ClientSession) -> None:
        body = json.dumps({"request_id": "1", "query": "a"})
        alice, bob = ({"Authorization": f"Bearer {name}'s secret"} for name in ("alice", "bob"))
        async with http.post("/chat", data=body, headers=alice) as response:
            assert (await response.json())["code"] == 0
        async with http.post("/get_response", data=body, headers=bob) as response:
            assert (await response.json())["code"] == 102

    async def test_named_hosts_and_pages_are_allowed(self, http: aiohttp.ClientSession) -> None:
        page = {"Host": "bot.example.org:443", "Origin": "https://chat.example.org"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with http.options("/v1/chat/completions", headers={**page, **asked}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (
                200,
                "https://chat.example.org",
            )
        async with http.get("/v1/models", headers={**page, "Authorization": "Bearer alice's secret"}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (
                200,
                "https://chat.example.org",
            )

    @pytest.mark.parametrize(
        ("origin", "status", "readable_by"),
        [("https://chat.example.org", 401, "https://chat.example.org"), ("https://evil.example.org", 403, None)],
    )
    async def test_named_pages_alone_can_read_a_refusal(
        self, http: aiohttp.ClientSession, origin: str, status: int, readable_by: str | None
    ) -> None:
        async with http.post("/", data=BODY, headers={"Origin": origin}) as response:
            assert (response.status, response.headers.get("Access-Control-Allow-Origin")) == (status, readable_by)

    async def test_a_preflight_of_another_page_is_refused(self, http: aiohttp.ClientSession) -> None:
        asked = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "POST"}
        async with http.options("/", headers=asked) as response:
            assert response.status == 400
            assert "Access-Control-Allow-Origin" not in response.headers


class TestAliases:
    @pytest.fixture
    def backend(self, backend: Backend) -> Backend:
        return replace(backend, aliases=("gpt-3.5-turbo",))

    @pytest.fixture
    def settings(self) -> ServerSection:
        keys = {
            name: KeySection(secret=SecretStr(name), models=(model,))
            for name, model in (("alice", "gpt-3.5-turbo"), ("bob", "other"))
        }
        return ServerSection(port=0, keys=keys)

    @pytest.mark.parametrize(("key", "status"), [("alice", 200), ("bob", 403)])
    @pytest.mark.parametrize("model", ["gpt-3.5-turbo", "scripted"])
    async def test_a_key_for_an_alias_may_use_the_default_model(
        self, http: aiohttp.ClientSession, key: str, status: int, model: str
    ) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "a"}]}
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == status


class TestNames:
    @pytest.fixture
    def settings(self) -> ServerSection:
        return ServerSection(
            port=0, hosts=("Bot.Example.org", "other.example.org:8000"), origins=("https://Chat.example.org/",)
        )

    @pytest.mark.parametrize("host", ["bot.example.org", "BOT.example.org:443", "other.example.org", "LOCALHOST:8000"])
    async def test_they_are_known_however_they_are_written(self, http: aiohttp.ClientSession, host: str) -> None:
        headers = {"Host": host, "Origin": "https://chat.example.org"}
        async with http.get("/v1/models", headers=headers) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"


def test_keys_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "server__keys__bob").write_text("from a file\n")
    environ = {"BOT_SECRETS_DIR": str(tmp_path), "BOT_SERVER__KEYS__ALICE": "from the environment"}
    config = load_config(None, SETTINGS, environ=environ).config
    keys = config.server.keys or {}
    assert {name: key.secret and key.secret.get_secret_value() for name, key in keys.items()} == {
        "alice": "from the environment",
        "bob": "from a file",
    }
    assert {"from a file", "from the environment"} <= set(config.secrets)


def test_a_key_in_the_file_and_an_open_host_without_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for text, words in (
        (
            '[server.keys.alice]\nsecret = "a key"',
            "secrets are not allowed in this file; use .*BOT_SERVER__KEYS__ALICE",
        ),
        ('[server.keys.alice]\nmodels = ["demo"]', "'alice' has no secret: set BOT_SERVER__KEYS__ALICE"),
        ('[server.keys]\nalice = "a key"', "secrets are not allowed in this file"),
        ('[server]\nhost = "0.0.0.0"', "is reachable from other machines"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(file, SETTINGS, environ={})
        assert "a key" not in str(caught.value).replace("set a key", "")


def test_a_key_has_limits_of_its_own(tmp_path: Path, clock: ManualClock) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server.keys.alice]\nrequests_per_minute = 3\ntokens_per_hour = 0\n")
    environ = {"BOT_SERVER__KEYS__ALICE": "a", "BOT_SERVER__KEYS__BOB": "b", "BOT_LIMITS__REQUESTS_PER_MINUTE": "1"}
    config = load_config(file, SETTINGS, environ=environ).config
    access = Access(config.access, config.limits, clock, own_limits(config.server))
    asked = {user: [access.too_much(user, None, str) for _ in range(4)] for user in ("api:alice", "api:bob")}
    assert [found is None for found in asked["api:alice"]] == [True, True, True, False]
    assert [found is None for found in asked["api:bob"]] == [True, False, False, False]
    access.reconfigure(config.access, LimitsSection(requests_per_minute=2))
    assert access.too_much("api:alice", None, str) is not None
    assert access.too_much("api:bob", None, str) is None


def test_a_made_key_opens_the_server_that_knows_its_digest() -> None:
    made = CliRunner().invoke(key, ["Alice"])
    assert made.exit_code == 0
    found = re.search(r"now: (\S+)\n.*BOT_SERVER__KEYS__ALICE=(sha256:[0-9a-f]{64})\n", made.output)
    assert found is not None
    assert found[2] == "sha256:" + hashlib.sha256(found[1].encode()).hexdigest()
    assert CliRunner().invoke(key, ["a b"]).exit_code == 2

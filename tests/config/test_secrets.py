"""No secret, from any source and in any encoding, appears in output, logs or errors."""

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from aiohttp import web
from pydantic import Field, SecretStr, create_model

from bot.adapters import SETTINGS
from bot.config.report import report
from bot.config.schema import NAMED_TABLES, AdapterSection, Config, EngineSection
from bot.config.secrets import Address, environment_secrets, is_secret
from bot.config.section import Section
from bot.config.sources import LoadedConfig, load_config
from bot.observability.logging import Redaction
from tests.cli.test_main import environment
from tests.harness import warm_start

# Some contain characters that URLs and shells encode.
TOKENS = {
    "BOT_DISCORD__TOKEN": "canary-1.discord.token",
    "BOT_TELEGRAM__TOKEN": "123456789:canary-2-telegram-token",
    "BOT_SLACK__BOT_TOKEN": "canary-3-slack-bot-token",
    "BOT_SLACK__APP_TOKEN": "canary-4-slack-app-token",
    "BOT_SLACK__SIGNING_SECRET": "canary-5-slack-signing",
    "BOT_STORAGE__MASTER_KEY": "canary-13-master-key/of-32-characters+",
    "BOT_STORAGE__OLD_MASTER_KEY": "canary-14-old-master-key",
    "HF_TOKEN": "canary-6-hub-token",
    "PGPASSWORD": "canary-7-pg-password",
}
PASSWORDS = {
    "BOT_DISCORD__PROXY": "canary-8+me/x=",
    "BOT_TELEGRAM__PROXY": "canary-9-proxy",
    "BOT_SLACK__PROXY": "canary-10-proxy",
    "HTTPS_PROXY": "canary-11-proxy",
}
# Log lines after which each platform has failed and been retried.
_MANY_LINES = 12
SECRETS = [*TOKENS.values(), *PASSWORDS.values()]


def encodings_of(secret: str) -> set[str]:
    encoded = secret.encode()
    tails = {base64.b64encode(b"x" * pad + encoded).decode().rstrip("=")[-12:] for pad in range(3)}
    return {secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1], *tails}


def leaks_in(text: str, *secrets: str) -> list[str]:
    return [form for secret in secrets or SECRETS for form in encodings_of(secret) if form in text]


@asynccontextmanager
async def a_server(status: int, body: str) -> AsyncIterator[str]:
    """Serve this answer to every request; {asked} is replaced by URL and headers of the request."""

    async def answer(request: web.Request) -> web.Response:
        said = body.replace("{asked}", f"{request.url} {dict(request.headers)}")
        return web.Response(status=status, text=said, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def everywhere(url: str, *, proxies: bool) -> dict[str, str]:
    """Return variables with canaries in all secrets, and all platforms at `url` or behind it as a proxy."""
    beyond = "http://platform.invalid" if proxies else url
    given = TOKENS | {
        "BOT_DISCORD__API_URL": f"{beyond}/api/v10",
        "BOT_DISCORD__GATEWAY_URL": f"{beyond.replace('http', 'ws')}/gateway",
        "BOT_TELEGRAM__API_URL": beyond,
        "BOT_SLACK__API_URL": f"{beyond}/api/",
        "BOT_LOGS__LEVEL": "debug",
        "BOT_OPERATIONS__PORT": "0",
        "BOT_LOGS__LEVELS": "discord=debug,telegram=debug,httpx=debug,httpcore=debug,slack_sdk=debug,aiohttp=debug",
    }
    if proxies:
        given |= {
            name: url.replace("://", f"://me:{quote(password, safe='')}@") for name, password in PASSWORDS.items()
        }
    return given


async def output_of(folder: Path, *args: str, module: str = "bot", **variables: str) -> str:
    """Run the program until it exits or has written many lines; return its output."""
    log = folder / "said"
    log.unlink(missing_ok=True)
    env = environment(PYTHONASYNCIODEBUG="1", **variables)
    process = warm_start.start(args, folder=folder, env=env, stdout=log, stderr=log, module=module, login_pause=0.1)
    try:
        while process.returncode is None:
            if args == ("run",) and log.exists() and log.read_bytes().count(b"\n") >= _MANY_LINES:
                process.terminate()
            await asyncio.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


ANSWERS = [
    (401, '{"ok": false, "error_code": 401, "error": "invalid_auth", "description": "{asked}", "message": "{asked}"}'),
    (500, "<html>{asked}"),
    (200, "{asked}"),
]


@pytest.mark.parametrize(("status", "body"), ANSWERS, ids=["refused", "broken", "nonsense"])
@pytest.mark.parametrize("proxies", [False, True], ids=["direct", "by proxy"])
async def test_no_secret_is_shown_when_platforms_fail(tmp_path: Path, status: int, body: str, proxies: bool) -> None:
    async with a_server(status, body) as url:
        given = everywhere(url, proxies=proxies)
        for command in (["check", "--online"], ["run"]):
            said = await output_of(tmp_path, *command, **given)
            assert said, "there is an error message"
            assert leaks_in(said) == [], said


async def test_no_secret_is_shown_in_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "faulty_bot.py").write_text(
        "import bot.adapters.telegram.adapter as module\n"
        "from bot.__main__ import main\n"
        "def broken(settings, *more):\n"
        "    raise RuntimeError(f'no route to https://x/bot{settings.token.get_secret_value()}/getMe', settings)\n"
        "module.open_adapter = broken\n"
        "main()\n"
    )
    given = TOKENS | {"BOT_OPERATIONS__PORT": "0"}
    said = await output_of(tmp_path, "run", module="faulty_bot", **given)
    assert "RuntimeError: ('no route to https://x/bot(secret)/getMe'" in said
    assert leaks_in(said) == []


def test_no_secret_is_shown_in_any_form_of_the_settings(tmp_path: Path) -> None:
    for name, password in PASSWORDS.items():
        if name.startswith("BOT_"):
            (tmp_path / name.removeprefix("BOT_").lower()).write_text(f"http://me:{password}@proxy:1\n")
    url = "postgresql+psycopg://bot:canary-12/pass@db/bot"
    environ = TOKENS | {"BOT_STORAGE__URL": url, "BOT_SECRETS_DIR": str(tmp_path)}
    loaded = load_config(None, SETTINGS, environ=environ)
    sections = [loaded.config.storage, *loaded.config.adapters.values()]
    shown = [*report(loaded), repr(loaded), str(loaded), repr(loaded.config), loaded.config.model_dump_json()]
    shown += [form for section in sections for form in (repr(section), str(section), str(section.model_dump()))]
    assert leaks_in("\n".join(shown), *SECRETS, "canary-12/pass") == []
    assert "  proxy = (set)" in "\n".join(shown).replace("* proxy", "  proxy")


def test_a_mistake_in_the_settings_does_not_reveal_a_secret(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[adapters.discord]\nproxy = "http://me:canary-8@proxy:1"\n[adapters.slack]\nproxy = "me:canary-9@proxy:1"\n'
        'token = "canary-3"\n[storage]\nurl = "mysql://bot:canary-12/pass@db/bot"\n'
    )
    environ = environment(BOT_TELEGRAM__PROXY="socks5://me:canary-10@proxy:1")
    ran = warm_start.run(["check"], folder=tmp_path, env=environ)
    assert ran.returncode == 2
    assert "canary" not in ran.stdout + ran.stderr


def test_a_proxy_without_a_password_is_shown(tmp_path: Path) -> None:
    loaded = load_config(None, SETTINGS, environ={"BOT_TELEGRAM__PROXY": "http://proxy:3128"})
    assert any("http://proxy:3128" in line for line in report(loaded))
    assert "http://proxy:3128" not in loaded.config.secrets


def test_secrets_that_libraries_read_from_the_environment_are_redacted() -> None:
    environ = {"HF_TOKEN": "canary-6-hub", "https_proxy": "http://me:canary-11@proxy:1", "NO_PROXY": "localhost"}
    redact = Redaction(environment_secrets(environ))
    assert leaks_in(redact("canary-6-hub http://me:canary-11@proxy:1 canary-11"), "canary-6-hub", "canary-11") == []


class ApiKeySection(Section):
    url: Annotated[SecretStr, Address] = SecretStr("http://me:canary-21@proxy:1")
    keys_by_host: dict[str, tuple[SecretStr, ...]] = Field(default={"hub": (SecretStr("canary-22"),)})


@pytest.mark.parametrize("name", [*Config.model_fields])
def test_a_secret_in_any_section_at_any_depth_is_redacted_and_not_shown(name: str) -> None:
    tables: dict[str, type[Section]] = {"adapters": AdapterSection, "models": EngineSection, **NAMED_TABLES}
    base: Any = tables.get(name) or Config.model_fields[name].annotation
    section: Any = create_model(
        "Extended",
        __base__=base,
        required=(SecretStr, SecretStr("canary-23")),
        optional=(SecretStr | None, SecretStr("canary-24")),
        nested=(ApiKeySection, ApiKeySection()),
        many=(list[ApiKeySection], [ApiKeySection()]),
    )
    key = "new" if name in ("adapters", "models", "personas") else "user" if name == "quotas" else "discord:new"
    config = Config(**{name: {key: section()} if name in tables else section()})  # type: ignore[arg-type]
    canaries = ("canary-21", "canary-22", "canary-23", "canary-24")
    assert {secret for secret in config.secrets if secret in canaries} == {*canaries}
    line = repr([SecretStr.get_secret_value(each) for each in (section().required, section().optional)])
    assert leaks_in(Redaction(config.secrets)(f"{line} canary-21 canary-22"), *canaries) == []
    assert all(is_secret(section.model_fields[field]) for field in ("required", "optional", "nested", "many"))
    shown = "\n".join(report(LoadedConfig(config, {})))
    assert leaks_in(shown, *canaries) == []
    assert "(set)" in shown

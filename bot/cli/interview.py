"""The questions of `bot init`, and the checks of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.first_setup import (
    PLATFORMS,
    SERVER_CALL,
    TITLES,
    fitting_quantization,
    hub_settings,
    load,
    measure,
    model_settings,
    platform_findings,
    redacted,
)
from bot.errors import ConfigError, EngineError, LoginRefused, PlatformError

if TYPE_CHECKING:
    from bot.chat.i18n import Translate
    from bot.config.schema import Key
    from bot.config.setup import Setup

SERVICES = ("none", "user", "system", "compose")


@dataclass(frozen=True, slots=True)
class InitOptions:
    """The options of the command; None was not given."""

    platforms: tuple[str, ...]
    model: str | None
    url: str | None
    quantization: str | None
    language: str | None
    service: str | None
    offline: bool


def check_platform(setup: Setup, name: str, translate: Translate = str) -> None:
    """Ask a platform about its bot, and print what it says.

    Raises:
        ConfigError, LoginRefused: A token is wrong.
        PlatformError: The platform cannot be reached.
    """
    asyncio.run(_print_findings(setup, name, translate))


async def _print_findings(setup: Setup, name: str, translate: Translate) -> None:
    async for finding in platform_findings(setup, name):
        click.echo(f"  {'ok' if finding.is_ok else '!!'} {finding.in_words(translate)}")


class Interview:
    """Asks one question after the other; options of the command are answers already."""

    def __init__(self, translate: Translate, choices: InitOptions) -> None:
        self.translate = translate
        self._choices = choices

    def setup(self) -> Setup:
        """Ask for everything that config.toml and the secret files hold."""
        from bot.config.setup import Setup

        translate = self.translate
        click.echo(translate("This writes config.toml and one file for each token. Ctrl-C quits without writing."))
        secrets: dict[Key, str] = {}
        for name in self._choices.platforms or self._platforms():
            secrets |= self._tokens(name)
        settings, more = self._model()
        language = self._choices.language or self._pick(
            translate("Language of the bot's own messages?"),
            {"auto": translate("that of each user"), "en": "English", "zh": "中文"},
        )
        if language != "auto":
            settings["conversation", "language"] = language
        return Setup(settings, secrets | more)

    def service(self, setup: Setup, *, has_checkout: bool) -> str:
        """Ask how the bot shall run; a chat in the terminal is no service."""
        translate = self.translate
        if not setup.has_platform:
            return "none"
        ways = {
            "none": translate("I start it by hand"),
            "user": translate("systemd, as a service of this user"),
            "system": translate("systemd, as a service of the machine"),
        }
        if has_checkout:
            ways["compose"] = translate("Docker or Podman, with a compose file")
        return self._pick(translate("How will the bot be started?"), ways)

    def confirm(self, question: str) -> None:
        """Raise click.Abort unless the answer is yes."""
        if not self._agrees(question):
            raise click.Abort

    def show_files(self, texts: Mapping[Path, str], private: Collection[Path], notes: Collection[str]) -> None:
        """List the files, and ask whether to write them."""
        click.echo("\n" + self.translate("To be written:"))
        for path in texts:
            click.echo(f"  {path}" + (self.translate("  (readable by you only)") if path in private else ""))
        for note in notes:
            click.echo(f"  !! {note}")
        self.confirm(self.translate("Write these files?"))

    def _platforms(self) -> list[str]:
        click.echo("\n" + self.translate("Where will people talk to the bot?"))
        for number, name in enumerate(PLATFORMS, 1):
            click.echo(f"  {number}  {TITLES[name]}")
        while True:
            words = self._ask(self.translate("Numbers, as in 1,3; empty for this terminal only")).replace(",", " ")
            chosen = dict.fromkeys(words.split())
            if all(word.isdecimal() and 1 <= int(word) <= len(PLATFORMS) for word in chosen):
                return [PLATFORMS[int(word) - 1] for word in chosen]
            click.echo(self.translate("Enter numbers from 1 to {last}.").format(last=len(PLATFORMS)))

    def _tokens(self, name: str) -> dict[Key, str]:
        """Ask for the tokens of a platform until it accepts them, or they are kept unchecked."""
        from bot.adapters import SETTINGS
        from bot.config.setup import Setup

        translate = self.translate
        sources = {
            ("discord", "token"): translate("Token (Developer Portal, your application, Bot, Reset Token)"),
            ("telegram", "token"): translate("Token (from @BotFather, 123456:ABC-…)"),
            ("slack", "bot_token"): translate("Bot token (xoxb-…, OAuth & Permissions, after installing the app)"),
            ("slack", "app_token"): translate("App token (xapp-…, Basic Information, App-Level Tokens)"),
        }
        click.echo(f"\n{TITLES[name]}")
        while True:
            secrets: dict[Key, str] = {
                ("adapters", name, token): self._secret(sources[name, token]) for token in SETTINGS[name].tokens
            }
            try:
                if self._choices.offline:
                    load(Setup({}, secrets))
                else:
                    click.echo(translate("Asking {platform} …").format(platform=TITLES[name]))
                    check_platform(Setup({}, secrets), name, translate)
            except ConfigError as error:
                click.echo("\n".join(f"  !! {mistake}" for mistake in error.mistakes))
                continue
            except LoginRefused as error:
                click.echo(f"  !! {redacted(error, secrets.values())}")
                continue
            except PlatformError as error:
                click.echo(f"  !! {redacted(error, secrets.values())}")
                question = translate("{platform} could not be reached. Keep the token without a check?")
                if not self._agrees(question.format(platform=TITLES[name])):
                    continue
            return secrets

    def _model(self) -> tuple[dict[Key, object], dict[Key, str]]:
        """Ask for the model; return settings and secrets."""
        from bot.config.setup import find_servers

        given, translate = self._choices, self.translate
        if given.url:
            return self._served(given.url, given.model)
        if given.model:
            return model_settings(given.model, "", given.quantization or "none"), {}
        servers = asyncio.run(find_servers())
        ways = {
            server.url: translate("{name} on this machine, {url}: {models}").format(
                name=server.name,
                url=server.url,
                models=", ".join(server.models[:3]) + (", …" * (len(server.models) > 3)),
            )
            for server in servers
        }
        ways |= {
            "demo": translate("the demo model: comes with the bot, answers questions about itself"),
            "folder": translate("a folder with a model"),
            "hub": translate("a model of Hugging Face, downloaded at the first start"),
            "server": translate("a model server at another address (OpenAI-compatible)"),
        }
        while True:
            way = self._pick(translate("Which model answers?"), ways)
            match way:
                case "demo":
                    return {}, {}
                case "folder" | "hub":
                    settings = self._local(is_folder=way == "folder")
                    if settings is not None:
                        return settings, {}
                case "server":
                    return self._served(self._ask(translate("Address, as in http://gpu1:8000/v1")), None)
                case _:
                    return self._served(way, None)

    def _served(self, url: str, model: str | None) -> tuple[dict[Key, object], dict[Key, str]]:
        from bot.config.setup import SERVERS, Setup, models_of

        translate = self.translate
        while True:
            secrets: dict[Key, str] = {}
            if url not in SERVERS.values() and (
                key := self._secret(translate("Its key; empty for none"), may_lack=True)
            ):
                secrets = {("engine", "key"): key}
            models = asyncio.run(models_of(url, secrets.get(("engine", "key"), ""), SERVER_CALL, use_proxies=True))
            problem = ""
            try:
                load(Setup(model_settings("", url), secrets))
            except ConfigError as error:
                problem = "\n".join(f"  !! {mistake}" for mistake in error.mistakes)
            if problem:
                click.echo(problem)
            elif models:
                chosen = model or self._pick(translate("Which of its models?"), {name: name for name in models})
                return model_settings(chosen, url), secrets
            elif self._agrees(translate("{url} could not be reached. Keep it without a check?").format(url=url)):
                return model_settings(model or self._ask(translate("Name of its model")), url), secrets
            url = self._ask(translate("Address, as in http://gpu1:8000/v1"))

    def _local(self, *, is_folder: bool) -> dict[Key, object] | None:
        """Ask for a model that runs in the bot; None for another choice."""
        translate = self.translate
        click.echo(translate("Looking at this machine …"))
        machine = measure()
        if machine is None:
            click.echo(translate("Local models need torch, which is not installed: python -m pip install chatglm-bot"))
            return None
        if machine.free is not None:
            click.echo(f"  {machine.device}: {machine.free / 2**30:.1f} GiB " + translate("free"))
        fits = ", ".join(f"{kind} ({batch})" for kind, batch in machine.batches.items() if batch)
        click.echo("  " + translate("ChatGLM-6B fits as (answers at once):") + f" {fits or translate('nothing')}")
        name = self._ask(translate("Folder") if is_folder else translate("Name, as in THUDM/chatglm-6b"))
        if is_folder and not Path(name).expanduser().is_dir():
            click.echo(f"  !! {translate('no such folder')}")
            return None
        if is_folder:
            return self._fitting(name)
        settings = hub_settings(name, self._choices.quantization, machine)
        if settings is None:
            click.echo(f"  !! {translate('It does not fit into the memory of this machine.')}")
        return settings

    def _fitting(self, model: str) -> dict[Key, object] | None:
        """Return the settings of a folder with the first quantization that fits."""
        kinds = [self._choices.quantization] if self._choices.quantization else ["none", "int8", "int4"]
        try:
            return model_settings(model, "", fitting_quantization(model, kinds))
        except EngineError as error:
            click.echo(f"  !! {error}")
            return None

    def _pick(self, question: str, ways: Mapping[str, str]) -> str:
        """Ask for one of some numbered answers; the first is the default."""
        names = list(ways)
        if len(names) == 1:
            return names[0]
        click.echo(f"\n{question}")
        for number, text in enumerate(ways.values(), 1):
            click.echo(f"  {number}  {text}")
        while True:
            answer = self._ask(self.translate("Number"), default="1")
            if answer.isdecimal() and 1 <= int(answer) <= len(names):
                return names[int(answer) - 1]
            click.echo(self.translate("Enter a number from 1 to {last}.").format(last=len(names)))

    def _agrees(self, question: str) -> bool:
        return self._ask(f"{question} [y/N]", default="n").lower() in ("y", "yes", "是", "好")

    def _ask(self, question: str, default: str = "") -> str:
        answer: str = click.prompt(question, default=default, show_default=default not in ("", "n"))
        return answer.strip()

    def _secret(self, question: str, *, may_lack: bool = False) -> str:
        """Ask for a secret, which the terminal does not show."""
        while True:
            answer = str(click.prompt(question, default="", show_default=False, hide_input=True)).strip()
            if answer or may_lack:
                return answer
            click.echo(self.translate("It is empty; what is typed or pasted is not shown."))

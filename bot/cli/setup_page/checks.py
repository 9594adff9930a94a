"""The checks of the answers: each asks a platform, a server or this machine once."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot.adapters import SETTINGS, import_adapter
from bot.chat.i18n import Translate
from bot.cli.first_setup import (
    SERVER_CALL,
    TITLES,
    fitting_quantization,
    hub_settings,
    load,
    measure,
    model_settings,
    platform_findings,
    program,
    redacted,
)
from bot.cli.setup_page.answers import ModelAnswer, SetupAnswers
from bot.config.schema import Key, variable
from bot.config.setup import FoundServer, Setup, find_servers, models_of
from bot.errors import ConfigError, EngineError, LoginRefused, PlatformError

if TYPE_CHECKING:
    from bot.engine.sizes import Machine

Verdict = Literal["accepted", "refused", "unreachable"]


@dataclass(frozen=True, slots=True)
class PageLine:
    """One sentence with its mark."""

    is_ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """What a platform says of its tokens."""

    verdict: Verdict
    lines: list[PageLine]
    link: str = ""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """Whether a model can be used, why not, the models to choose from, and what would be written."""

    verdict: Verdict
    text: str
    models: list[str] = field(default_factory=list)
    settings: Mapping[Key, object] = field(default_factory=dict)
    secrets: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalModels:
    """Models on this machine: of running servers, of the hub's cache and of folders; and what else fits."""

    servers: list[FoundServer]
    cached: Mapping[str, Path]
    folders: list[Path]
    machine: Machine | None


class SetupChecks:
    """Remembers the last result for each platform and the last model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens: dict[str, tuple[Mapping[Key, str], TokenCheck]] = {}
        self._model: tuple[ModelAnswer, ModelCheck] | None = None
        self._local: asyncio.Task[LocalModels] | None = None

    async def tokens(self, platform: str, tokens: Mapping[str, str], translate: Translate) -> TokenCheck:
        """Ask a platform about its bot; no sentence contains a token."""
        secrets: dict[Key, str] = {("adapters", platform, name): tokens[name] for name in SETTINGS[platform].tokens}
        await asyncio.to_thread(import_adapter, platform)
        lines: list[PageLine] = []
        link = ""
        verdict: Verdict = "accepted"
        try:
            async for finding in platform_findings(Setup({}, secrets), platform):
                lines.append(PageLine(finding.is_ok, finding.in_words(translate)))
                link = link or finding.link
        except ConfigError as error:
            verdict = "refused"
            lines += [PageLine(False, translate(_sentence(mistake, secrets))) for mistake in error.mistakes]
        except LoginRefused as error:
            verdict = "refused"
            lines.append(PageLine(False, _refusal(platform, error, translate)))
        except PlatformError as error:
            verdict = "unreachable"
            lines.append(PageLine(False, redacted(error, secrets.values())))
        check = TokenCheck(verdict, lines, link)
        self._tokens[platform] = secrets, check
        return check

    async def local_models(self) -> LocalModels:
        """Look at this machine, once."""
        if self._local is None:
            self._local = asyncio.create_task(self._look())
        return await asyncio.shield(self._local)

    async def _look(self) -> LocalModels:
        servers, (machine, cached, folders) = await asyncio.gather(
            find_servers(), asyncio.to_thread(_measured, self._folder)
        )
        return LocalModels(servers, cached, folders, machine)

    async def model(self, answer: ModelAnswer, translate: Translate) -> ModelCheck:
        """Check whether a model can be used on this machine; one that could is not checked again."""
        known = self._model
        if known is None or known[0] != answer or known[1].verdict != "accepted":
            known = self._model = answer, await self._checked_model(answer, translate)
        return known[1]

    async def _checked_model(self, answer: ModelAnswer, translate: Translate) -> ModelCheck:
        match answer.way:
            case "demo":
                return ModelCheck("accepted", translate("It comes with the bot and needs no GPU."))
            case "server":
                return await _served(answer, translate)
            case "folder":
                folder = await asyncio.to_thread(_folder, answer.name)
                if folder is None:
                    return ModelCheck("refused", translate("There is no such folder on this machine."))
                return await self._fitting(answer, folder, answer.name, translate)
            case "hub":
                local = await self.local_models()
                if answer.name in local.cached:
                    return await self._fitting(answer, local.cached[answer.name], answer.name, translate)
                return _of_hub(answer, local.machine, translate)

    async def _fitting(self, answer: ModelAnswer, folder: Path, model: str, translate: Translate) -> ModelCheck:
        if (await self.local_models()).machine is None:
            return ModelCheck("refused", _without_torch(translate))
        kinds = ("none", "int8", "int4") if answer.quantization == "auto" else (answer.quantization,)
        try:
            kind = await asyncio.to_thread(fitting_quantization, str(folder), kinds)
        except EngineError as error:
            return ModelCheck("refused", str(error))
        text = translate("It fits into this machine's memory with quantization = {kind}.").format(kind=kind)
        return ModelCheck(
            "accepted", _with_speed(text, model, kind, translate), settings=model_settings(model, "", kind)
        )

    async def setup(self, answers: SetupAnswers, translate: Translate) -> tuple[Setup, list[str]]:
        """Return what the answers mean, and what is missing before it can be written."""
        settings: dict[Key, object] = {}
        secrets: dict[Key, str] = {}
        missing: list[str] = []
        for platform, tokens in answers.platforms.items():
            title, names = TITLES[platform], SETTINGS[platform].tokens
            given: dict[Key, str] = {("adapters", platform, name): tokens.get(name, "") for name in names}
            secrets |= given
            if not all(given.values()):
                missing.append(translate("{platform}: enter its token.").format(platform=title))
                continue
            known, check = self._tokens.get(platform, ({}, None))
            if check is None or known != given:
                missing.append(translate("{platform}: its token is not checked yet.").format(platform=title))
            elif check.verdict == "refused":
                missing.append(translate("{platform}: its token is not accepted.").format(platform=title))
            elif check.verdict == "unreachable" and platform not in answers.unchecked:
                missing.append(translate("{platform} could not be reached.").format(platform=title))
        known_model = self._model
        if known_model is not None and known_model[0] == answers.model:
            model = known_model[1]
        else:
            model = await self.model(answers.model, translate)
        is_kept = model.verdict == "unreachable" and "model" in answers.unchecked and model.settings
        if model.verdict != "accepted" and not is_kept:
            missing.append(translate("Model: {reason}").format(reason=model.text))
        settings |= model.settings
        secrets |= model.secrets
        if answers.language != "auto":
            settings["conversation", "language"] = answers.language
        setup = Setup(settings, secrets)
        if not missing:
            try:
                load(setup)
            except ConfigError as error:
                missing += [_sentence(mistake, secrets) for mistake in error.mistakes]
        return setup, missing


def _folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, or ~ of no user
        return None


def _refusal(platform: str, error: LoginRefused, translate: Translate) -> str:
    """Return what to do about a refused token; Slack has two."""
    if platform != "slack":
        text = translate("{platform} does not accept this token: copy it again, or create a new one.")
    elif "app_token" in str(error):
        text = translate("{platform} does not accept the app token: copy it again, or create a new one.")
    else:
        text = translate("{platform} does not accept the bot token: copy it again, or create a new one.")
    return text.format(platform=TITLES[platform])


def _measured(folder: Path) -> tuple[Machine | None, Mapping[str, Path], list[Path]]:
    machine = measure()
    if machine is None:
        return None, {}, []
    from bot.engine.checkpoints import cached_models, models_in

    return machine, cached_models(), models_in((folder, folder / "models"))


async def _served(answer: ModelAnswer, translate: Translate) -> ModelCheck:
    secrets: dict[Key, str] = {}
    if key := answer.key.get_secret_value().strip():
        secrets = {("engine", "key"): key}
    if not answer.url:
        return ModelCheck("refused", translate("Enter the address of the server."))
    settings = model_settings(answer.name, answer.url)
    try:
        load(Setup(settings, secrets))
    except ConfigError as error:
        return ModelCheck("refused", " ".join(_sentence(mistake, secrets) for mistake in error.mistakes))
    models = await models_of(answer.url, key, SERVER_CALL, use_proxies=True)
    if not models:
        text = translate("{url} could not be reached, or lists no models.").format(url=answer.url)
        return ModelCheck("unreachable", text, settings=settings if answer.name else {}, secrets=secrets)
    if answer.name not in models:
        return ModelCheck("refused", translate("Choose one of its models."), models)
    text = translate("The server answers and has this model.")
    return ModelCheck("accepted", text, models, settings, secrets)


def _of_hub(answer: ModelAnswer, machine: Machine | None, translate: Translate) -> ModelCheck:
    if machine is None:
        return ModelCheck("refused", _without_torch(translate))
    from bot.engine.model_folder import is_hub_name

    if not is_hub_name(answer.name):
        return ModelCheck("refused", translate("Enter its name, as in THUDM/chatglm-6b."))
    settings = hub_settings(answer.name, None if answer.quantization == "auto" else answer.quantization, machine)
    if settings is None:
        return ModelCheck("refused", translate("It does not fit into the memory of this machine."))
    kind = str(settings.get(("engine", "quantization"), "none"))
    if "chatglm-6b" in answer.name.lower():
        text = translate("It fits into this machine's memory with quantization = {kind}.").format(kind=kind)
    else:
        text = translate("Whether it fits into the memory is known after its download, at the first start.")
    return ModelCheck("accepted", _with_speed(text, answer.name, kind, translate), settings=settings)


def _with_speed(text: str, model: str, kind: str, translate: Translate) -> str:
    command = f"{program()} bench --model {shlex.quote(model)}" + ("" if kind == "none" else f" --quantization {kind}")
    return f"{text} " + translate("How fast it answers here is not known before a benchmark: {command}").format(
        command=command
    )


def _without_torch(translate: Translate) -> str:
    return translate("Local models need torch, which is not installed: python -m pip install chatglm-bot")


def _sentence(mistake: str, secrets: Mapping[Key, str]) -> str:
    """Return a mistake without the names of variables: here the tokens come from fields."""
    for key in secrets:
        mistake = mistake.removeprefix(f"{variable(key)}: ")
    return mistake

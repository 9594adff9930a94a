"""Sentences about the state of the program, for /status and the operator's panel."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePath

from bot.chat.i18n import Translate
from bot.config.reload import ReloadResult
from bot.domain import EngineInfo, ModelStatus, RunningBot, Upkeep


def upkeep_lines(upkeep: Upkeep, translate: Translate) -> Iterator[str]:
    """Yield what an operator should know of the database; nothing while all is well."""
    if upkeep.unencrypted:
        yield translate("Encrypting texts of an older version: {count} exchanges left.").format(
            count=upkeep.unencrypted
        )
    if upkeep.is_rewriting:
        yield translate(
            "The database file must be rewritten once more; until then it has unencrypted texts of an older version."
        )
    if upkeep.lost:
        yield translate("Cleared since the start, because their keys are deleted: {count} exchanges.").format(
            count=upkeep.lost
        )


def public_name(model: str) -> str:
    """Return a model without its folder."""
    return PurePath(model).name or model


def public_info(info: EngineInfo) -> EngineInfo:
    """Return the model without its folder, and without the servers of a remote one.

    >>> public_info(EngineInfo("/models/6b/", "chatglm", "int4", "float32", "cpu", 2048)).model
    '6b'
    >>> public_info(EngineInfo("qwen", "remote", "none", "none", "gpu1.intranet:8000", 2048)).device
    'remote'
    """
    device = "remote" if info.backend == "remote" else info.device
    return replace(info, model=public_name(info.model), device=device)


def model_line(status: ModelStatus, translate: Translate, *, tells_why: bool) -> str:
    """Describe one of several models; admins read why it cannot answer, and its folder."""
    info, load = status.info, status.load
    if info is None or load is None or load.down is not None:
        line = translate("Model {name}: not available").format(name=status.name)
        why = status.fault if load is None else load.down
        return f"{line} ({why})" if tells_why and why else line
    if load.is_changing:
        return translate("Model {name}: is being changed").format(name=status.name)
    if status.base:
        return translate("Model {name}: shares {base}, with a prefix of its own").format(
            name=status.name, base=status.base
        )
    return translate("Model {name}: {model}, answering: {running}, waiting: {waiting}").format(
        name=status.name,
        model=info.model if tells_why else public_name(info.model),
        running=load.running,
        waiting=load.waiting,
    )


def bot_lines(bots: Sequence[RunningBot], translate: Translate) -> Iterator[str]:
    """Yield a line for each bot that shares the database."""
    for bot in bots:
        served = ", ".join(bot.platforms) or translate("standing by")
        yield translate("Bot {name}, version {version}: {platforms}").format(
            name=bot.name, version=bot.version, platforms=served
        )


def duration(time: timedelta, translate: Translate) -> str:
    """Write a duration in the reader's language; Python would name the days in English.

    >>> duration(timedelta(hours=26), str), duration(timedelta(seconds=2), str)
    ('1 d 2:00:00', '0:00:02')
    """
    hours = str(timedelta(seconds=time.seconds))
    return translate("{days} d {hours}").format(days=time.days, hours=hours) if time.days else hours


def reload_lines(last: ReloadResult, translate: Translate) -> Iterator[str]:
    """Yield what the last reload of config.toml did."""
    yield translate("Settings reloaded: {time}").format(time=f"{last.at:%Y-%m-%d %H:%M:%S} UTC")
    if last.changed:
        yield translate("Changed: {settings}").format(settings=", ".join(last.changed))
    if last.needs_restart:
        yield translate("Needs a restart: {settings}").format(settings=", ".join(last.needs_restart))
    if last.rejected:
        yield translate("Reload rejected, keeping the previous settings: {mistakes}").format(
            mistakes="; ".join(last.rejected)
        )
    if last.failure is not None:
        yield translate("The model was not changed: {why}").format(why=last.failure)

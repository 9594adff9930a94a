"""The slash commands: one function each, the same on every platform."""

from collections.abc import Awaitable, Iterator
from datetime import timedelta

from bot import __version__
from bot.chat.command_table import (
    COMMANDS,
    Command,
    CommandContext,
    command,
    gettext_noop,
    is_forget,
    is_open_retry,
    menu,
    parse,
)
from bot.chat.i18n import Translate, demo_note
from bot.chat.settings_commands import MODEL, PERSONA, model, model_in_force, persona, persona_in_force
from bot.domain import ModelStatus
from bot.errors import NotErased
from bot.observability import process

__all__ = ["COMMANDS", "Command", "is_forget", "is_open_retry", "menu", "parse"]


@command("clear", gettext_noop("Forget this conversation"))
async def clear(context: CommandContext) -> str:
    translate, message = context.translate, context.exchange.message
    if not context.access.may_clear(message.author):
        return translate("Only admins may make me forget a conversation.")
    count, rest = await _deleted(context, context.exchanges.clear(message.channel, context.exchange))
    if not count:
        return translate("There was nothing to forget here.")
    return translate("Forgotten: everything said here ({count}).").format(count=count) + rest


@command("forget", gettext_noop("Forget all that you ever said to me, everywhere: /forget me"), argument="me")
async def forget(context: CommandContext) -> str:
    translate = context.translate
    if not is_forget(context.exchange):
        return translate(
            "Say `forget me` to me, and I delete all that you ever said to me, in every channel, and my answers "
            "to it. `/clear` forgets this conversation only."
        )
    count, rest = await _deleted(context, context.exchanges.forget(context.exchange))
    await context.choices.reload()
    if not count:
        return translate("I remember nothing that you said to me.")
    return translate("Forgotten: all that you ever said to me ({count}), and my answers.").format(count=count) + rest


async def _deleted(context: CommandContext, deletion: Awaitable[int]) -> tuple[int, str]:
    """Return the number of deleted questions, and a sentence if the files still hold their text."""
    try:
        return await deletion, ""
    except NotErased as error:
        rest = context.translate(
            "No answer of mine will use it again, but the files of my database still hold the words: they are from an "
            "older version and not encrypted yet, or the disk is full. I remove them by myself as soon as I can."
        )
        return error.count, f"\n\n{rest}"


@command("stop", gettext_noop("Stop the answer that is being written"))
async def stop(context: CommandContext) -> str:
    message = context.exchange.message
    active = context.exchanges.in_channel(message.channel)
    mine = [exchange for exchange in active if context.access.may_control(message.author, exchange)]
    for exchange in mine:
        context.exchanges.stop(exchange)
    if mine:
        return context.translate("Stopped.")
    if active:
        return context.translate("Only the person who asked, and admins, may stop this answer.")
    return context.translate("Nothing is being answered here.")


@command("retry", gettext_noop("Answer the last question again"))
async def retry(context: CommandContext) -> str:
    # Reached only where no question can be answered again: see retries.py.
    return context.translate("There is no question of yours here that I could answer again.")


@command("status", gettext_noop("Tell which model runs, and how busy it is"))
async def status(context: CommandContext) -> str:
    translate, info, load = context.translate, context.engine.info, context.engine.load
    lines = [
        translate("Model: {model} ({quantization}, {dtype}, {device}), context of {context} tokens").format(
            model=info.model,
            quantization=info.quantization,
            dtype=info.dtype,
            device=info.device,
            context=info.context_length,
        ),
        translate("Answering: {running}, waiting: {waiting}").format(running=load.running, waiting=load.waiting),
        persona_in_force(context),
        model_in_force(context),
    ]
    if note := demo_note(info.model, translate):
        lines.insert(1, note)
    if load.is_changing:
        lines.append(translate("The model is being changed; new questions wait for the next one."))
    models = context.components.models() if context.components is not None else ()
    if len(models) > 1:
        lines += [_model(status, context) for status in models]
    if load.tokens_per_second is not None:
        lines.append(translate("Speed: {speed} tokens/s").format(speed=round(load.tokens_per_second)))
    lines.append(translate("Version: {version}").format(version=__version__))
    if context.is_by_admin:
        if context.access.is_paused:
            lines.append(translate("Paused: new questions are turned away."))
        lines.append(translate("Memory: {mebibytes} MiB").format(mebibytes=process.memory() >> 20))
        lines.append(translate("Up for: {uptime}").format(uptime=_duration(process.uptime(), translate)))
        lines.append(translate("Runs on: {versions}").format(versions=", ".join(process.versions())))
        platforms = context.components.adapters if context.components is not None else {}
        lines += [
            translate("Not served: {platform} ({why})").format(platform=name, why=platform.fault)
            for name, platform in platforms.items()
            if platform.fault is not None
        ]
        lines += _last_reload(context)
    return "\n".join(f"- {line}" for line in lines)


def _model(status: ModelStatus, context: CommandContext) -> str:
    """Describe one of several models; admins read why it cannot answer."""
    translate, info, load = context.translate, status.info, status.load
    if info is None or load is None or load.down is not None:
        line = translate("Model {name}: not available").format(name=status.name)
        why = status.fault if load is None else load.down
        return f"{line} ({why})" if context.is_by_admin and why else line
    if load.is_changing:
        return translate("Model {name}: is being changed").format(name=status.name)
    return translate("Model {name}: {model}, answering: {running}, waiting: {waiting}").format(
        name=status.name, model=info.model, running=load.running, waiting=load.waiting
    )


def _duration(time: timedelta, translate: Translate) -> str:
    """Write a duration in the reader's language; Python would name the days in English.

    >>> _duration(timedelta(hours=26), str), _duration(timedelta(seconds=2), str)
    ('1 d 2:00:00', '0:00:02')
    """
    hours = str(timedelta(seconds=time.seconds))
    return translate("{days} d {hours}").format(days=time.days, hours=hours) if time.days else hours


def _last_reload(context: CommandContext) -> Iterator[str]:
    last = context.watcher.last_result if context.watcher is not None else None
    if last is None:
        return
    translate = context.translate
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


@command("help", gettext_noop("List the commands"), takes_words=True)
async def help_(context: CommandContext) -> str:
    offered = COMMANDS.values() if context.is_by_admin else menu()
    lines = [f"- `/{each.name}` – {context.translate(each.summary)}" for each in offered]
    return "\n".join([context.translate("Ask me anything, or use a command:"), "", *lines])


@command("pause", gettext_noop("Turn new questions away"), for_admins=True)
async def pause(context: CommandContext) -> str:
    context.access.pause()
    return context.translate(
        "Paused: answers under way go on, new questions are turned away, until /resume or a restart."
    )


@command("resume", gettext_noop("Take questions again"), for_admins=True)
async def resume(context: CommandContext) -> str:
    translate = context.translate
    return translate("I take questions again.") if context.access.resume() else translate("I was not paused.")


@command("limits", gettext_noop("Tell which limits are in force"), for_admins=True)
async def limits(context: CommandContext) -> str:
    values = context.access.limits
    lines = [f"- `{name} = {int(value) if value == int(value) else value}`" for name, value in values]
    return "\n".join([context.translate("From config.toml, [limits]; 0 is no limit:"), "", *lines])


command("persona", gettext_noop("Show or change my persona here"), subcommands=PERSONA)(persona)
command("model", gettext_noop("Show or choose the model here"), option=MODEL)(model)

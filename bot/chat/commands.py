"""The slash commands: one function each, the same on every platform."""

from collections.abc import Awaitable

from bot import __version__
from bot.chat.command_table import (
    COMMANDS,
    Command,
    CommandContext,
    called_by,
    command,
    is_forget,
    is_open_retry,
    menu,
    parse,
)
from bot.chat.i18n import demo_note, gettext_noop
from bot.chat.settings_commands import (
    MODEL,
    PERSONA,
    SETTINGS,
    missing_here,
    model,
    model_in_force,
    persona,
    persona_in_force,
    settings,
)
from bot.chat.status import bot_lines, duration, model_line, public_info, reload_lines, upkeep_lines
from bot.chat.usage_command import USAGE, usage
from bot.errors import NotErased
from bot.observability import process

__all__ = ["COMMANDS", "Command", "called_by", "is_forget", "is_open_retry", "menu", "parse"]


@command("clear", gettext_noop("Delete this conversation"))
async def clear(context: CommandContext) -> str:
    translate, message = context.translate, context.exchange.message
    is_own = context.settings.rules.has_own_history(message) and not context.is_by_admin
    if not is_own and not context.access.may_clear(message.author):
        return translate("Only admins may delete a conversation.")
    author = message.author if is_own else None
    count, rest = await _deleted(context, context.exchanges.clear(message.channel, context.exchange, author))
    if not (count or rest):
        return translate("There was nothing to delete here.")
    if is_own:
        return translate("Deleted: everything you said here, and my answers ({count}).").format(count=count) + rest
    return translate("Deleted: everything said here ({count}).").format(count=count) + rest


@command(
    "forget",
    gettext_noop("Delete all your messages to me in every channel, and the answers: /forget me"),
    argument="me",
)
async def forget(context: CommandContext) -> str:
    translate = context.translate
    if not is_forget(context.exchange):
        return translate(
            "Send me `forget me`, and I delete all your messages to me in every channel, and my answers. "
            "`/clear` deletes this conversation only."
        )
    forgetting = context.exchanges.forget(context.exchange, context.choices.reload)
    count, rest = await _deleted(context, forgetting)
    if not (count or rest):
        return translate("I have no messages of yours.")
    return translate("Deleted: all your messages to me ({count}), and my answers.").format(count=count) + rest


async def _deleted(context: CommandContext, deletion: Awaitable[int]) -> tuple[int, str]:
    """Return the number of deleted questions, and a sentence if the files still hold their text."""
    try:
        return await deletion, ""
    except NotErased as error:
        rest = context.translate(
            "No answer will use it again, but the database files still contain it: it is from an older version and "
            "not encrypted yet, or the disk is full. It is removed automatically as soon as possible."
        )
        return error.count, f"\n\n{rest}"


@command("stop", gettext_noop("Stop the current answer"))
async def stop(context: CommandContext) -> str:
    message = context.exchange.message
    active = context.exchanges.queues.in_channel(message.channel)
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
    return context.translate("You have no question here that can be answered again.")


@command("status", gettext_noop("Show the model and its load"))
async def status(context: CommandContext) -> str:
    translate, info, load = context.translate, context.engine.info, context.engine.load
    if not context.is_by_admin:
        info = public_info(info)
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
        *await missing_here(context),
    ]
    if note := demo_note(info.model, translate):
        lines.insert(1, note)
    if load.is_changing:
        lines.append(translate("The model is being changed; new questions wait for the next one."))
    models = context.components.models() if context.components is not None else ()
    if len(models) > 1:
        lines += [model_line(status, translate, tells_why=context.is_by_admin) for status in models]
    if load.tokens_per_second is not None:
        lines.append(translate("Speed: {speed} tokens/s").format(speed=round(load.tokens_per_second)))
    lines.append(translate("Version: {version}").format(version=__version__))
    if context.is_by_admin:
        if context.access.is_paused:
            lines.append(translate("Paused: new questions are refused."))
        lines.append(translate("Memory: {mebibytes} MiB").format(mebibytes=process.memory() >> 20))
        lines.append(translate("Uptime: {uptime}").format(uptime=duration(process.uptime(), translate)))
        lines.append(translate("Runs on: {versions}").format(versions=", ".join(process.versions())))
        lines += bot_lines(() if context.components is None else context.components.bots, translate)
        platforms = context.components.adapters if context.components is not None else {}
        lines += [
            translate("Not connected: {platform} ({why})").format(platform=name, why=platform.fault)
            for name, platform in platforms.items()
            if platform.fault is not None
        ]
        if context.components is not None and context.components.store is not None:
            lines += upkeep_lines(context.components.store.upkeep, translate)
        if context.watcher is not None and context.watcher.last_result is not None:
            lines += reload_lines(context.watcher.last_result, translate)
    return "\n".join(f"- {line}" for line in lines)


@command("help", gettext_noop("List the commands"), takes_words=True)
async def help_(context: CommandContext) -> str:
    offered = COMMANDS.values() if context.is_by_admin else menu()
    lines = [f"- `/{each.name}` – {context.translate(each.summary)}" for each in offered]
    return "\n".join([context.translate("Ask me anything, or use a command:"), "", *lines])


@command("pause", gettext_noop("Pause: refuse new questions"), for_admins=True)
async def pause(context: CommandContext) -> str:
    await context.choices.pause(context.exchange.message.author)
    return context.translate("Paused: new questions are refused until /resume. Answers in progress continue.")


@command("resume", gettext_noop("Resume: accept questions again"), for_admins=True)
async def resume(context: CommandContext) -> str:
    translate = context.translate
    was_paused = await context.choices.resume(context.exchange.message.author)
    return translate("Resumed: I accept questions again.") if was_paused else translate("I am not paused.")


@command("limits", gettext_noop("Show the limits in force"), for_admins=True)
async def limits(context: CommandContext) -> str:
    values = context.access.limits
    lines = [f"- `{name} = {int(value) if value == int(value) else value}`" for name, value in values]
    return "\n".join([context.translate("From config.toml, [limits]; 0 is no limit:"), "", *lines])


@command("signin", gettext_noop("Get a link that signs you in to my page in the browser"), for_admins=True)
async def signin(context: CommandContext) -> str:
    return await context.sign_in.send_link(context.exchange.message, context.translate)


command("persona", gettext_noop("Show or change my persona here"), subcommands=PERSONA)(persona)
command("settings", gettext_noop("Show or change the settings here"), subcommands=SETTINGS)(settings)
command("model", gettext_noop("Show or choose the model here"), option=MODEL)(model)
command("usage", gettext_noop("Show what you have used, and what is left of your quota"), subcommands=USAGE)(usage)

"""Commands that show and change the settings of a place: /persona, /model, /settings."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import structlog

from bot.chat.access import Access
from bot.chat.command_table import CommandContext, Option, Subcommand
from bot.chat.i18n import Translate, gettext_noop
from bot.chat.rules import PLAIN, WRITTEN, Persona, Rule, parse_setting, scope_here
from bot.config.schema import DEFAULT_MODEL
from bot.domain import IncomingMessage, Scope, ScopeLevel, SettingChange
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a persona that is set in the chat.
MOST_CHARACTERS = 2000
# Characters of a word that an answer repeats.
_LONGEST_WORD = 60
# Takes back what was set in the chat.
_CLEAR = "clear"
# A setting of a person, in all channels: the only one that everybody may change.
SHARE = "share_answers"
_SHARED = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, _CLEAR: False}

PERSONA = (
    Subcommand("show", gettext_noop("Show the persona here")),
    Subcommand("set", gettext_noop("Write a persona for this channel"), Option("text", gettext_noop("Instructions"))),
    Subcommand(
        "use",
        gettext_noop("Choose a persona for this channel"),
        Option("name", gettext_noop("Its name"), lambda settings, message: sorted(settings.rules.personas)),
    ),
    Subcommand(_CLEAR, gettext_noop("Remove the persona of this channel")),
)
MODEL = Option(
    "name",
    gettext_noop("Its name, or clear"),
    lambda settings, message: [*settings.rules.allowed_models(message), _CLEAR],
    is_required=False,
)


_SWITCH = ("true", "false")
# The values of plain settings that are offered; of numbers, a few.
OFFERED: dict[str, tuple[str, ...]] = {
    "answer": ("mention", "thread", "all"),
    "triggers": (),
    "history": ("shared", "member"),
    "language": ("auto", "en", "zh"),
    "temperature": ("0", "0.5", "1"),
    "top_p": ("0.7", "1"),
    "max_answer_tokens": ("128", "512", "1024"),
    "show_thoughts": _SWITCH,
    "name_speakers": _SWITCH,
    SHARE: _SWITCH,
}


def _plain(setting: str, summary: str) -> Subcommand:
    """Return the subcommand that shows and changes a plain setting."""
    option = Option("value", summary, lambda settings, message: [*OFFERED[setting], _CLEAR], is_required=False)
    return Subcommand(setting, summary, option)


SETTINGS = (
    Subcommand("show", gettext_noop("Show the settings here, and where each comes from")),
    _plain(
        "answer",
        gettext_noop("Messages I answer: mention, thread (each mention in its own), all (except those to others)"),
    ),
    _plain("triggers", gettext_noop("Words: I also answer messages that begin with one, as in: glm, chatglm")),
    _plain("history", gettext_noop("Earlier turns that I answer with: shared, member (only those of who asks)")),
    _plain("language", gettext_noop("Language of my own messages: auto, en, zh")),
    _plain("temperature", gettext_noop("Sampling temperature: from 0 (always the likeliest word) to 2")),
    _plain("top_p", gettext_noop("Smallest set of tokens to sample from, by probability: above 0, at most 1")),
    _plain("max_answer_tokens", gettext_noop("Longest answer, in tokens")),
    _plain("show_thoughts", gettext_noop("Show a thinking model's reasoning: true, false")),
    _plain("name_speakers", gettext_noop("Tell the model who wrote each message: true, false")),
    _plain(SHARE, gettext_noop("Let your questions be exported with the votes on the answers: true, false")),
    Subcommand("changes", gettext_noop("List who changed which setting here")),
    Subcommand("undo", gettext_noop("Undo the last change of a setting here")),
)
# Changes that are listed.
_LISTED = 10

_PLACES: dict[ScopeLevel, str] = {
    "user": gettext_noop("for you"),
    "role": gettext_noop("for your role"),
    "thread": gettext_noop("for this thread"),
    "channel": gettext_noop("for this channel"),
    "server": gettext_noop("for this server"),
    "platform": gettext_noop("for this platform"),
}


async def persona(context: CommandContext) -> str:
    """Show, write, choose or take back the persona of the channel or thread."""
    translate, rules = context.translate, context.settings.rules
    verb, *words = context.arguments.split(None, 1) or [""]
    rest = "".join(words).strip()
    match verb.lower():
        case "" | "show" if not rest:
            return _shown_persona(context)
        case "set" if rest:
            if len(rest) > MOST_CHARACTERS:
                return translate("Your text is too long: {count} characters, the limit is {limit}.").format(
                    count=len(rest), limit=MOST_CHARACTERS
                )
            return await _change(context, "persona", None, rest)
        case "use" if rest:
            name = rest.lower()
            if name not in rules.personas:
                return _unknown(
                    translate("Unknown persona {name}; choose one of {names}."),
                    rest,
                    sorted(rules.personas),
                    translate,
                )
            return await _change(context, "persona", name, None)
        case "clear" if not rest:
            return await _change(context, "persona", None, None)
        case _:
            return translate("Write `/persona show`, `/persona set TEXT`, `/persona use NAME` or `/persona clear`.")


async def model(context: CommandContext) -> str:
    """Show or choose the model of the channel or thread."""
    translate, message = context.translate, context.exchange.message
    allowed, name = context.settings.rules.allowed_models(message), context.arguments.lower()
    if not name:
        if not allowed:
            offered = translate("No model can be chosen here: `models` in config.toml lists none.")
        else:
            offered = translate("`/model NAME` chooses one of {names}.").format(names=_list(allowed, translate))
        return f"{model_in_force(context)}\n\n{offered}"
    if name in allowed:
        return await _change(context, "model", name, None)
    if name == _CLEAR:
        return await _change(context, "model", None, None)
    return _unknown(translate("Model {name} is not available here; choose one of {names}."), name, allowed, translate)


async def settings(context: CommandContext) -> str:
    """Show the settings of the channel or thread, change one, list the changes or take the last one back."""
    translate = context.translate
    verb, *words = context.arguments.split(None, 1) or ["show"]
    name, rest = verb.lower(), "".join(words).strip()
    if name == "show" and not rest:
        lines = [persona_in_force(context), model_in_force(context), *(_in_force(context, each) for each in PLAIN)]
        if context.settings.feedback.export:
            lines.append(await _shared(context))
        hint = translate("`/settings NAME VALUE` changes a setting, `/settings NAME clear` resets it.")
        return "\n".join(f"- {line}" for line in lines) + f"\n\n{hint}"
    if name == "changes" and not rest:
        return await _changes(context)
    if name == "undo" and not rest:
        return await _undo(context)
    if name == SHARE:
        return await _share(context, rest.lower())
    if name in PLAIN:
        return await _set_plain(context, name, rest if name in WRITTEN else rest.lower())
    names = [each.name for each in SETTINGS]
    if name in names:
        alone = translate("Nothing was done: /{name} takes no text after it. Please send /{name} alone.")
        return alone.format(name=f"settings {name}")
    return _unknown(translate("Unknown setting {name}; choose one of {names}."), verb, names, translate)


async def _set_plain(context: CommandContext, setting: str, written: str) -> str:
    if not written:
        return _in_force(context, setting)
    if written.lower() == _CLEAR:
        return await _change(context, setting, None, None)
    if parse_setting(setting, written) is None:
        sentence = context.translate("{setting} cannot be {value}. {summary}.")
        summary = context.translate(next(each.summary for each in SETTINGS if each.name == setting))
        return sentence.format(setting=f"`{setting}`", value=written[:_LONGEST_WORD], summary=summary)
    value, text = (None, written) if setting in WRITTEN else (written, None)
    return await _change(context, setting, value, text)


async def _share(context: CommandContext, written: str) -> str:
    """Show or change whether the author's questions may be exported with the votes on the answers."""
    translate, author = context.translate, context.exchange.message.author
    if written and written not in _SHARED:
        sentence = translate("{setting} cannot be {value}. {summary}.")
        summary = translate(next(each.summary for each in SETTINGS if each.name == SHARE))
        return sentence.format(setting=f"`{SHARE}`", value=written[:_LONGEST_WORD], summary=summary)
    if author.is_group:
        return translate(
            "Several people may write as this group or channel, so nobody can agree here: write as yourself."
        )
    is_agreed = _SHARED.get(written, False)
    if is_agreed and not context.settings.feedback.export:
        return translate("config.toml does not allow changing {setting} here.").format(setting=f"`{SHARE}`")
    if not written:
        return await _shared(context)
    await context.choices.agree(author, is_agreed=is_agreed)
    if not is_agreed:
        return translate("Your questions are not exported any more. Copies that exist already stay.")
    return translate(
        "The operator may export your questions in all channels, earlier ones too, with the answers and votes, without your "
        "name. `/settings share_answers false` takes this back."
    )


async def _shared(context: CommandContext) -> str:
    """Return a line about whether the author's questions may be exported."""
    translate, author = context.translate, context.exchange.message.author
    is_agreed = await context.choices.has_agreed(author)
    rule = Rule(is_agreed, Scope("user", author.key), is_from_chat=True) if is_agreed else Rule(is_agreed)
    sentence = translate("{setting} = {value} ({rule})")
    return sentence.format(setting=f"`{SHARE}`", value=str(is_agreed).lower(), rule=_source(rule, translate))


async def _changes(context: CommandContext) -> str:
    translate = context.translate
    if refusal := await _refusal(context):
        return refusal
    changes = await context.choices.changes(scope_here(context.exchange.message), _LISTED)
    if not changes:
        return translate("No setting was changed in the chat here.")
    return "\n".join(
        translate("- {time} UTC, {author}: {setting} = {value}").format(
            time=f"{change.at:%Y-%m-%d %H:%M}",
            author=change.author.name or translate("(forgotten)"),
            setting=f"`{change.setting}`",
            value=shown_value(change, translate),
        )
        for change in changes
    )


async def _undo(context: CommandContext) -> str:
    """Set the value before the last change; taking back twice restores it."""
    here = scope_here(context.exchange.message)
    last = await context.choices.changes(here, 1)
    if not last:
        return context.translate("No setting was changed in the chat here.")
    return await _store(context, last[0].setting, partial(context.choices.undo, by=context.exchange.message))


def shown_value(change: SettingChange, translate: Translate) -> str:
    """Return the value in one line, without what people wrote."""
    if change.is_cleared:
        return translate("(reset)")
    if change.text is not None:
        return translate("a text of {count} characters").format(count=len(change.text))
    return change.value or ""


def _in_force(context: CommandContext, setting: str) -> str:
    """Return a line about a setting here, with the rule that it comes from."""
    if setting == "persona":
        return persona_in_force(context)
    if setting == "model":
        return model_in_force(context)
    message, translate = context.exchange.message, context.translate
    rule, value = context.settings.rules.plain(setting, message), context.settings.value(setting, message)
    if setting == "triggers":
        shown = ", ".join(f"`{word}`" for word in value) or translate("none")
    else:
        shown = translate("as many as fit") if value is None else str(value)
    sentence = translate("{setting} = {value} ({rule})")
    return sentence.format(setting=f"`{setting}`", value=shown.lower(), rule=_source(rule, translate))


def persona_in_force(context: CommandContext) -> str:
    """Return a line about the persona here, with the rule that it comes from."""
    rule, translate = context.settings.rules.persona(context.exchange.message), context.translate
    if rule.scope is None:
        name = translate("as in system_prompt") if context.settings.conversation.system_prompt else translate("none")
    else:
        name = rule.value.name or translate("a text of {count} characters").format(count=len(rule.value.text))
    return translate("Persona: {name} ({rule})").format(name=name, rule=_source(rule, translate))


def model_in_force(context: CommandContext) -> str:
    """Return a line about the model here, with the rule that it comes from."""
    rule, translate = context.settings.rules.model(context.exchange.message), context.translate
    name = rule.value or DEFAULT_MODEL
    return translate("Model here: {name} ({rule})").format(name=name, rule=_source(rule, translate))


def _shown_persona(context: CommandContext) -> str:
    rule: Rule[Persona] = context.settings.rules.persona(context.exchange.message)
    parts = [persona_in_force(context)]
    if rule.is_from_chat and not rule.value.name:
        parts.append("\n".join(f"> {line}" for line in rule.value.text.splitlines()))
    if names := context.settings.rules.personas:
        parts.append(
            context.translate("`/persona use NAME` chooses one of {names}.").format(
                names=_list(sorted(names), context.translate)
            )
        )
    return "\n\n".join(parts)


async def missing_here(context: CommandContext) -> list[str]:
    """Return what the platform withholds that the settings here need, as sentences."""
    message, settings = context.exchange.message, context.settings
    wanted = [settings.value("answer", message), *(["triggers"] if settings.value("triggers", message) else [])]
    try:
        found = [each for name in wanted if name != "mention" for each in await context.access.missing(message, name)]
    except PlatformError as error:
        log.warning("permissions not known", channel=str(message.channel), error=str(error))
        return []
    return [context.translate(sentence) for sentence in dict.fromkeys(found)]


async def _change(context: CommandContext, setting: str, value: str | None, text: str | None) -> str:
    author = context.exchange.message.author
    return await _store(context, setting, partial(context.choices.set, author=author, value=value, text=text))


async def _store(context: CommandContext, setting: str, store: Callable[[Scope, str], Awaitable[bool]]) -> str:
    """Change a setting of the place with `store` if the author may; say what is in force then."""
    translate, message = context.translate, context.exchange.message
    if refusal := await _refusal(context):
        return refusal
    if setting != "model" and not context.settings.rules.may_be_set(setting, message):
        return translate("config.toml does not allow changing {setting} here.").format(setting=f"`{setting}`")
    scope = scope_here(message)
    await store(scope, setting)
    log.info("setting changed in the chat", setting=setting, place=scope.id, by=message.author.key)
    missing = await missing_here(context) if setting in ("answer", "triggers") else []
    return "\n\n".join([translate("From the next message on:"), f"- {_in_force(context, setting)}", *missing])


async def _refusal(context: CommandContext) -> str | None:
    return await refusal_to_set(context.access, context.exchange.message, context.translate)


async def refusal_to_set(access: Access, message: IncomingMessage, translate: Translate) -> str | None:
    """Return a sentence if the author may not change or list the settings where the message was sent."""
    try:
        may_set = await access.may_set(message)
    except PlatformError as error:
        log.warning("rights not known, nothing is changed", channel=str(message.channel), error=str(error))
        return translate("I could not check your permissions, so nothing was changed. Please try again.")
    return None if may_set else translate("Only admins and those who manage this channel may do that.")


def _source(rule: Rule[object], translate: Translate) -> str:
    if rule.scope is None:
        return translate("default")
    source = translate("set in the chat") if rule.is_from_chat else translate("set in config.toml")
    return translate("{place}, {source}").format(place=translate(_PLACES[rule.scope.level]), source=source)


def _unknown(sentence: str, name: str, names: Iterable[str], translate: Translate) -> str:
    return sentence.format(name=name[:_LONGEST_WORD], names=_list(names, translate))


def _list(names: Iterable[str], translate: Translate) -> str:
    return ", ".join(f"`{name}`" for name in names) or translate("(config.toml names none)")

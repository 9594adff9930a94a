"""Commands that show and change the settings of a place: /persona, /model."""

from collections.abc import Iterable

import structlog

from bot.chat.command_table import CommandContext, Option, Subcommand, gettext_noop
from bot.chat.i18n import Translate
from bot.chat.rules import Persona, Rule, scope_here
from bot.config.schema import DEFAULT_MODEL
from bot.domain import ScopeLevel
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a persona that is set in the chat.
_MOST_CHARACTERS = 2000
# Characters of a word that an answer repeats.
_LONGEST_WORD = 60
# Takes back what was set in the chat.
_CLEAR = "clear"

PERSONA = (
    Subcommand("show", gettext_noop("Show the persona here")),
    Subcommand("set", gettext_noop("Write a persona for this channel"), Option("text", gettext_noop("Instructions"))),
    Subcommand(
        "use",
        gettext_noop("Choose a persona for this channel"),
        Option("name", gettext_noop("Its name"), lambda settings, message: sorted(settings.rules.personas)),
    ),
    Subcommand(_CLEAR, gettext_noop("Take back the persona of this channel")),
)
MODEL = Option(
    "name",
    gettext_noop("Its name, or clear"),
    lambda settings, message: [*settings.rules.allowed_models(message), _CLEAR],
    is_required=False,
)

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
            if len(rest) > _MOST_CHARACTERS:
                return translate("Your text is too long: {count} characters, the limit is {limit}.").format(
                    count=len(rest), limit=_MOST_CHARACTERS
                )
            return await _change(context, "persona", None, rest)
        case "use" if rest:
            name = rest.lower()
            if name not in rules.personas:
                return _unknown(
                    translate("There is no persona {name}; choose one of {names}."),
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
        offered = translate("`/model NAME` chooses one of {names}.").format(names=_list(allowed, translate))
        return f"{model_in_force(context)}\n\n{offered}"
    if name in allowed:
        return await _change(context, "model", name, None)
    if name == _CLEAR:
        return await _change(context, "model", None, None)
    return _unknown(
        translate("There is no model {name} to choose here; choose one of {names}."), name, allowed, translate
    )


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


async def _change(context: CommandContext, setting: str, value: str | None, text: str | None) -> str:
    """Change a setting of the place if the author may; say what is in force then."""
    translate, message = context.translate, context.exchange.message
    try:
        may_set = await context.rights.may_set(message)
    except PlatformError as error:
        log.warning("rights not known, nothing is changed", channel=str(message.channel), error=str(error))
        return translate("I could not ask whether you may do that, so I changed nothing. Please try again.")
    if not may_set:
        return translate("Only admins and those who manage this channel may do that.")
    scope = scope_here(message)
    await context.choices.set(scope, setting, message.author, value, text)
    log.info("setting changed in the chat", setting=setting, place=scope.id, by=message.author.key)
    line = persona_in_force(context) if setting == "persona" else model_in_force(context)
    return translate("From the next message on:") + f"\n\n- {line}"


def _source(rule: Rule[object], translate: Translate) -> str:
    if rule.scope is None:
        return translate("default")
    source = translate("set in the chat") if rule.is_from_chat else translate("set in config.toml")
    return f"{translate(_PLACES[rule.scope.level])}, {source}"


def _unknown(sentence: str, name: str, names: Iterable[str], translate: Translate) -> str:
    return sentence.format(name=name[:_LONGEST_WORD], names=_list(names, translate))


def _list(names: Iterable[str], translate: Translate) -> str:
    return ", ".join(f"`{name}`" for name in names) or translate("(config.toml names none)")

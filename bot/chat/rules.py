"""The settings of places and people: which rule gives each value, of config.toml and of what was set in the chat."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError

from bot.chat.triggers import begins_with
from bot.config.places import EVERYONE, ChatSetting, PlaceSection, PlainSetting
from bot.config.schema import Config
from bot.domain import LEVELS, ChannelKey, IncomingMessage, Scope, SettingChange

# Settings whose values are a word, a number or a switch; in the chat these are written as in config.toml.
PLAIN: tuple[str, ...] = get_args(PlainSetting)

# Of these, those that are written freely: stored like a text, and deleted with those of their author.
WRITTEN: tuple[str, ...] = ("triggers",)

# Settings of a conversation, the same for everybody in it.
OF_PLACES = ("answer", "triggers", "history")

# Whether admins have paused the bot: one setting for all platforms, and all bots that share them.
PAUSED, EVERYWHERE = "paused", Scope("platform", "*")

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Rule(Generic[V_co]):
    """A value with its source: what was set in the chat or config.toml for `scope`, else the default."""

    value: V_co
    scope: Scope | None = None
    is_from_chat: bool = False


@dataclass(frozen=True, slots=True)
class Persona:
    """Instructions; `name` is that of `[personas.NAME]`, empty for a text that was set in the chat."""

    name: str
    text: str


_NOTHING_SET = PlaceSection()
_NO_PERSONA = Persona("", "")
_OF_PEOPLE = ("user", "role")
_ALL_SETTINGS: tuple[str, ...] = get_args(ChatSetting)


def scopes_of(message: IncomingMessage, roles: Sequence[str] = ()) -> list[Scope]:
    """Return the scopes that a message is in, the narrowest first; its author's roles in the order of `roles`."""
    author = message.author
    own = {f"{message.channel.platform}:{role}" for role in author.roles}
    listed = [role for role in roles if role in own]
    of_author = [Scope("role", role) for role in (*listed, *sorted(own - set(listed)))]
    return [Scope("user", author.key), *of_author, *scopes_of_place(message.channel, message.server)]


def scopes_of_place(channel: ChannelKey, server: str | None) -> list[Scope]:
    """Return the scopes that a conversation is in, the narrowest first."""
    platform = channel.platform
    ids = {
        "thread": str(channel) if channel.thread is not None else "",
        "channel": str(ChannelKey(platform, channel.channel)),
        "server": f"{platform}:{server}" if server else "",
        "platform": platform,
    }
    return [Scope(level, ids[level]) for level in LEVELS if ids.get(level)]


def scope_here(message: IncomingMessage) -> Scope:
    """Return the scope of what is set in the chat by a message: its thread, else its channel."""
    return Scope("channel" if message.channel.thread is None else "thread", str(message.channel))


def resolve(
    scopes: Sequence[Scope], in_chat: Callable[[Scope], V | None], in_file: Callable[[Scope], V | None], default: V
) -> Rule[V]:
    """Return the value of the first scope that has one; what was set in the chat there overrides config.toml."""
    for scope in scopes:
        if (value := in_chat(scope)) is not None:
            return Rule(value, scope, is_from_chat=True)
        if (value := in_file(scope)) is not None:
            return Rule(value, scope)
    return Rule(default)


def parse_setting(setting: str, written: str) -> Any:
    """Return the value of a plain setting; None if it cannot have this one.

    >>> parse_setting("temperature", "0.5"), parse_setting("show_thoughts", "yes"), parse_setting("language", "fr")
    (0.5, True, None)
    """
    try:
        return getattr(PlaceSection.model_validate({setting: written}), setting)
    except ValidationError:
        return None


class Rules:
    """The settings of places and people: of all that apply to a message, the narrowest is in force.

    A value that was set in the chat counts as long as config.toml allows it.
    """

    def __init__(self) -> None:
        self.personas: Mapping[str, str] = {}
        self._models: frozenset[str] = frozenset()
        self._max_answer_tokens = 0
        self._roles: tuple[str, ...] = ()
        self._file: dict[Scope, PlaceSection] = {}
        self._chat: dict[tuple[Scope, str], SettingChange] = {}

    def reconfigure(self, config: Config) -> None:
        """Apply the tables of config.toml from the next message on."""
        self.personas = {name: section.system_prompt for name, section in config.personas.items()}
        self._models = frozenset(config.sections)
        self._max_answer_tokens = config.limits.max_answer_tokens
        self._roles = tuple(config.roles)
        self._file = {Scope(level, id): place for level, table in config.places.items() for id, place in table.items()}

    def replace_chat(self, changes: Sequence[SettingChange]) -> None:
        """Apply what is stored of the settings that were set in the chat."""
        self._chat = {(change.scope, change.setting): change for change in changes if not change.is_cleared}

    def set_in_chat(self, change: SettingChange) -> None:
        self._chat.pop((change.scope, change.setting), None)
        if not change.is_cleared:
            self._chat[change.scope, change.setting] = change

    def set_there(self, scope: Scope, setting: str) -> SettingChange | None:
        """Return what was set in the chat for exactly this scope, in force or not."""
        return self._chat.get((scope, setting))

    @property
    def is_paused(self) -> bool:
        """Return whether an admin has paused the bot."""
        return self.set_there(EVERYWHERE, PAUSED) is not None

    @property
    def is_empty(self) -> bool:
        """Return whether all places and people have the defaults."""
        return not (self._file or self._chat)

    def persona(self, message: IncomingMessage) -> Rule[Persona]:
        """Return the persona; where no rule names one, `conversation.system_prompt` applies."""
        may_be_set = self.may_be_set("persona", message)

        def in_chat(scope: Scope) -> Persona | None:
            change = self._chat.get((scope, "persona")) if may_be_set else None
            if change is None or change.text is not None:
                return None if change is None else Persona("", change.text or "")
            return self._named(change.value)

        return resolve(
            self._scopes(message), in_chat, lambda scope: self._named(self._there(scope).persona), _NO_PERSONA
        )

    def model(self, message: IncomingMessage) -> Rule[str | None]:
        """Return the name of the model in `[models.NAME]`, or "engine"; None where no rule names one."""
        allowed = self.allowed_models(message)

        def in_chat(scope: Scope) -> str | None:
            change = self._chat.get((scope, "model"))
            return change.value if change is not None and change.value in allowed else None

        def in_file(scope: Scope) -> str | None:
            model = self._there(scope).model
            return model if model in self._models else None

        return resolve(self._scopes(message), in_chat, in_file, None)

    def allowed_models(self, message: IncomingMessage) -> tuple[str, ...]:
        """Return the models that may be chosen in the chat there: config.toml names them for the place."""
        nothing: tuple[str, ...] = ()
        places = _of_places(self._scopes(message))
        named = resolve(places, _not_set, lambda scope: self._there(scope).models, nothing).value
        return tuple(model for model in named if model in self._models)

    def plain(self, setting: str, message: IncomingMessage) -> Rule[Any]:
        """Return the value of a plain setting; None where no rule has one.

        A maximum that was set in the chat only lowers that of config.toml.
        """
        return self._plain(setting, self._scopes(message))

    def answers_all(self, channel: ChannelKey, server: str | None) -> bool:
        """Return whether all messages of a conversation are for the bot that are not for another person."""
        return self._answers_all(scopes_of_place(channel, server))

    def is_triggered(self, channel: ChannelKey, server: str | None, text: str) -> bool:
        """Return whether a message begins with a trigger of its conversation."""
        return begins_with(text, self._plain("triggers", scopes_of_place(channel, server)).value or ())

    def may_answer(self, channel: ChannelKey, server: str | None) -> bool:
        """Return whether any message that mentions nobody can be for the bot in a conversation."""
        scopes = scopes_of_place(channel, server)
        return self._answers_all(scopes) or bool(self._plain("triggers", scopes).value)

    def has_own_history(self, message: IncomingMessage) -> bool:
        """Return whether each person has a history of their own in the conversation."""
        return bool(self.plain("history", message).value == "member")

    def _answers_all(self, scopes: Sequence[Scope]) -> bool:
        return bool(self._plain("answer", scopes).value == "all")

    def _plain(self, setting: str, scopes: Sequence[Scope]) -> Rule[Any]:
        may_be_set = self._may_be_set(setting, scopes)
        if setting in OF_PLACES:
            scopes = _of_places(scopes)

        def in_chat(scope: Scope) -> Any:
            change = self._chat.get((scope, setting)) if may_be_set else None
            return None if change is None else parse_setting(setting, change.value or change.text or "")

        def in_file(scope: Scope) -> Any:
            return getattr(self._there(scope), setting)

        rule = resolve(scopes, in_chat, in_file, None)
        if setting == "max_answer_tokens" and rule.is_from_chat:
            most = resolve(scopes, _not_set, in_file, self._max_answer_tokens).value
            return replace(rule, value=min(rule.value, most or rule.value))
        return rule

    def who(self, message: IncomingMessage) -> tuple[str, ...]:
        """Return who may ask there, as config.toml says: "everyone", "managers", or ids of people and roles."""
        places, everyone = scopes_of_place(message.channel, message.server), (EVERYONE,)
        who: Rule[tuple[str, ...]] = resolve(places, _not_set, lambda scope: self._there(scope).who, everyone)
        return who.value

    def may_be_set(self, setting: str, message: IncomingMessage) -> bool:
        """Return whether config.toml lets a setting be changed in the chat there."""
        return self._may_be_set(setting, self._scopes(message))

    def _may_be_set(self, setting: str, scopes: Sequence[Scope]) -> bool:
        return (
            setting
            in resolve(_of_places(scopes), _not_set, lambda scope: self._there(scope).settings, _ALL_SETTINGS).value
        )

    def _scopes(self, message: IncomingMessage) -> list[Scope]:
        return scopes_of(message, self._roles)

    def _there(self, scope: Scope) -> PlaceSection:
        return self._file.get(scope, _NOTHING_SET)

    def _named(self, name: str | None) -> Persona | None:
        text = None if name is None else self.personas.get(name)
        return None if text is None else Persona(name or "", text)


def _of_places(scopes: Sequence[Scope]) -> list[Scope]:
    return [scope for scope in scopes if scope.level not in _OF_PEOPLE]


def _not_set(scope: Scope) -> None:
    """Return None: only config.toml counts."""

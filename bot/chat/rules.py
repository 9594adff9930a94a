"""Settings by place and person: of all that apply to a message, the one in force."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bot.config.places import PlaceSection
from bot.config.schema import Config
from bot.domain import LEVELS, ChannelKey, IncomingMessage, Scope, SettingChange

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


def scopes_of(message: IncomingMessage, roles: Sequence[str] = ()) -> list[Scope]:
    """Return the scopes that a message is in, the narrowest first; its author's roles in the order of `roles`."""
    platform, author = message.channel.platform, message.author
    own = {f"{platform}:{role}" for role in author.roles}
    listed = [role for role in roles if role in own]
    ids: dict[str, list[str]] = {
        "user": [author.key],
        "role": [*listed, *sorted(own - set(listed))],
        "thread": [str(message.channel)] if message.channel.thread is not None else [],
        "channel": [str(ChannelKey(platform, message.channel.channel))],
        "server": [f"{platform}:{message.server}"] if message.server else [],
        "platform": [platform],
    }
    return [Scope(level, id) for level in LEVELS for id in ids[level]]


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


class Rules:
    """The settings of places and people.

    A value that was set in the chat counts as long as config.toml allows it.
    """

    def __init__(self) -> None:
        self.personas: Mapping[str, str] = {}
        self._models: frozenset[str] = frozenset()
        self._roles: tuple[str, ...] = ()
        self._file: dict[Scope, PlaceSection] = {}
        self._chat: dict[tuple[Scope, str], SettingChange] = {}

    def reconfigure(self, config: Config) -> None:
        """Apply the tables of config.toml from the next message on."""
        self.personas = {name: section.system_prompt for name, section in config.personas.items()}
        self._models = frozenset(config.sections)
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
    def is_empty(self) -> bool:
        """Whether no place or person has settings of its own."""
        return not (self._file or self._chat)

    def persona(self, message: IncomingMessage) -> Rule[Persona]:
        """Return the persona; where no rule names one, `conversation.system_prompt` applies."""

        def in_chat(scope: Scope) -> Persona | None:
            change = self._chat.get((scope, "persona"))
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
        places = [scope for scope in self._scopes(message) if scope.level not in ("user", "role")]
        nothing: tuple[str, ...] = ()
        named = resolve(places, lambda scope: None, lambda scope: self._there(scope).models, nothing).value
        return tuple(model for model in named if model in self._models)

    def _scopes(self, message: IncomingMessage) -> list[Scope]:
        return scopes_of(message, self._roles)

    def _there(self, scope: Scope) -> PlaceSection:
        return self._file.get(scope, _NOTHING_SET)

    def _named(self, name: str | None) -> Persona | None:
        text = None if name is None else self.personas.get(name)
        return None if text is None else Persona(name or "", text)


_NOTHING_SET = PlaceSection()
_NO_PERSONA = Persona("", "")

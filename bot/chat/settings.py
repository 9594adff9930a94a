"""The settings that answers follow: from config.toml, by place and person, and as changed in the chat."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from bot.chat.i18n import Translate, translator_for
from bot.chat.rules import EVERYWHERE, OF_PLACES, PAUSED, PLAIN, Rules
from bot.config.quotas import QuotaSection
from bot.config.schema import Config, ConversationSection, FeedbackSection, FilesSection
from bot.domain import OWN_PERSONA, Author, IncomingMessage, SamplingParams, Scope, SettingChange
from bot.storage.base import Store

# What the settings of a place are where no rule has a value.
_DEFAULTS: Mapping[str, Any] = {"answer": "mention", "triggers": (), "history": "shared"}
_OF_ANSWERS = [*(name for name in PLAIN if name not in OF_PLACES), "context_messages"]


class ChatSettings:
    """The settings that all parts of the chat read; `reconfigure` takes effect at their next use.

    `answer_seconds` limits a generation, from its first text on; `max_message_chars` limits a
    message and its quotation together, which is cut.  `has_own_history` tells that the prompt has
    only turns of the message's author.  `rules` has what places and people change
    of it: `at` returns the settings of one message, with its `model` and the name of its `persona`
    (as in `Answer`).
    """

    def __init__(
        self,
        conversation: ConversationSection | None = None,
        params: SamplingParams | None = None,
        answer_seconds: float = 300.0,
        max_message_chars: int = 16_000,
        model: str | None = None,
        files: FilesSection | None = None,
    ) -> None:
        self.conversation = conversation or ConversationSection()
        self.params = params or SamplingParams()
        self.answer_seconds = answer_seconds
        self.max_message_chars = max_message_chars
        self.model = model
        self.files = files or FilesSection()
        self.has_own_history = False
        self.persona = ""
        self.feedback = FeedbackSection()
        self.quotas: Mapping[str, QuotaSection] = {}
        self.rules = Rules()

    @classmethod
    def of(cls, config: Config) -> "ChatSettings":
        settings = cls()
        settings.reconfigure(config)
        return settings

    def reconfigure(self, config: Config) -> None:
        self.conversation = config.conversation
        self.params = SamplingParams(
            config.sampling.temperature,
            config.sampling.top_k,
            config.sampling.top_p,
            config.limits.max_answer_tokens or None,
        )
        self.answer_seconds = config.limits.answer_seconds
        self.max_message_chars = config.limits.max_message_chars
        self.files = config.files
        self.feedback = config.feedback
        self.quotas = config.quotas
        self.rules.reconfigure(config)

    def at(self, message: IncomingMessage) -> "ChatSettings":
        """Return the settings in force for the answer to a message."""
        if self.rules.is_empty:
            return self
        persona, model = self.rules.persona(message), self.rules.model(message)
        own: dict[str, Any] = {
            name: rule.value for name in _OF_ANSWERS if (rule := self.rules.plain(name, message)).scope is not None
        }
        params = replace(
            self.params,
            temperature=own.pop("temperature", self.params.temperature),
            top_p=own.pop("top_p", self.params.top_p),
            max_tokens=own.pop("max_answer_tokens", self.params.max_tokens),
        )
        prompt = {} if persona.scope is None else {"system_prompt": persona.value.text}
        conversation = self.conversation.model_copy(update={**own, **prompt})
        here = ChatSettings(conversation, params, self.answer_seconds, self.max_message_chars, model.value, self.files)
        here.has_own_history = self.rules.has_own_history(message)
        here.persona = "" if persona.scope is None else persona.value.name or OWN_PERSONA
        here.feedback = self.feedback
        return here

    def value(self, setting: str, message: IncomingMessage) -> Any:
        """Return the value of a plain setting for a message; None of `max_answer_tokens` without a limit."""
        if setting in OF_PLACES:
            return self.rules.plain(setting, message).value or _DEFAULTS[setting]
        here = self.at(message)
        match setting:
            case "temperature":
                return here.params.temperature
            case "top_p":
                return here.params.top_p
            case "max_answer_tokens":
                return here.params.max_tokens
            case _:
                return getattr(here.conversation, setting)

    def translator_for(self, message: IncomingMessage) -> Translate:
        """Return the translator into the language of the message's author."""
        language = self.rules.plain("language", message).value or self.conversation.language
        return translator_for(message, language)


class Choices:
    """The settings that are changed in the chat: stored, and in force from the next message on.

    Keeps `rules` equal to what the store has, which is read once.  All methods may raise StoreError.
    """

    def __init__(self, store: Store, rules: Rules, today: Callable[[], datetime]) -> None:
        self._store = store
        self._rules = rules
        self._today = today
        self._lock = asyncio.Lock()
        self._is_loaded = False
        self._newest: list[SettingChange] = []
        self.revision = 0  # raised by each change

    async def load(self) -> None:
        """Read the stored settings unless that was done."""
        if not self._is_loaded:
            async with self._lock:
                await self._load()

    async def set(self, scope: Scope, setting: str, author: Author, value: str | None, text: str | None = None) -> bool:
        """Store a setting, or clear it without value and text; return False if it had this value."""
        async with self._lock:
            return await self._record(SettingChange(scope, setting, value, text, author, self._today()))

    async def pause(self, author: Author) -> bool:
        """Refuse new questions until `resume`, also after a restart; return False if it was paused."""
        return await self.set(EVERYWHERE, PAUSED, author, "yes")

    async def resume(self, author: Author) -> bool:
        """Accept questions again; return False if it was not paused."""
        return await self.set(EVERYWHERE, PAUSED, author, None)

    async def undo(self, scope: Scope, setting: str, by: IncomingMessage) -> bool:
        """Store the value before the last one again; return False if this message or press has done so before."""
        author, at = by.author, self._today()
        async with self._lock:
            earlier = (await self.changes(scope, 2, setting))[1:]
            if not earlier:
                return await self._record(SettingChange(scope, setting, None, None, author, at), by)
            value, text = earlier[0].value, earlier[0].text
            wrote = earlier[0].text_author or earlier[0].author.key
            by_another = wrote if text is not None and wrote != author.key else None
            return await self._record(SettingChange(scope, setting, value, text, author, at, by_another), by)

    async def _record(self, change: SettingChange, cause: IncomingMessage | None = None) -> bool:
        """Store a change unless the setting has the value, or the cause, which may come again, has made one."""
        await self._load()
        before = self._rules.set_there(change.scope, change.setting)
        if (change.value, change.text) == ((None, None) if before is None else (before.value, before.text)):
            return False
        self._is_loaded = False  # if this fails or is cancelled, it may be stored nevertheless
        is_new = await self._store.record_setting(change, cause)
        if is_new:
            self._rules.set_in_chat(change)
            self.revision += 1
        self._is_loaded = True
        return is_new

    async def in_force(self) -> list[SettingChange]:
        """Return the newest change of each setting of each place, cleared ones included, oldest first."""
        return await self._store.settings()

    async def changes(self, scope: Scope | None, limit: int, setting: str | None = None) -> list[SettingChange]:
        """Return the latest changes of a place, or of all, newest first; of all settings, or of one."""
        return await self._store.setting_changes(None if scope is None else scope.id, limit, setting)

    async def agree(self, author: Author, *, is_agreed: bool) -> None:
        """Store whether a person agrees that answers to them are exported."""
        await self._store.record_consent(author, self._today() if is_agreed else None)

    async def has_agreed(self, author: Author) -> bool:
        """Return whether a person agrees that answers to them are exported."""
        return await self._store.has_consented(author)

    def forget(self) -> None:
        """Let the next `load` read the stored settings again."""
        self._is_loaded = False

    async def follow(self) -> None:
        """Read the stored settings again if the newest change is another one than at the last call."""
        newest = await self._store.setting_changes(None, 1)
        if newest != self._newest:
            await self.reload()
        self._newest = newest

    async def reload(self) -> None:
        """Read the stored settings again: the store has deleted or moved some."""
        async with self._lock:
            self.forget()
            await self._load()

    async def _load(self) -> None:
        if not self._is_loaded:
            self._rules.replace_chat(await self._store.settings())
            self._is_loaded = True
            self.revision += 1

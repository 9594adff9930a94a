"""Settings that are changed in the chat: stored, and in force from the next message on."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from bot.chat.rules import Rules
from bot.domain import Author, Scope, SettingChange
from bot.storage.base import Store


class Choices:
    """Keeps `rules` equal to what the store has; the store is read once.  All methods may raise StoreError."""

    def __init__(self, store: Store, rules: Rules, today: Callable[[], datetime]) -> None:
        self._store = store
        self._rules = rules
        self._today = today
        self._lock = asyncio.Lock()
        self._is_loaded = False

    async def load(self) -> None:
        """Read the stored settings unless that was done."""
        if not self._is_loaded:
            async with self._lock:
                await self._load()

    async def set(self, scope: Scope, setting: str, author: Author, value: str | None, text: str | None = None) -> bool:
        """Store a setting, or clear it without value and text; return False if it had this value."""
        change = SettingChange(scope, setting, value, text, author, self._today())
        async with self._lock:
            await self._load()
            before = self._rules.set_there(scope, setting)
            if (value, text) == ((None, None) if before is None else (before.value, before.text)):
                return False
            self._is_loaded = False  # if this fails or is cancelled, it may be stored nevertheless
            await self._store.record_setting(change)
            self._rules.set_in_chat(change)
            self._is_loaded = True
        return True

    async def reload(self) -> None:
        """Read the stored settings again: the store has deleted or moved some."""
        async with self._lock:
            self._is_loaded = False
            await self._load()

    async def _load(self) -> None:
        if not self._is_loaded:
            self._rules.replace_chat(await self._store.settings())
            self._is_loaded = True

"""Finds an adapter by its name in config.toml; a new platform is a line here and two files."""

from collections.abc import AsyncIterator
from importlib import import_module

from bot.adapters.base import Adapter, Finding, Meter, unmetered
from bot.adapters.console_settings import ConsoleSection
from bot.adapters.discord_settings import DiscordSection
from bot.adapters.slack_settings import SlackSection
from bot.adapters.telegram_settings import TelegramSection
from bot.clock import Clock
from bot.config import AdapterSection

# The settings are known without importing any platform's library.
SETTINGS: dict[str, type[AdapterSection]] = {
    "console": ConsoleSection,
    "discord": DiscordSection,
    "telegram": TelegramSection,
    "slack": SlackSection,
}


async def inspect(name: str, settings: AdapterSection) -> AsyncIterator[Finding]:
    """Ask a platform about its bot: whether the token is valid, and what it still lacks."""
    findings: AsyncIterator[Finding] = import_module(f"{__name__}.{name}").inspect(settings)
    async for finding in findings:
        yield finding


def open_adapter(name: str, settings: AdapterSection, clock: Clock, meter: Meter = unmetered) -> Adapter:
    """Import `bot.adapters.<name>` and make its adapter; what it sends and edits passes the meter."""
    adapter: Adapter = import_module(f"{__name__}.{name}").open_adapter(settings, clock, meter)
    return adapter

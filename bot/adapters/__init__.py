"""Finds an adapter by its name in config.toml; a new platform is a line here and two files."""

from collections.abc import AsyncIterator
from importlib import import_module

from bot.adapters.base import Adapter, Finding, Meter, unmetered
from bot.adapters.console.settings import ConsoleSection
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.settings import TelegramSection
from bot.config.schema import AdapterSection
from bot.util.clock import Clock

# The settings are known without importing any platform's library.
SETTINGS: dict[str, type[AdapterSection]] = {
    "console": ConsoleSection,
    "discord": DiscordSection,
    "telegram": TelegramSection,
    "slack": SlackSection,
}


async def inspect(name: str, settings: AdapterSection) -> AsyncIterator[Finding]:
    """Ask a platform about its bot: whether the token is valid, and what it still lacks."""
    findings: AsyncIterator[Finding] = import_module(f"{__name__}.{name}.adapter").inspect(settings)
    async for finding in findings:
        yield finding


def open_adapter(name: str, settings: AdapterSection, clock: Clock, meter: Meter = unmetered) -> Adapter:
    """Import `bot.adapters.<name>` and make its adapter; what it sends and edits passes the meter."""
    adapter: Adapter = import_module(f"{__name__}.{name}.adapter").open_adapter(settings, clock, meter)
    return adapter

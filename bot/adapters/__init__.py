"""Find an adapter by its name in config.toml; a new platform is one line here and a folder."""

from collections.abc import AsyncIterator
from contextlib import suppress
from importlib import import_module

from bot.adapters.base import Adapter, Finding
from bot.adapters.console.settings import ConsoleSection
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.settings import TelegramSection
from bot.config.schema import AdapterSection
from bot.errors import ConfigError, PlatformError
from bot.util.clock import Clock

# Settings are known without importing any platform's library.
SETTINGS: dict[str, type[AdapterSection]] = {
    "console": ConsoleSection,
    "discord": DiscordSection,
    "telegram": TelegramSection,
    "slack": SlackSection,
}


def findings(name: str, settings: AdapterSection) -> AsyncIterator[Finding]:
    """Ask a platform about its bot: whether the token is valid, and which permissions it lacks.

    Raises:
        ConfigError, LoginRefused: A token is wrong.
        PlatformError: The platform cannot be reached, or fails.
    """
    found: AsyncIterator[Finding] = import_module(f"{__name__}.{name}.adapter").inspect(settings)
    return found


async def inspect(name: str, settings: AdapterSection) -> AsyncIterator[Finding]:
    """Ask a platform about its bot; an error is a finding too."""
    try:
        async for finding in findings(name, settings):
            yield finding
    except (ConfigError, PlatformError) as error:
        yield Finding(False, str(error))


def import_adapter(name: str) -> None:
    """Import a platform's library, which takes up to a second; an error is left to `open_adapter`."""
    with suppress(ImportError):
        import_module(f"{__name__}.{name}.adapter")


def open_adapter(name: str, settings: AdapterSection, clock: Clock) -> Adapter:
    """Import `bot.adapters.<name>.adapter` and build its adapter."""
    adapter: Adapter = import_module(f"{__name__}.{name}.adapter").open_adapter(settings, clock)
    return adapter

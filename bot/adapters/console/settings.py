"""`[adapters.console]`: the terminal's settings."""

from typing import ClassVar, Literal

from pydantic import Field

from bot.config.schema import AdapterSection


class ConsoleSection(AdapterSection):
    """A chat in the terminal, for one person."""

    has_roles: ClassVar[bool] = False
    has_servers: ClassVar[bool] = False
    has_channels: ClassVar[bool] = False

    enabled: Literal["auto"] | bool = Field(
        default="auto", description="auto (on when no other platform is), true, false"
    )
    history: str = Field(
        default="data/terminal_history", description="file with the history of inputs, for the arrow keys; empty = none"
    )

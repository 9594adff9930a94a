"""`[adapters.console]`: the terminal's settings."""

from typing import Literal

from pydantic import Field

from bot.config.schema import AdapterSection


class ConsoleSection(AdapterSection):
    """A chat in the terminal, for one person."""

    enabled: Literal["auto"] | bool = Field(
        default="auto", description="auto (on when no other platform is), true, false"
    )
    history: str = Field(
        default="data/terminal_history", description="file with what was typed, for the arrow keys; empty = none"
    )

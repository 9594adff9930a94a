"""Sources of what the operator's panel shows, besides the chat itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from bot.adapters.web.panel.history import ConfigHistory
from bot.config.edit import ConfigEditor
from bot.config.reload import ReloadResult
from bot.observability.health import Components, Health
from bot.storage.backup_folder import BackupFolder
from bot.storage.usage_export import UsageReport
from bot.util.clock import Clock


def nothing_used(since: date) -> UsageReport:
    return UsageReport()


def never_reloaded() -> ReloadResult | None:
    return None


@dataclass(frozen=True, slots=True)
class PanelSources:
    """The parts of the program that `/status`, `/readyz` and `bot usage` read too.

    `editor` is None where no file is watched: nothing that config.toml has can be changed then;
    `history` has what was changed with it.
    """

    components: Components
    health: Health
    clock: Clock
    read_usage: Callable[[date], UsageReport] = nothing_used
    last_reload: Callable[[], ReloadResult | None] = never_reloaded
    editor: ConfigEditor | None = None
    backups: BackupFolder | None = None
    show_texts: bool = False
    history: ConfigHistory = field(default_factory=ConfigHistory)

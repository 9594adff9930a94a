"""One page of the panel: the changes since its last event."""

import asyncio
from typing import Any

import structlog

from bot.adapters.web.access import Right
from bot.adapters.web.chat import Chat
from bot.adapters.web.panel.audit import MOST_CHANGES, audit_html
from bot.adapters.web.panel.backups import backups_html, progress_html
from bot.adapters.web.panel.channels import channels_html
from bot.adapters.web.panel.faults import reason_of
from bot.adapters.web.panel.html import text
from bot.adapters.web.panel.log import log_html
from bot.adapters.web.panel.now import now_parts
from bot.adapters.web.panel.places import places_html
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage, usage_html
from bot.chat.i18n import Translate
from bot.domain import SettingChange
from bot.errors import StoreError
from bot.observability.logging import recent_lines
from bot.storage.usage_export import UsageReport

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class PanelView:
    """Renders fragments of the page by the ids of their elements; a section is rendered when its source has changed."""

    def __init__(
        self, chat: Chat, sources: PanelSources, usage: RecentUsage, translate: Translate, right: Right
    ) -> None:
        self._chat = chat
        self._sources = sources
        self._usage = usage
        self._translate = translate
        self._right = right
        self._shown: dict[str, Any] = {}
        self._revision: tuple[int, int] | None = None
        self._report: object = None
        self._backups: int | None = None
        self._set_places: set[str] = set()
        self._used_places: set[str] = set()
        self._last_line = 0

    async def update(self) -> dict[str, Any]:
        """Return what has changed since the last call, all of it at the first."""
        parts = await now_parts(self._sources, self._right, self._translate)
        now = {"is_paused": self._chat.intake.access.is_paused, **parts}
        if self._right >= Right.OPERATOR and (editor := self._sources.editor) is not None:
            now["config"] = editor.revision
        now |= await self._backups_part()
        now |= await self._usage_part() | await self._channels_part()
        now["known-places"] = places_html(self._set_places | self._used_places)
        changed = {name: part for name, part in now.items() if self._shown.get(name) != part}
        self._shown |= changed
        return changed | self._log_part()

    async def _usage_part(self) -> dict[str, str]:
        today = self._chat.intake.today().date()
        report = await self._usage.find(today)
        if report is self._report:
            return {}
        self._report = report
        if isinstance(report, UsageReport):
            self._used_places = {scope.id for scope, _ in report.places if scope.level == "channel"}
        if isinstance(report, str):
            report = reason_of(report, self._right, self._translate)
        return {"usage": usage_html(report, today, self._translate)}

    async def _channels_part(self) -> dict[str, str]:
        choices, in_file = self._chat.intake.choices, self._sources.history
        if (revision := (choices.revision, in_file.revision)) == self._revision:
            return {}
        try:
            changes: list[SettingChange] = await choices.in_force()
            history = await choices.changes(None, MOST_CHANGES)
        except StoreError as error:  # tried again a second later
            log.warning("settings not read, the panel tries again", error=str(error))
            why = reason_of(str(error), self._right, self._translate)
            return {"channels": text(self._translate("The settings cannot be read: {why}").format(why=why))}
        self._revision, show_texts = revision, self._sources.show_texts
        self._set_places = {change.scope.id for change in changes if change.scope.level in ("channel", "thread")}
        return {
            "channels": channels_html(changes, self._translate, show_texts=show_texts),
            "audit": audit_html(
                history,
                self._translate,
                in_file=in_file.latest(MOST_CHANGES),
                show_texts=show_texts,
                show_values=self._right >= Right.OPERATOR,
            ),
        }

    async def _backups_part(self) -> dict[str, str]:
        folder = self._sources.backups
        if folder is None or self._right < Right.OPERATOR:
            return {}
        parts = {"backup-progress": progress_html(folder.progress, self._translate)}
        if self._backups != (revision := folder.revision):
            self._backups = revision
            backups = await asyncio.to_thread(folder.list)
            parts["backups"] = backups_html(folder, backups, self._translate)
        return dict(parts)

    def _log_part(self) -> dict[str, Any]:
        # Lines name hosts, paths and people.
        lines = recent_lines(after=self._last_line) if self._right >= Right.OPERATOR else []
        if not lines:
            return {}
        is_first, self._last_line = self._last_line == 0, lines[-1].number
        return {"log": {"is_first": is_first, "html": log_html(lines)}}

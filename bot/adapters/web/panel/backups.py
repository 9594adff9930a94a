"""Backups of the database: made with the code of `bot backup`, listed, and downloaded by operators."""

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bot.adapters.web.access import person_of
from bot.adapters.web.panel.calls import PanelCall
from bot.adapters.web.panel.html import Html, table, text
from bot.adapters.web.panel.sources import PanelSources
from bot.chat.i18n import Translate
from bot.storage.backup_folder import Backup, BackupFolder

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def backups_html(folder: BackupFolder, backups: Sequence[Backup], translate: Translate) -> Html:
    """Return the section's content."""
    where = translate("They are in {folder}. A backup has a database and its keys; restoring needs both.").format(
        folder=folder.path
    )
    note = f"<p>{text(where)}</p>"
    if not backups:
        nothing = translate("There is no backup yet.")
        return Html(f"<p>{text(nothing)}</p>{note}")
    heads = translate("Time (UTC)"), translate("Name"), translate("Size"), translate("Download")
    rows = [_row(backup, translate) for backup in backups]
    return Html(table("table-backups", translate("Backups"), heads, rows) + note)


def progress_html(share: float | None, translate: Translate) -> Html:
    """Return how far a backup is; empty while none is made."""
    if share is None:
        return Html("")
    name, percent = translate("Backup"), round(share * 100)
    if share < 1:
        words = translate("Copying: {share} %").format(share=percent)
    else:
        words = translate("Checking what was copied …")
    return Html(
        f'<progress max="100" value="{percent}" aria-label="{text(name)}"></progress> '
        f'<span class="quiet">{text(words)}</span>'
    )


def _row(backup: Backup, translate: Translate) -> tuple[str, ...]:
    links = [
        f'<a href="/admin/backups/{quote(file.name)}" download>{text(label)}</a>'
        for file, label in zip(backup.files, (translate("database"), translate("keys")), strict=False)
    ]
    return f"{backup.at:%Y-%m-%d %H:%M:%S}", backup.name, f"{backup.size / 1e6:,.1f} MB", Html(", ".join(links))


async def make(call: PanelCall) -> str:
    """Make a backup; the answer comes when it is complete, its progress by the event stream."""
    folder, translate = folder_of(call.sources), call.translate
    backup = await asyncio.to_thread(folder.make, call.chat.intake.today())
    log.info("backup made in the panel", file=backup.name, by=call.person.author.key)
    return translate("Backup {name} written ({size} MB), integrity check passed.").format(
        name=backup.name, size=f"{backup.size / 1e6:,.1f}"
    )


async def download(request: Request, sources: PanelSources) -> Response:
    """Return a file of a backup."""
    file = await asyncio.to_thread(folder_of(sources).find, request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    log.info("backup downloaded in the panel", file=file.name, by=person_of(request).author.key)
    return FileResponse(file, media_type="application/octet-stream", filename=file.name)


def folder_of(sources: PanelSources) -> BackupFolder:
    """Return the source of backups.

    Raises:
        HTTPException: The bot has no database of its own.
    """
    if sources.backups is None:
        raise HTTPException(404)
    return sources.backups

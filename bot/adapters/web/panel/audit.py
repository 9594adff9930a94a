"""Who changed which setting where and when; the last change of a place can be undone."""

from collections.abc import Sequence
from datetime import datetime

from bot.adapters.web.panel.channels import undo_button, value_html
from bot.adapters.web.panel.history import ConfigChange
from bot.adapters.web.panel.html import Html, table, text
from bot.chat.i18n import Translate
from bot.chat.rules import EVERYWHERE
from bot.domain import Scope, SettingChange

# Changes that are listed.
MOST_CHANGES = 200


# A time, and the cells of its row.
_Row = tuple[datetime, tuple[str, ...]]


def audit_html(
    changes: Sequence[SettingChange],
    translate: Translate,
    *,
    in_file: Sequence[ConfigChange] = (),
    show_texts: bool = False,
    show_values: bool = True,
) -> Html:
    """Return the section's content.

    `changes` are the latest that were made in the chat, newest first, and `in_file` those of
    config.toml, with their values if `show_values`.
    """
    if not (changes or in_file):
        nothing = translate("No setting was changed in the chat or in the panel.")
        return Html(f"<p>{text(nothing)}</p>")
    heads = (
        translate("Time (UTC)"),
        translate("Changed by"),
        translate("Place"),
        translate("Setting"),
        translate("Value"),
        translate("Last change"),
    )
    newest: dict[Scope, SettingChange] = {}
    for change in changes:
        newest.setdefault(change.scope, change)
    rows = [_row(change, newest[change.scope] is change, translate, show_texts=show_texts) for change in changes]
    rows += [_file_row(change, translate, show_values=show_values) for change in in_file]
    rows.sort(key=lambda row: row[0], reverse=True)
    listed = table("table-audit", translate("Changes of settings"), heads, [cells for _, cells in rows[:MOST_CHANGES]])
    if len(rows) < MOST_CHANGES:
        return listed
    note = translate("The latest {count} changes are shown.").format(count=MOST_CHANGES)
    return Html(f"{listed}<p>{text(note)}</p>")


def _row(change: SettingChange, is_newest: bool, translate: Translate, *, show_texts: bool) -> _Row:
    author, scope = change.author, change.scope
    name = author.name or translate("(forgotten)")
    who = f"{name} ({author.key})" if author.id else name
    may_undo = is_newest and scope.level in ("channel", "thread")
    return change.at, (
        _time(change.at),
        Html(f"<bdi>{text(who)}</bdi>"),
        translate("all platforms") if scope == EVERYWHERE else scope.id,
        change.setting,
        value_html(change, translate, show_texts=show_texts),
        undo_button(change, "audit", translate) if may_undo else "",
    )


def _file_row(change: ConfigChange, translate: Translate, *, show_values: bool) -> _Row:
    value = change.value
    if show_values:
        unset = translate("not set")
        shown = f"{unset if value.before is None else value.before} → {unset if value.after is None else value.after}"
    else:  # it may be a host or a path
        shown = translate("the operator can read the value")
    who = Html(f"<bdi>{text(change.by)}</bdi>")
    return change.at, (_time(change.at), who, "config.toml", value.setting, shown, "")


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"

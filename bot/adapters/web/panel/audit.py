"""Who changed which setting where and when; the last change of a place can be undone."""

from collections.abc import Sequence

from bot.adapters.web.panel.channels import undo_button, value_html
from bot.adapters.web.panel.html import Html, table, text
from bot.chat.i18n import Translate
from bot.domain import Scope, SettingChange

# Changes that are listed.
MOST_CHANGES = 200


def audit_html(changes: Sequence[SettingChange], translate: Translate, *, show_texts: bool = False) -> Html:
    """Return the section's content; `changes` are the latest, newest first."""
    if not changes:
        nothing = translate("Nothing was set in the chat.")
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
    listed = table("table-audit", translate("Changes of settings"), heads, rows)
    if len(changes) < MOST_CHANGES:
        return listed
    note = translate("The latest {count} changes are shown.").format(count=MOST_CHANGES)
    return Html(f"{listed}<p>{text(note)}</p>")


def _row(change: SettingChange, is_newest: bool, translate: Translate, *, show_texts: bool) -> tuple[str, ...]:
    author, scope = change.author, change.scope
    name = author.name or translate("(forgotten)")
    who = f"{name} ({author.key})" if author.id else name
    may_undo = is_newest and scope.level in ("channel", "thread")
    return (
        f"{change.at:%Y-%m-%d %H:%M:%S}",
        Html(f"<bdi>{text(who)}</bdi>"),
        scope.id,
        change.setting,
        value_html(change, translate, show_texts=show_texts),
        undo_button(change, "audit", translate) if may_undo else "",
    )

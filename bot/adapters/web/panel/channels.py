"""Settings that were set in the chat: where, by whom and when; the last change of a place can be undone."""

from collections.abc import Iterator
from html import escape

from bot.adapters.web.panel.html import Html, table, text
from bot.adapters.web.panel.places import place_button
from bot.chat.i18n import Translate
from bot.chat.settings_commands import shown_value
from bot.domain import ChannelKey, Scope, SettingChange

# Places that are listed.
_MOST_PLACES = 100

Places = dict[Scope, list[SettingChange]]


def by_place(changes: list[SettingChange]) -> Places:
    """Return the settings in force of each channel and thread; the newest first, in both.

    `changes` are the newest of each setting, oldest first.
    """
    places: Places = {}
    for change in reversed(changes):
        if change.scope.level in ("channel", "thread"):
            places.setdefault(change.scope, []).append(change)
    return places


def channel_of(scope: Scope) -> ChannelKey:
    """Return the channel or thread that a scope is.

    >>> channel_of(Scope("thread", "discord:12:34"))
    ChannelKey(platform='discord', channel='12', thread='34')
    """
    platform, _, place = scope.id.partition(":")
    if scope.level == "channel":
        return ChannelKey(platform, place)
    channel, _, thread = place.rpartition(":")
    return ChannelKey(platform, channel, thread)


def mark_of(change: SettingChange) -> str:
    """Return what tells a change from later ones of its place."""
    return f"{change.setting} {change.at.isoformat()}"


def value_html(change: SettingChange, translate: Translate, *, show_texts: bool) -> str:
    """Return the value, of what people wrote only the length, unless texts may be shown."""
    return change.text if show_texts and change.text is not None else shown_value(change, translate)


def channels_html(changes: list[SettingChange], translate: Translate, *, show_texts: bool = False) -> Html:
    """Return the section's content."""
    places = by_place(changes)
    if not places:
        nothing = translate("Nothing was set in the chat.")
        return Html(f"<p>{text(nothing)}</p>")
    heads = (
        translate("Channel"),
        translate("Setting"),
        translate("Value"),
        translate("Changed by"),
        translate("Time (UTC)"),
        translate("Last change"),
    )
    shown = list(places)[:_MOST_PLACES]
    rows = [row for scope in shown for row in _rows(places[scope], translate, show_texts=show_texts)]
    listed = table("table-channels", translate("Settings from the chat"), heads, rows)
    if len(shown) == len(places):
        return listed
    more = translate("The latest {count} places are shown, of {all}.").format(count=len(shown), all=len(places))
    return Html(f"{listed}<p>{text(more)}</p>")


def _rows(changes: list[SettingChange], translate: Translate, *, show_texts: bool) -> Iterator[tuple[str, ...]]:
    scope = changes[0].scope
    buttons = Html(f"{place_button(scope.id, scope.level, translate)} {undo_button(changes[0], 'undo', translate)}")
    for change in changes:
        author = change.author.name or translate("(forgotten)")
        yield (
            change.scope.id,
            change.setting,
            value_html(change, translate, show_texts=show_texts),
            Html(f"<bdi>{text(author)}</bdi>"),
            f"{change.at:%Y-%m-%d %H:%M}",
            buttons if change is changes[0] else "",
        )


def undo_button(change: SettingChange, list: str, translate: Translate) -> Html:
    """Return the button that undoes the last change of a place; `list` names the list that it is in."""
    scope = change.scope
    # Of the place, not its number: after an update the focus must not be on the button of another place.
    id = f"{list}-{scope.level}-{scope.id}"
    label = translate("Undo the last change in {place}").format(place=scope.id)
    data = {"level": scope.level, "place": scope.id, "change": mark_of(change)}
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    undo = text(translate("Undo"))
    return Html(
        f'<button id="{text(id)}" class="undo" type="button" aria-label="{text(label)}"{attributes}>{undo}</button>'
    )

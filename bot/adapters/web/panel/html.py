"""Fragments of HTML: all texts are escaped unless they are `Html`."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """A fragment that is HTML already."""

    __slots__ = ()


def text(value: str) -> Html:
    """Escape a text.

    >>> text("<b>"), text(Html("<b>"))
    ('&lt;b&gt;', '<b>')
    """
    return value if isinstance(value, Html) else Html(escape(value))


def table(id: str, name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table; the first cell of a row is its name.  A narrow screen scrolls it, also by keyboard."""
    lines = [f'<th scope="row">{text(first)}</th>{_cells("td", rest)}' for first, *rest in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(
        f'<div class="table" id="{id}" tabindex="0" role="group" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return a list of names and values."""
    return Html("".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs))


def items(lines: Iterable[str]) -> Html:
    return Html("".join(f"<li>{text(line)}</li>" for line in lines))


def _cells(tag: str, values: Iterable[str]) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    return "".join(f"<{tag}{scope}>{text(value)}</{tag}>" for value in values)

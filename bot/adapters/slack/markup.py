"""Slack's notation and blocks as plain text, and the escapes of what the bot sends."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from bot.adapters.links import shows_address
from bot.adapters.malformed import bounded

MARKED = re.compile(r"<([^<>]*)>")

_ESCAPES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}

# Slack turns these into pings or names, also in Markdown.  Only these get a word joiner: behind
# every "<" it would break code that users copy.
_JOINER = "\u2060"
_PINGS = re.compile(r"<(?=!(?:channel|here|everyone|group|subteam|date)\b|[@#][A-Z0-9])", re.IGNORECASE)

# Blocks nest three levels deep.
_DEPTH = 8

# Where blocks and attachments have text, in reading order; buttons have none that matters.
_PARTS = (
    "pretext", "author_name", "title", "text", "description", "caption", "alt_text", "fields", "elements", "rows",
    "blocks", "message_blocks", "message", "value",
)  # fmt: skip
_SKIPPED = frozenset({"actions", "button", "divider", "input", "overflow"})
_INLINE = frozenset({"rich_text_section", "rich_text_preformatted", "rich_text_quote"})


def escaped(text: str) -> str:
    """Escape the characters of Slack's own markup.

    >>> escaped("a < b && <!here>")
    'a &lt; b &amp;&amp; &lt;!here&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescaped(text: str) -> str:
    return re.sub("&(?:lt|gt|amp);", lambda found: _ESCAPES[found[0]], text)


def without_pings(markdown: str) -> str:
    """Neutralise what Slack would turn into pings or names."""
    return _PINGS.sub(f"<{_JOINER}", markdown)


def plain_mark(marked: str, names: Mapping[str, str]) -> str:
    """Return the plain text of the markup between < and >; `names` are those of users and channels.

    >>> [plain_mark(mark, {"U01": "Mei"}) for mark in ("@U01", "@U2|ben", "#C1|general", "#C1|", "!here|here")]
    ['@Mei', '@ben', '#general', '#C1', '@here']
    >>> [plain_mark(mark, {}) for mark in ("!subteam^S1|@team", "!subteam^S1|", "!date^0^{date}|May", "!date^0^{date}")]
    ['@team', '@S1', 'May', '1970-01-01 00:00 UTC']
    >>> [plain_mark(mark, {}) for mark in ("http://a.b|a.b", "http://a.b|this", "http://a.b", "http://a.b|")]
    ['a.b', 'this (http://a.b)', 'http://a.b', 'http://a.b']
    """
    target, _, label = marked.partition("|")
    match target[:1]:
        case "@":
            return f"@{names.get(target[1:]) or label.removeprefix('@') or target[1:]}"
        case "#":
            return f"#{label.removeprefix('#') or names.get(target[1:]) or target[1:]}"
        case "!":
            return _special(target[1:], label)
        case _:
            return f"{label} ({target})" if label and not shows_address(label, target) else label or target


def _special(target: str, label: str) -> str:
    kind, *values = target.split("^")
    match kind:
        case "date":
            return label or _date(values[0] if values else "")
        case "subteam":
            return f"@{label.removeprefix('@') or ''.join(values[:1])}"
        case _:
            return f"@{label.removeprefix('@') or kind}"


def _date(seconds: str) -> str:
    try:
        return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%d %H:%M} UTC"
    except (OSError, OverflowError, ValueError):
        return seconds


def words(message: Mapping[str, Any]) -> str:
    r"""Return what a message shows, in Slack's notation: text or blocks, attachments, titles of files.

    >>> words({"text": "", "attachments": [{"title": "Disk full", "text": "on db1", "fallback": "Disk full"}]})
    'Disk full\non db1'
    """
    text, blocks = _string(message.get("text")), block_words(message.get("blocks"))
    # An app's text is only the notification where it has blocks.
    said = blocks or text if message.get("bot_id") else text or blocks
    shown = map(attachment_words, _dicts(message.get("attachments")))
    titles = (_string(each.get("title")) or _string(each.get("name")) for each in _dicts(message.get("files")))
    return "\n".join(filter(None, [said, *shown, *map(escaped, titles)])).replace(_JOINER, "")


def attachment_words(attachment: Mapping[str, Any]) -> str:
    """Return what an attachment shows: an alert, a link's preview, a shared message."""
    return block_words(attachment) or _string(attachment.get("fallback"))


def block_words(node: object) -> str:
    """Return the text of blocks, in Slack's notation."""
    return "\n".join(_texts(node, _DEPTH))


def _texts(node: object, depth: int) -> Iterator[str]:
    """Yield the lines of blocks or attachments, of any shape."""
    if isinstance(node, str):
        yield from [node] if node else []
    elif isinstance(node, list) and depth:
        for each in node:
            yield from _texts(each, depth - 1)
    elif isinstance(node, dict) and depth:
        kind = node.get("type")
        if kind in _INLINE:
            line = "".join(map(_inline, _dicts(node.get("elements"))))
            yield from [line] if line else []
        elif kind in {"markdown", "plain_text", "raw_text"}:
            yield from _texts(escaped(_string(node.get("text"))), depth)
        elif kind not in _SKIPPED:
            for part in _PARTS:
                yield from _texts(node.get(part), depth - 1)


def _inline(element: Mapping[str, Any]) -> str:
    value = {key: each for key, each in element.items() if isinstance(each, str)}
    match element.get("type"):
        case "user":
            return f"<@{value.get('user_id', '')}>"
        case "channel":
            return f"<#{value.get('channel_id', '')}>"
        case "usergroup":
            return f"<!subteam^{value.get('usergroup_id', '')}>"
        case "broadcast":
            return f"<!{value.get('range', '')}>"
        case "emoji":
            return f":{value.get('name', '')}:"
        case "link":
            return f"<{value.get('url', '')}|{escaped(value.get('text', ''))}>"
        case "date":
            return escaped(value.get("fallback", "")) or _date(str(element.get("timestamp")))
        case _:
            return escaped(value.get("text", ""))


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _string(value: object) -> str:
    return bounded(value) if isinstance(value, str) else ""

"""Rich messages of the loopback Telegram: the rules for their blocks, and their text.

Fields, limits and errors are those of https://core.telegram.org/bots/api#rich-messages and, where that is
silent, of TDLib and of bots that met them; an unknown field is refused here, where Telegram ignores it.
"""

import json
from collections.abc import Iterable
from typing import Any

from bot.delivery.markdown.format import utf16_units

Json = dict[str, Any]

_LENGTH, _BLOCKS, _DEPTH, _COLUMNS = 32_768, 500, 16, 20
_STYLES = {"bold": "**", "italic": "*", "strikethrough": "~~", "code": "`"}
# Required and optional fields of the blocks that the bot sends.
_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "paragraph": ({"text"}, set()),
    "heading": ({"text", "size"}, set()),
    "pre": ({"text"}, {"language"}),
    "divider": (set(), set()),
    "mathematical_expression": ({"expression"}, set()),
    "list": ({"items"}, set()),
    "blockquote": ({"blocks"}, {"credit"}),
    "table": ({"cells"}, {"is_bordered", "is_striped", "caption"}),
}
_CELL = {"text", "is_header", "align", "valign", "colspan", "rowspan"}


def refused_message(rich: object) -> str | None:
    """Return why Telegram refuses a rich message, or None."""
    if not isinstance(rich, dict) or not rich.get("blocks"):
        return "rich message must be non-empty"
    if set(rich) - {"blocks", "is_rtl", "skip_entity_detection"}:
        return f"unknown fields {sorted(rich)}"
    blocks = rich["blocks"]
    if why := next(filter(None, map(_refused, blocks)), None):
        return why
    if utf16_units(text_of(blocks)) > _LENGTH:
        return "RICH_MESSAGE_TEXT_TOO_LONG"
    if _count(blocks) > _BLOCKS:
        return "RICH_MESSAGE_BLOCKS_TOO_MANY"
    if max(map(_depth, blocks)) > _DEPTH:
        return "RICH_MESSAGE_DEPTH_INVALID"
    return None if text_of(blocks).strip() else "RICH_MESSAGE_EMPTY"


def _refused(block: Json) -> str | None:
    required, optional = _FIELDS.get(block.get("type", ""), (None, None))
    if required is None or optional is None:
        return f'can\'t parse InputRichBlock: type "{block.get("type")}" is unsupported'
    names = set(block) - {"type"}
    if not required <= names <= required | optional:
        return f"can't parse InputRichBlock: {block['type']} with {sorted(names)}"
    match block["type"]:
        case "heading" if block["size"] not in range(1, 7):
            return "invalid section heading size specified"
        case "mathematical_expression" if not block["expression"].strip():
            return "RICH_MESSAGE_EMPTY"
        case "list":
            return _refused_list(block["items"])
        case "blockquote":
            return next(filter(None, map(_refused, block["blocks"])), None)
        case "table":
            return _refused_table(block["cells"])
    return _refused_text(block.get("text", ""))


def _refused_list(items: list[Json]) -> str | None:
    if not items or not all(item.get("blocks") for item in items):
        return "list must be non-empty"
    if len({"value" in item for item in items}) > 1:
        return "list must be either ordered or unordered"
    if any(set(item) - {"blocks", "value", "type"} or item.get("type", "1") != "1" for item in items):
        return "invalid list item type specified"
    return next(filter(None, (_refused(block) for item in items for block in item["blocks"])), None)


def _refused_table(cells: list[list[Json]]) -> str | None:
    if not cells or any(len(row) > _COLUMNS or not row for row in cells):
        return "RICH_MESSAGE_TABLE_INVALID"
    for cell in (cell for row in cells for cell in row):
        if set(cell) - _CELL or cell["align"] not in ("left", "center", "right"):
            return "invalid horizontal alignment specified"
        if cell["valign"] not in ("top", "middle", "bottom"):
            return "invalid vertical alignment specified"
        if why := _refused_text(cell.get("text", "")):
            return why
    return None


def _refused_text(text: Any) -> str | None:
    match text:
        case str():
            return None
        case list():
            return next(filter(None, map(_refused_text, text)), None)
        case {"type": "mathematical_expression", "expression": str(expression)} if len(text) == 2 and expression:
            return None
        case {"type": "url", "text": inner, "url": str(url)} if len(text) == 3 and url.startswith("http"):
            return _refused_text(inner)
        case {"type": kind, "text": inner} if len(text) == 2 and kind in _STYLES:
            return _refused_text(inner)
        case _:
            return "unsupported rich text type"


def _inner(block: Json) -> list[Json]:
    rows = [{"cells": [row]} for row in block.get("cells", ())]
    return [*block.get("blocks", ()), *block.get("items", ()), *(rows if len(rows) > 1 else ())]


def _count(blocks: Iterable[Json]) -> int:
    return sum(1 + _count(_inner(block)) for block in blocks)


def _depth(block: Json) -> int:
    texts = [block.get("text", ""), *(cell.get("text", "") for row in block.get("cells", ()) for cell in row)]
    return 1 + max(*map(_depth, _inner(block)), *map(_styles, texts), 0)


def _styles(text: Any) -> int:
    match text:
        case str():
            return 0
        case list():
            return max(map(_styles, text), default=0)
        case _:
            return 1 + _styles(text.get("text", ""))


def text_of(blocks: Iterable[Json], *, labels: bool = False) -> str:
    """Return the words of blocks without markup, and with `labels` the numbers of list items."""
    return "\n".join(part for block in blocks for part in _parts(block, labels))


def _parts(block: Json, labels: bool) -> list[str]:
    label = [f"{block['value']}."] if labels and "value" in block else []
    cells = [_plain(cell.get("text", "")) for row in block.get("cells", ()) for cell in row]
    own = [_plain(block["text"])] if "text" in block else [block["expression"]] if "expression" in block else []
    inner = [part for each in (*block.get("blocks", ()), *block.get("items", ())) for part in _parts(each, labels)]
    return [*label, *own, *cells, *inner]


def _plain(text: Any) -> str:
    match text:
        case str():
            return text
        case list():
            return "".join(map(_plain, text))
        case _:
            return _plain(text["text"]) if "text" in text else str(text["expression"])


def markdown_of(blocks: Iterable[Json]) -> str:
    """Return the Markdown of blocks."""
    return "\n\n".join(map(_markdown, blocks))


def _markdown(block: Json) -> str:
    match block["type"]:
        case "heading":
            return f"{'#' * block['size']} {_marked(block['text'])}"
        case "pre":
            return f"```{block.get('language', '')}\n{_plain(block['text'])}\n```"
        case "divider":
            return "---"
        case "mathematical_expression":
            return f"$$\n{block['expression']}\n$$"
        case "blockquote":
            return "\n".join(f"> {line}" for line in markdown_of(block["blocks"]).splitlines())
        case "list":
            labels = [f"{item['value']}. " if "value" in item else "- " for item in block["items"]]
            return "\n".join(
                label + markdown_of(item["blocks"]).replace("\n", "\n   ")
                for label, item in zip(labels, block["items"], strict=True)
            )
        case "table":
            rows = [f"| {' | '.join(_marked(cell.get('text', '')) for cell in row)} |" for row in block["cells"]]
            return "\n".join([rows[0], "|---" * len(block["cells"][0]) + "|", *rows[1:]])
        case _:
            return _marked(block["text"])


def _marked(text: Any) -> str:
    match text:
        case str():
            return text
        case list():
            return "".join(map(_marked, text))
        case {"expression": expression}:
            return f"${expression}$"
        case {"url": url, "text": inner}:
            return str(url) if inner == url else f"[{_marked(inner)}]({url})"
        case _:
            mark = _STYLES[text["type"]]
            return f"{mark}{_marked(text['text'])}{mark}"


def same(one: list[Json] | None, other: list[Json] | None) -> bool:
    """Return whether two messages have the same blocks."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)

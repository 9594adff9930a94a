"""Pages from templates, in the language of their reader."""

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from bot.chat.i18n import Language

# Of the head of every page.
_META = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">"""


def fill_page(path: Path, language: Language, words: Mapping[str, str], **parts: str) -> str:
    """Return the page: `words` are escaped, and there for its script as `$words`; `parts` are HTML."""
    filled = {name: escape(word) for name, word in words.items()}
    filled |= {"lang": "zh-CN" if language == "zh" else "en", "words": escape(json.dumps(dict(words))), "meta": _META}
    return _template(path).substitute(filled, **parts)


@cache
def _template(path: Path) -> Template:
    return Template(path.read_text(encoding="utf-8"))

"""Collects the bot's own words from the code into the catalogues, and compiles those; needs Babel.

Descriptions of settings come from docs/SETTINGS.md, their translations from the same page in the other language.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

_HERE = Path(__file__).parent
_DOCS = _HERE.parents[2] / "docs"
CATALOGUES = sorted(_HERE.glob("*/LC_MESSAGES/bot.po"))


def said() -> Iterator[str]:
    """Yield every text in the code that stands in `translate("…")` or `gettext_noop("…")`."""
    found = extract_from_dir(
        _HERE.parents[1], method_map=[("**.py", "python")], keywords={"translate": None, "gettext_noop": None}
    )
    for _, _, text, _, _ in found:
        assert isinstance(text, str), "translate takes one text"
        yield text
    yield from descriptions("").values()


def descriptions(language: str) -> dict[tuple[str, str], str]:
    """Return what the page of the settings says about each one, by table and name."""
    found, table = {}, ""
    for line in (_DOCS / language / "SETTINGS.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"\*\*`\[([\w.]+)\]`\*\*", line):
            table = heading[1]
        elif table and (row := re.match(r"\| `(\w+)` \| .*? \| (.*) \|$", line)):
            found[table, row[1]] = row[2]
    return found


def load(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parent.parent.name, abort_invalid=True)


def untranslated(catalog: Catalog) -> list[str]:
    return [str(message.id) for message in _messages(catalog) if not message.string]


def update(path: Path) -> list[str]:
    """Bring one catalogue in step, beside it its compiled form; return what is not translated."""
    catalog = load(path)
    template = Catalog(creation_date=catalog.creation_date)  # a new date would be a change without one
    for text in said():
        template.add(text)
    catalog.update(template, no_fuzzy_matching=True)
    translated = descriptions(path.parents[1].name)
    for setting, text in descriptions("").items():
        message = catalog.get(text)
        assert message is not None, "said() has all descriptions"
        message.string = translated.get(setting, "")
    with path.open("wb") as file:
        write_po(file, catalog, width=110, sort_output=True, ignore_obsolete=True)
    with path.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalog)
    return untranslated(catalog)


def main() -> None:
    missing = [f"{path}: {text}" for path in CATALOGUES for text in update(path)]
    if missing:
        sys.exit("\n".join(["These texts wait for a translation:", *missing]))


def _messages(catalog: Catalog) -> Iterator[Message]:
    return (message for message in catalog if message.id)


if __name__ == "__main__":
    main()

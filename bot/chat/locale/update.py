"""Collects the bot's own words from the code into the catalogues, and compiles those; needs Babel."""

import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

_HERE = Path(__file__).parent
CATALOGUES = sorted(_HERE.glob("*/LC_MESSAGES/bot.po"))


def said() -> Iterator[str]:
    """Yield every text in the code that stands in `translate("…")` or `gettext_noop("…")`."""
    found = extract_from_dir(
        _HERE.parents[1], method_map=[("**.py", "python")], keywords={"translate": None, "gettext_noop": None}
    )
    for _, _, text, _, _ in found:
        assert isinstance(text, str), "translate takes one text"
        yield text


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

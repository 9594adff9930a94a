"""The navigation of the documentation site has every page; `make docs` checks the links."""

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from release.site import PAGES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Listed on the page decisions/README.md.
UNLISTED = "decisions/2026-"


# Without the lines that name a Python function, which only MkDocs reads.
CONFIG = re.sub(r"^.*!!python/.*$", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
NAVIGATION = yaml.safe_load(CONFIG)["nav"]


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(PAGES.values())
    assert sorted(pages(NAVIGATION)) == sorted(page for page in written if not page.startswith(UNLISTED))


def test_pages_from_outside_docs_exist() -> None:
    assert all((ROOT / source).is_file() for source in PAGES)

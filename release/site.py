"""Hooks of the documentation site (`mkdocs.yml`): pages from outside docs/, links between them, no foreign resources."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages of the site by their files outside docs/.
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "CHANGELOG.md": "project/CHANGELOG.md",
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "SECURITY.md": "project/SECURITY.md",
    "bot/engine/README.md": "project/ENGINE.md",
}
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FOREIGN = re.compile(r'<(?:script|img|iframe|link|source|video)\b[^>]*?(?:src|href)="?(?:https?:)?//[^>]*>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from places in the repository to places on the site; list the decision notes."""
    if page.file.src_uri == "decisions/README.md":
        markdown += f"\n{decisions()}\n"
    return rewritten(markdown, page.file.src_uri)


def decisions() -> str:
    """Return a list of the decision notes, newest first."""
    notes = sorted((ROOT / "docs" / "decisions").glob("2*.md"), reverse=True)
    titles = [note.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for note in notes]
    return "\n".join(f"- [{title}]({note.name}), {note.name[:10]}" for note, title in zip(notes, titles, strict=True))


def rewritten(markdown: str, page: str) -> str:
    """Return a page with its links leading to pages of the site; a link to any other file becomes its text.

    >>> rewritten("[a](docs/FILES.md#deletion), [b](LICENSE)", "index.md")
    '[a](FILES.md#deletion), b'
    >>> rewritten("[a](../SECURITY.md)", "OPERATING.md")
    '[a](project/SECURITY.md)'
    """
    source = next((path for path, name in PAGES.items() if name == page), f"docs/{page}")

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return found[1]
        return f"[{found[1]}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{found[3] or ''})"

    # Every second part is a code block.
    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from elsewhere.

    Raises:
        PluginError: A page names a foreign script, style, font or picture.
    """
    from mkdocs.exceptions import PluginError

    for page in Path(config.site_dir).rglob("*.html"):
        for found in _FOREIGN.findall(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} loads something from elsewhere: {found}")

"""The READMEs name every setting with its default, and no file that is not there."""

import json
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from bot.adapters import SETTINGS
from bot.chat.commands import COMMANDS
from bot.config.schema import known_settings, variable

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]


def shown(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def tables(text: str) -> dict[str, str]:
    """What stands under each table of config.toml."""
    parts = re.split(r"^\*\*`\[([\w.]+)\]`\*\*", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_setting_stands_there_with_its_default(readme: Path) -> None:
    found = tables(readme.read_text(encoding="utf-8"))
    for key, field in known_settings(SETTINGS).items():
        default = field.get_default(call_default_factory=True)
        value = f"`{shown(default)}`" if default is not None else f"(`{variable(key)}`)"
        assert f"| `{key[-1]}` | {value} |" in found[".".join(key[:-1])], ".".join(key)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_command_stands_there(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert all(f"`/{each.name} {each.argument}".rstrip() + "`" in text for each in COMMANDS.values())


@pytest.mark.parametrize("page", [*READMES, *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*READMES, *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        anchors = {anchor(found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        assert heading in anchors, f"{target}#{heading}"


def anchor(heading: str) -> str:
    """Return the id that GitHub gives a heading.

    >>> anchor("Move to PostgreSQL, or back")
    'move-to-postgresql-or-back'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_tour_names_only_files_that_are_there() -> None:
    text = (ROOT / "docs" / "TOUR.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:bot|tests|migrations)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path

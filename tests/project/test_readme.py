"""The reference pages list every setting and command; pages link to and name what exists."""

import re
import tomllib
from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.chat.commands import COMMANDS
from bot.config.schema import known_settings, variable
from bot.lifecycle import TRANSITIONS
from release.reference import PARTS, shown, with_part

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
LANGUAGES = [ROOT / "docs", ROOT / "docs" / "zh"]


def tables(text: str) -> dict[str, str]:
    """Return the text under each section of config.toml."""
    parts = re.split(r"^\*\*`\[([\w.]+)\]`\*\*", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("folder", LANGUAGES, ids=lambda path: path.name)
def test_every_setting_is_listed_with_its_default(folder: Path) -> None:
    found = tables((folder / "SETTINGS.md").read_text(encoding="utf-8"))
    for key, field in known_settings(SETTINGS).items():
        default = field.get_default(call_default_factory=True)
        value = f"`{shown(default)}`" if default is not None else f"(`{variable(key)}`)"
        assert f"| `{key[-1]}` | {value} |" in found[".".join(key[:-1])], ".".join(key)


@pytest.mark.parametrize("page", PARTS)
def test_generated_pages_are_up_to_date(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert with_part(text, PARTS[page]()) == text, "run: python -m release.reference"


@pytest.mark.parametrize("folder", LANGUAGES, ids=lambda path: path.name)
def test_every_command_is_listed(folder: Path) -> None:
    text = (folder / "COMMANDS.md").read_text(encoding="utf-8")
    assert all(f"`/{each.name} {each.argument}".rstrip() + "`" in text for each in COMMANDS.values())


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_readmes_are_read_in_five_minutes(readme: Path) -> None:
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150


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


PAGES = [
    *READMES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "zh").glob("*.md"),
]
# Names, and the file in which a page says that they are: `NAME` and `NAME` in `bot/…`.
PLACED = re.compile(r"((?:`[A-Za-z_][\w.]*`(?:, | and )?)+),?\s+in\s+`((?:bot|tests)/[\w/]+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:bot|tests|migrations|benchmarks|training|docs|release)/[\w/]+\.\w+)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_files_of_a_name_contain_it(page: Path) -> None:
    placed = PLACED.findall(page.read_text(encoding="utf-8"))
    missing = [
        (name, file)
        for names, file in placed
        for name in re.findall(r"\w+", names.replace(" and ", ""))
        if not re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []


TOUR = (ROOT / "docs" / "TOUR.md").read_text(encoding="utf-8")


def test_the_tour_draws_every_transition_of_an_exchange() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", TOUR, re.MULTILINE))
    legal = {
        (origin.value, transition.target.value, name)
        for name, transition in TRANSITIONS.items()
        if transition.target is not None
        for origin in transition.origins
    }
    assert drawn == legal


def test_the_tour_names_the_effect_of_each_transition_on_the_claim() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (take|keep|release|revoke) \|$", TOUR, re.MULTILINE))
    assert rows == {name: transition.claim.value for name, transition in TRANSITIONS.items()}


def test_the_tour_lists_the_layers_that_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["bot"])
    table = TOUR.partition("## Which package may import which")[2].partition("## Where to add")[0]
    rows = [re.findall(r"`bot/(\w+)(?:\.py|/)`", row) for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)]
    assert [row for row in rows if row] == [re.split(r" [|:] ", layer) for layer in layers]


GLOSSARY = re.findall(
    r"^\| ([^|]+?) \| .* \| (`[^|]+) \|$", (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = [term for term, _ in GLOSSARY]
    assert len(terms) > 50
    assert terms == sorted(terms)


@pytest.mark.parametrize(("term", "where"), GLOSSARY, ids=[term for term, _ in GLOSSARY])
def test_the_files_of_a_term_contain_it_or_what_follows_in_parentheses(term: str, where: str) -> None:
    for place, named in re.findall(r"`([\w./]+)`(?: \(`(.+?)`\))?", where):
        files = [ROOT / place] if "." in place else (ROOT / place).rglob(named if named.endswith(".py") else "*.py")
        text = words("\n".join(file.read_text(encoding="utf-8") for file in files))
        assert f" {words(term)}" in text or (named and words(named) in text), place


def words(text: str) -> str:
    """Return a text in lower case, with spaces between the words of its identifiers.

    >>> words("ReplyStream, _hot_swap")
    'reply stream,  hot swap'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\n_\"'`(/.-]", " ", text).lower()

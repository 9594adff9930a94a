"""Check docstrings, comments and test names for stilted English: `python -m tests.project.prose [FOLDER ...]`.

Part of `make lint`.  In each folder at most 2 % of the texts of one kind may contain a pattern below;
the patterns find candidates, so a clean result does not prove good prose.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("bot", "benchmarks", "deploy", "training", "release", "migrations", "tests")
LIMIT = 0.02

# A summary line names the thing or the action; it does not begin with a clause.
_CLAUSE = re.compile(
    r"(?:what|who|whoever|whom|whose|how|where|whether|when|which|why|those|that|the same|so (?:many|much)|as)\b",
    re.IGNORECASE,
)
# Archaic words, pronouns without a referent, passive hearsay.
_STILTED = re.compile(
    r"\b(?:whoever|whomever|whatever comes|nobody|somebody|anew|shall|stands?(?!-)|old news|at its work|of its own"
    r"|in its place|there (?:is|are) none|that there is|who ask(?:s|ed)|so (?:long|many)"
    r"|(?:is|are|was|were) told|tak(?:es?|en) up)\b",
    re.IGNORECASE,
)
_STILTED_NAME = re.compile(r"_(?:whoever|who|whom|nobody|somebody|anew|shall|is_told|are_told|what_is|what_was)(?:_|$)")

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Text:
    """One docstring, comment or test name, and whether a pattern matches."""

    kind: str
    file: Path
    line: int
    words: str
    is_stilted: bool


def texts(file: Path) -> Iterator[Text]:
    """Yield all texts of a Python file."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _DOCUMENTED):
            continue
        line = getattr(node, "lineno", 1)
        if docstring := ast.get_docstring(node):
            yield Text("docstring openings", file, line, docstring, bool(_CLAUSE.match(docstring)))
            yield Text("docstrings", file, line, docstring, bool(_STILTED.search(docstring)))
        name = getattr(node, "name", "")
        if name.startswith("test_"):
            yield Text("test names", file, line, name, bool(_STILTED_NAME.search(name)))
    with tokenize.open(file) as lines:
        for token in tokenize.generate_tokens(lines.readline):
            if token.type == tokenize.COMMENT:
                comment = token.string.lstrip("# ")
                yield Text("comments", file, token.start[0], comment, bool(_STILTED.search(comment)))


def excess(folder: str, found: Iterable[Text]) -> Iterator[str]:
    """Yield a summary and the matches for each kind of text above the limit.

    >>> list(excess("a", [Text("comments", Path("a/b.py"), 7, "Example.", True)]))
    ['a: 1 of 1 comments are stilted, the limit is 2 %', '  a/b.py:7: Example.']
    """
    kinds: dict[str, list[Text]] = {}
    for text in found:
        kinds.setdefault(text.kind, []).append(text)
    for kind, all_texts in kinds.items():
        matches = [text for text in all_texts if text.is_stilted]
        if len(matches) > LIMIT * len(all_texts):
            yield f"{folder}: {len(matches)} of {len(all_texts)} {kind} are stilted, the limit is {LIMIT:.0%}".replace(
                "%", " %"
            )
            yield from (f"  {text.file}:{text.line}: {text.words.splitlines()[0][:100]}" for text in matches)


def main(folders: Iterable[str]) -> int:
    """Print everything above the limit; return the exit code."""
    problems = [
        line
        for folder in folders
        for line in excess(folder, (text for file in sorted(Path(folder).rglob("*.py")) for text in texts(file)))
    ]
    sys.stdout.writelines(f"{line}\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FOLDERS))

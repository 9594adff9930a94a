"""Sizes of bot/ that the layout promises to keep small.

python -m tests.project.sizes [FOLDER]

Entries at its top, lines per package, attributes keyed by an exchange outside its owner, class names with two
meanings.
"""

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWNER = "chat/exchanges.py"
_BY_KEY = {"add", "discard", "remove", "pop", "get", "setdefault", "update", "append"}


def top_of(bot: Path) -> tuple[list[str], list[str]]:
    """Return the modules and the packages directly in bot/, without dunder modules."""
    modules = sorted(path.name for path in bot.glob("*.py") if not path.name.startswith("__"))
    packages = sorted(path.parent.name for path in bot.glob("*/*.py") if path.name == "__init__.py")
    return modules, packages


def lines_per_package(bot: Path) -> Counter[str]:
    lines: Counter[str] = Counter()
    for path in bot.rglob("*.py"):
        inside = path.relative_to(bot).parts
        package = inside[0] if len(inside) > 1 else "(top)"
        lines[package] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def keyed_by_exchange(source: str) -> set[str]:
    """Return attributes of `self` that are looked up or filled by an exchange or its id.

    >>> keyed_by_exchange("self._tasks[exchange.id] = task; self._owed.update(each.id for exchange in owed)")
    {'_tasks'}
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        for container, key in _lookups(node):
            if isinstance(container, ast.Attribute) and _is_name(container.value, "self") and _is_exchange(key):
                found.add(container.attr)
    return found


def kept_beside_the_owner(bot: Path) -> dict[str, list[str]]:
    """Return the containers keyed by an exchange outside OWNER, by module."""
    found = {path: sorted(keyed_by_exchange(path.read_text(encoding="utf-8"))) for path in sorted(bot.rglob("*.py"))}
    return {name: kept for path, kept in found.items() if kept and (name := str(path.relative_to(bot))) != OWNER}


def _lookups(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    match node:
        case ast.Subscript(container, key):
            yield container, key
        case ast.Compare(key, [ast.In() | ast.NotIn()], [container]):
            yield container, key
        case ast.Call(ast.Attribute(container, verb), [ast.GeneratorExp(key) | key, *_]) if verb in _BY_KEY:
            yield container, key


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_exchange(key: ast.expr) -> bool:
    if isinstance(key, ast.Attribute) and key.attr == "id":
        key = key.value
    name = key.attr if isinstance(key, ast.Attribute) else key.id if isinstance(key, ast.Name) else ""
    return name in {"exchange", "exchange_id"}


def class_names(bot: Path) -> dict[str, list[str]]:
    """Return public class names that more than one module defines, with those modules."""
    places = defaultdict(list)
    for path in sorted(bot.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(bot)))
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def main() -> None:
    parser = argparse.ArgumentParser(description="Print sizes of bot/.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "bot")
    bot = parser.parse_args().folder
    modules, packages = top_of(bot)
    print(f"modules at the top       {len(modules):>6}  {', '.join(modules)}")
    print(f"packages at the top      {len(packages):>6}  {', '.join(packages)}")
    lines = lines_per_package(bot)
    for package, number in [*sorted(lines.items()), ("all", lines.total())]:
        print(f"lines of {package:<16}{number:>6,}")
    keyed = kept_beside_the_owner(bot)
    print(f"keyed by an exchange, outside {OWNER}: {sum(map(len, keyed.values()))}")
    twice = class_names(bot)
    for module, attributes in keyed.items():
        print(f"    {module}: {', '.join(attributes)}")
    print(f"class names with two meanings: {len(twice)}")
    for name, modules in sorted(twice.items()):
        print(f"    {name}: {', '.join(modules)}")


if __name__ == "__main__":
    main()

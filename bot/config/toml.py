"""Parse TOML of any content, with the line of each key."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from bot.config.schema import Key, known_settings
from bot.config.secrets import is_address, is_secret, is_secret_name
from bot.util.files import nests_deeper

# Levels of tables and lists; the settings need four.
_DEEPEST = 16
# tomllib needs memory quadratic in the parts of a dotted key.
_MANY_PARTS = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")
# Characters that may be parsed in vain to find where statements end; that is quadratic, too.
_LOST = 2_000_000
_UNQUOTED = re.compile(r"""[ \t]*([\w.-]++)[ \t]*=[ \t]*([^"'#\[\]{}]++)(?:#.*)?""")
# Settings of the program that are secret, whatever they are called: engine.key.
_SECRET_SETTINGS = frozenset(
    key[-1] for key, field in known_settings({}).items() if is_secret(field) and not is_address(field)
)
# Longer words may be secrets, and are not shown.
_LONGEST_SHOWN = 16


class TomlError(ValueError):
    """The text is not TOML, or nests deeper than settings do; the message quotes no long value."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a file.

    Raises:
        TomlError: With the line and what to write, as far as is known.
    """
    if _MANY_PARTS.search(text):
        raise TomlError("a key has too many parts")
    try:
        tables = tomllib.loads(text + "\n")
    except tomllib.TOMLDecodeError as error:
        raise TomlError(_explain(str(error), text)) from None
    except RecursionError:
        raise TomlError("lists or tables are nested too deeply") from None
    except ValueError:  # Python converts at most 4300 digits
        raise TomlError("a number has too many digits") from None
    if nests_deeper(tables, _DEEPEST):
        raise TomlError("lists or tables are nested too deeply")
    return tables


def names_secret(written: str) -> bool:
    """Return whether a setting that is written by this name, with or without its table, may hold a secret.

    >>> names_secret("storage.master_key"), names_secret("key"), names_secret("model")
    (True, True, False)
    """
    name = written.rpartition(".")[2]
    return is_secret_name(name) or name in _SECRET_SETTINGS


def find_lines(text: str) -> dict[Key, int]:
    r"""Find the line of each key in valid TOML: a statement is the fewest lines that parse.

    >>> find_lines('[a]\nb.c = [\n  1,\n]\n\n[d]\n')
    {('a',): 1, ('a', 'b'): 2, ('a', 'b', 'c'): 2, ('d',): 6}
    """
    found: dict[Key, int] = {}
    table: Key = ()
    statement, start, lost = "", 1, 0
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        # Only a list or a string may have several lines.
        if number > start and not any(end in line for end in ("]", '"""', "'''")):
            continue
        try:
            keys = list(_keys(tomllib.loads(statement)))
        except tomllib.TOMLDecodeError:
            lost += len(statement)
            if lost > _LOST:
                return found
            continue
        if statement.lstrip().startswith("["):
            table = keys[-1]
        else:
            keys = [(*table, *key) for key in keys]
        for key in keys:
            found.setdefault(key, start)
        statement, start = "", number + 1
    return found


def _keys(table: Mapping[str, Any], parent: Key = ()) -> Iterator[Key]:
    for name, value in table.items():
        key = (*parent, name)
        yield key
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _keys(inner, key)


def _explain(message: str, text: str) -> str:
    """Put the line first, and say what to write where quotes are missing.

    >>> _explain("Invalid value (at line 1, column 16)", "quantization = int4")
    'line 1, column 16: invalid value; text needs quotes: quantization = "int4"'
    """
    what, _, place = message.rstrip(")").rpartition(" (at ")
    hint = ""
    if number := re.match(r"line (\d+)", place):
        line = text.split("\n")[int(number[1]) - 1]
        if what.startswith(("Invalid value", "Expected newline")) and (found := _UNQUOTED.fullmatch(line)):
            hint = _hint(found[1], found[2].strip())
    return f"{place}: {what[:1].lower()}{what[1:]}{hint}"


def _hint(name: str, word: str) -> str:
    if word.lower() in ("true", "false"):
        return f"; write {name} = {word.lower()}"
    is_shown = len(word) <= _LONGEST_SHOWN and word.isprintable() and not names_secret(name)
    return f'; text needs quotes: {name} = "{word if is_shown else "…"}"'

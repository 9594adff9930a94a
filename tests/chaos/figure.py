"""What a figure is: one kind of fault, caused on purpose, and rows that tell what it cost.

A figure is a module of this package with a `NAME` ("R4"), a docstring whose first line
says what is broken, and `rows`; it is found by being there.
"""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import tests.chaos

# "full" is what `make reliability` promises; "short" is part of `make test`: seconds, outcomes only.
Scale = Literal["full", "short"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `is_kept` judges what came out (nothing lost, nothing twice); `is_in_time` judges
    times and rates, which only a machine without other work can be held to.
    """

    subject: str
    told: str
    is_kept: bool
    is_in_time: bool = True


class Figure(Protocol):
    """The module of a figure, as the two that run it see it."""

    NAME: str
    __doc__: str | None

    def rows(self, scale: Scale, seed: int) -> AsyncIterator[Row]:
        """Break things, count, and yield a row per subject: a platform, the store, the engine."""
        ...


def figures() -> dict[str, Figure]:
    """Every figure by its name, R1 first."""
    names = [module.name for module in pkgutil.iter_modules(tests.chaos.__path__)]
    modules = [importlib.import_module(f"tests.chaos.{name}") for name in names if not name.startswith("__")]
    found = {module.NAME: cast(Figure, module) for module in modules if hasattr(module, "NAME")}
    return {name: found[name] for name in sorted(found, key=number_of)}


def number_of(name: str) -> int:
    """Where a figure stands among the others.

    >>> number_of("R15")
    15
    """
    return int(name.removeprefix("R"))


def title(figure: Figure) -> str:
    """The first line of its docstring, without its name.

    >>> from tests.chaos import kills
    >>> title(kills)
    'the whole bot on a loopback platform, killed at random points while users write.'
    """
    assert figure.__doc__ is not None, f"{figure.NAME} does not say what it breaks"
    return figure.__doc__.splitlines()[0].partition(": ")[2]

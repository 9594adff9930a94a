"""Figures: each injects one kind of fault and counts the consequences.

A figure is a module of this package with a `NAME` ("R4"), a docstring whose first line
names the fault, and `rows`.  Modules are discovered; the module's own name is the short
name of its fault.
"""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import tests.chaos

# "full" runs in `make reliability`; "short" runs in `make test`: a few seconds, results only, no times.
Scale = Literal["full", "short"]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    `is_kept` judges results (nothing lost, nothing twice); `is_in_time` judges times and
    rates, which need an otherwise idle machine.
    """

    subject: str
    result: str
    is_kept: bool
    is_in_time: bool = True


class Figure(Protocol):
    """The module of a figure."""

    NAME: str
    __name__: str
    __doc__: str | None

    def rows(self, scale: Scale, seed: int) -> AsyncIterator[Row]:
        """Inject the faults; yield a row per subject: a platform, the store, the engine."""
        ...


def figures() -> dict[str, Figure]:
    """Return all figures by name, R1 first."""
    names = [module.name for module in pkgutil.iter_modules(tests.chaos.__path__)]
    modules = [importlib.import_module(f"tests.chaos.{name}") for name in names if not name.startswith("__")]
    found = {module.NAME: cast(Figure, module) for module in modules if hasattr(module, "NAME")}
    return {name: found[name] for name in sorted(found, key=number_of)}


def find(name: str) -> Figure | None:
    """Return the figure with this number or word.

    >>> [figure and figure.NAME for figure in map(find, ("R1", "r1", "kills", "full disk", "full_disk", "nothing"))]
    ['R1', 'R1', 'R1', 'R6', 'R6', None]
    """
    wanted = name.lower().replace("_", " ").replace("-", " ")
    return next((each for each in figures().values() if wanted in (each.NAME.lower(), word(each))), None)


def word(figure: Figure) -> str:
    """Return the short name of the figure's fault.

    >>> from tests.chaos import full_disk
    >>> word(full_disk)
    'full disk'
    """
    return figure.__name__.rpartition(".")[2].replace("_", " ")


def number_of(name: str) -> int:
    """Return the number in a figure's name.

    >>> number_of("R15")
    15
    """
    return int(name.removeprefix("R"))


def title(figure: Figure) -> str:
    """Return the first line of the figure's docstring, without its name.

    >>> from tests.chaos import kills
    >>> title(kills)
    'the whole bot on a loopback platform, killed at random points while users write.'
    """
    assert figure.__doc__ is not None, f"{figure.NAME} has no docstring"
    return figure.__doc__.splitlines()[0].partition(": ")[2]

"""What to measure, and which wishes cannot be."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, Self

from bot.errors import BotError

# The ids of the control tokens stand at the end of a made-up vocabulary.
_CONTROL_TOKENS = 5


class OptionError(BotError):
    """A mistake on the command line."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a ChatGLM that is made of random weights; left out, they are these."""

    hidden: int = 1024
    layers: int = 8
    heads: int = 16
    inner: int = 4096
    vocab: int = 32768

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `hidden=1024,layers=8,heads=16,inner=4096,vocab=32768`.

        Raises:
            OptionError: In one sentence what cannot be, and what can.

        >>> Dimensions.parse("hidden=256, layers=4")
        Dimensions(hidden=256, layers=4, heads=16, inner=4096, vocab=32768)
        """
        known = [field.name for field in fields(cls)]
        sizes: dict[str, int] = {}
        for item in text.split(","):
            name, equals, number = (part.strip() for part in item.partition("="))
            if not equals:
                raise OptionError(f'--random: "{name}" is not written name=number, as in hidden=1024,layers=8')
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise OptionError(f'--random: there is no size "{name}"; {hint}')
            if name in sizes:
                raise OptionError(f"--random: {name} is given twice")
            if not (number.isascii() and number.isdecimal() and int(number) > 0):
                raise OptionError(f'--random: {name} = "{number}", where a whole number of at least 1 belongs')
            sizes[name] = int(number)
        return cls(**sizes)._checked()

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    def _checked(self) -> Self:
        # A head is cut into two channels, and each of them into pairs.
        if self.hidden % (4 * self.heads):
            raise OptionError(
                f"--random: hidden = {self.hidden} cannot be shared by {self.heads} heads: take a multiple of {4 * self.heads}"
            )
        if self.inner % 2:
            raise OptionError(
                f"--random: inner = {self.inner} is odd: int4 packs two columns into a byte, take an even number"
            )
        if self.vocab <= _CONTROL_TOKENS:
            raise OptionError(
                f"--random: vocab = {self.vocab} is too small: the control tokens alone are {_CONTROL_TOKENS}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    `batch` sequences, each with a prompt of `prompt` tokens, are given `tokens` new ones by
    the network alone; then `clients` ask the engine at once, each a question of
    `question` tokens.  All of it `repeat` times.
    """

    model: str = "demo"
    random: Dimensions | None = None  # in the place of `model`
    quantization: Literal["none", "int8", "int4"] = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch: int = 1
    prompt: int = 128
    tokens: int = 64
    clients: int = 8
    question: int = 24  # what a line in a chat comes to
    repeat: int = 5
    threads: int | None = None  # of the processor; None leaves the choice to torch

    @property
    def model_name(self) -> str:
        return self.model if self.random is None else str(self.random)


def options_of(*, model: str | None, random: str | None, suite: str | None = None, **chosen: Any) -> Options:
    """Take the options of the command line as they were typed; those not given are None.

    Raises:
        OptionError: They cannot be, alone or together.
    """
    if model is not None and random is not None:
        raise OptionError("--model and --random: there can be one of them, a checkpoint or made-up weights")
    if suite is not None and (model is not None or random is not None):
        raise OptionError(f"--suite {suite} has a model of its own: leave --model and --random out")
    sizes = None if random is None else Dimensions.parse(random)
    return Options(model=model or "demo", random=sizes, **chosen)

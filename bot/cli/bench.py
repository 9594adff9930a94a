"""`bot bench`: measure one model, or run a suite of the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bot.cli.common import progress_bar
from bot.errors import EngineUnavailable, PromptTooLong

if TYPE_CHECKING:
    from bot.engine.benchmark import BenchResult

SIZES = {"hidden": 1024, "layers": 8, "heads": 16, "inner": 4096, "vocab": 32768}
_AT_LEAST_1 = click.IntRange(min=1)
_AT_LEAST_3 = click.IntRange(min=3)


def parse_sizes(context: click.Context, option: click.Parameter, text: str | None) -> dict[str, int] | None:
    """Read `hidden=1024,layers=8`; sizes left out have their default."""
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, _, number = (part.strip() for part in item.partition("="))
        if name not in SIZES or not (number.isascii() and number.isdecimal() and int(number) > 0):
            raise click.BadParameter(f'"{item}" is not NAME=NUMBER with one of: {", ".join(SIZES)}')
        if name in sizes:
            raise click.BadParameter(f"{name} is given twice")
        sizes[name] = int(number)
    sizes = SIZES | sizes
    # Each head is split in two halves, and rotary embeddings rotate pairs in each.
    if sizes["hidden"] % (multiple := 4 * sizes["heads"]):
        raise click.BadParameter(
            f"hidden = {sizes['hidden']} with {sizes['heads']} heads: use a multiple of {multiple}"
        )
    if sizes["inner"] % 2:
        raise click.BadParameter(f"inner = {sizes['inner']} is odd: int4 packs two columns into a byte")
    if sizes["vocab"] <= 5:
        raise click.BadParameter(f"vocab = {sizes['vocab']} is too small: 5 ids are control tokens")
    return sizes


@click.command()
@click.option("--model", help='"demo", a folder or a Hugging Face name; default: demo.')
@click.option(
    "--random", callback=parse_sizes, help=f"Use random weights: {','.join(f'{k}={v}' for k, v in SIZES.items())}."
)
@click.option("--quantization", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cuda, cuda:1, mps or cpu.")
@click.option("--batch", type=_AT_LEAST_1, default=1, show_default=True, help="Sequences decoded together.")
@click.option("--prompt", type=_AT_LEAST_3, default=128, show_default=True, help="Tokens per prompt.")
@click.option("--tokens", type=_AT_LEAST_1, default=64, show_default=True, help="New tokens per answer.")
@click.option("--clients", type=_AT_LEAST_1, default=8, show_default=True, help="Concurrent clients of the engine.")
@click.option("--question", type=_AT_LEAST_3, default=24, show_default=True, help="Tokens per client request.")
@click.option("--repeat", type=_AT_LEAST_1, default=5, show_default=True, help="Repetitions of each measurement.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; default: as when serving.")
@click.option(
    "--suite",
    type=click.Choice(["cpu", "cuda"]),
    help="Run the full performance suite against its targets; with it, only --repeat and --json apply.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(model: str | None, random: dict[str, int] | None, suite: str | None, as_json: bool, **options: Any) -> None:
    """Measure how fast a model runs on this machine."""
    if random is not None and model is not None:
        raise click.UsageError("--model and --random exclude each other")
    if suite is not None and (model is not None or random is not None):
        raise click.UsageError(f"--suite {suite} brings its own model: omit --model and --random")
    try:
        from bot.engine.benchmark import BenchOptions, measure, random_config
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bot."):
            raise
        raise EngineUnavailable(
            f"bench needs the package {error.name}, which is not installed: python -m pip install chatglm-bot"
        ) from error
    with progress_bar(as_lines=True) as watch:
        if suite is not None:
            lines = _run_suite(suite, options["repeat"], watch, as_json)
        else:
            config = None if random is None else random_config(**random)
            name = model or ("demo" if random is None else ",".join(f"{k}={v}" for k, v in random.items()))
            try:
                result = measure(BenchOptions(model=name, random=config, **options), watch)
            except PromptTooLong as error:
                raise click.UsageError(f"--prompt or --question with --tokens: {error}") from error
            lines = json.dumps(asdict(result), indent=2) if as_json else "\n".join(table(result))
    click.echo(lines)


def _run_suite(name: str, repeat: int, watch: Any, as_json: bool) -> str:
    try:
        from benchmarks.suite import run_suite
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise EngineUnavailable(
            f"--suite needs the folder benchmarks/, which is not part of the installed package: "
            f"run python -m bot bench --suite {name} in a checkout of the repository"
        ) from error
    return run_suite(name, repeat, watch, as_json=as_json)


def table(result: BenchResult) -> Iterator[str]:
    """Yield the lines for people."""
    info, machine = result.info, result.machine
    quantization = "not quantized" if info.quantization == "none" else info.quantization
    yield (
        f"{info.model} · {quantization} · {info.dtype} on {machine['device']} ({machine['device_name']}), "
        f"threads: {machine['threads']} · torch {machine['torch']}, Python {machine['python']}"
    )
    for row in result.measurements:
        spread = "" if row.value.low == row.value.high else f"{_digits(row.value.low)} to {_digits(row.value.high)}"
        yield f"{row.name:<32} {_digits(row.value.median):>10} {row.unit:<6} {spread}".rstrip()


def _digits(value: float) -> str:
    """Format with at least three digits.

    >>> _digits(12345.6), _digits(45.67), _digits(1.234)
    ('12,346', '45.7', '1.23')
    """
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"

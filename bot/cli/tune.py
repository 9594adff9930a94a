"""`bot tune`: train a P-Tuning v2 prefix, evaluate it, try it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bot.cli.common import check_export, load, progress_bar, redacted, with_config
from bot.errors import EngineUnavailable

if TYPE_CHECKING:
    from bot.engine.chatglm.weights import Quantization
    from bot.engine.tuning.data import Columns, Dataset
    from bot.engine.tuning.recipe import Recipe
    from bot.engine.tuning.trainer import StepResult

_FILES = click.Path(path_type=Path)
_AT_LEAST_1 = click.IntRange(min=1)
_AT_LEAST_3 = click.IntRange(min=3)  # an answer has <sop> and <eop> beside its first token


@click.group()
def tune() -> None:
    """Train a prefix on your own questions and answers (P-Tuning v2)."""


def of_data(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what is in a file of data."""
    for option in (
        click.option("--source-prefix", help="Text in front of every question.  Default: none."),
        click.option("--history-column", help="Column of earlier [question, answer] pairs.  Default: none."),
        click.option("--response-column", help='Column of answers.  Default: "response".'),
        click.option("--prompt-column", help='Column of questions.  Default: "prompt".'),
        click.option(
            "--preset", type=click.Choice(["ad", "chat"]), help="Defaults of train.sh (ad) or train_chat.sh (chat)."
        ),
    ):
        command = option(command)
    return command


def of_model(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
        click.option(
            "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
        ),
        click.option("--quantization", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True),
    ):
        command = option(command)
    return command


@tune.command("data")
@with_config
@click.argument("file", type=_FILES)
def write_data(path: Path | None, file: Path) -> None:
    """Write questions and answers with more 👍 than 👎 to FILE (.jsonl), which must not exist, of people who agreed."""
    from bot.storage.master_key import MasterKeys
    from bot.storage.votes_export import rated_answers, training_lines

    loaded = load(path)
    check_export(loaded.config)
    storage = loaded.config.storage
    with redacted(loaded):
        lines = list(training_lines(rated_answers(storage.url.get_secret_value(), MasterKeys.of(storage))))
        try:
            file.touch(0o600, exist_ok=False)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"{len(lines)} answers written to {file}.")


@tune.command()
@click.option(
    "--data", "files", type=_FILES, multiple=True, required=True, help="JSON lines or CSV; several are joined."
)
@click.option("--validation", type=_FILES, multiple=True, help="Data whose loss is computed at each checkpoint.")
@click.option("--output", type=_FILES, required=True, help="Folder to write; engine.ptuning takes it.")
@click.option("--model", default="demo", show_default=True, help='"demo", a folder or a Hugging Face name.')
@of_data
@of_model
@click.option("--prefix-length", type=_AT_LEAST_1, help="Tokens of the prefix.  Default: 128.")
@click.option("--projection", is_flag=True, help="Train an MLP that generates the prefix: 33 times the memory.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Default: 0.02.")
@click.option("--max-steps", type=_AT_LEAST_1, help="Default: 3000.")
@click.option("--batch-size", type=_AT_LEAST_1, help="Rows per micro-batch.  Default: 1.")
@click.option("--accumulation", type=_AT_LEAST_1, help="Micro-batches per step.  Default: 16.")
@click.option("--max-source-length", "source_length", type=_AT_LEAST_3, help="Tokens of a prompt.  Default: 64.")
@click.option("--max-target-length", "target_length", type=_AT_LEAST_3, help="Tokens of an answer.  Default: 64.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Dropout of the prefix.  Default: 0.1.")
@click.option("--seed", type=int, help="Default: 42.")
@click.option(
    "--save-every", type=_AT_LEAST_1, default=1000, show_default=True, help="Steps; the last is always saved."
)
@click.option("--recompute/--no-recompute", default=True, help="Recompute activations: less memory, more time.")
@click.option("--resume", is_flag=True, help="Continue the training that --output holds.")
@click.option("--dry-run", is_flag=True, help="Print lengths and memory, and stop.")
def train(
    files: tuple[Path, ...],
    validation: tuple[Path, ...],
    output: Path,
    model: str,
    quantization: Quantization,
    dtype: Any,
    device: str,
    save_every: int,
    recompute: bool,
    resume: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a prefix; the model's weights stay as they are.

    Ctrl-C ends the training after the current step and saves it; --resume continues it.
    """
    with _packages():
        from bot.engine.tuning.base import open_base
        from bot.engine.tuning.checkpoints import OutputFolder
        from bot.engine.tuning.curve import EventFiles, draw
        from bot.engine.tuning.data import read_data
        from bot.engine.tuning.memory import check, training_need
        from bot.engine.tuning.prefix import new_prefix
        from bot.engine.tuning.rows import encode
        from bot.engine.tuning.trainer import Trainer, Training
    recipe, columns = _choose(options)
    data = read_data(files, columns)
    held_out = read_data(validation, columns) if validation else None
    base = open_base(model, quantization=quantization, dtype=dtype, device=device)
    recipe.check(base.config)
    with progress_bar() as show:
        rows, lengths = encode(data.pairs, base.tokenizer, recipe.limits, partial(show, "Encoding"))
        validation_rows = [] if held_out is None else encode(held_out.pairs, base.tokenizer, recipe.limits)[0]
    _say(_count(data))
    for line in lengths.lines(recipe.limits):
        _say(line)
    need = training_need(base.config, quantization, base.dtype, recipe, recompute=recompute, tokens=max(map(len, rows)))
    _say(f"memory: about {need} on {base.device}")
    if dry_run:
        return
    folder = OutputFolder(output)
    folder.prepare(resume=resume)
    check(need, base.device)
    with progress_bar() as show:
        network = base.read(partial(show, "Loading the model"))
    prefix = new_prefix(base.config, recipe.prefix_length, projection=recipe.projection, seed=recipe.seed)
    facts = {
        "model": model,
        "fingerprint": base.fingerprint(),
        "quantization": base.kind,
        "dtype": str(base.dtype).removeprefix("torch."),
        "data": data.digest,
        "recipe": recipe.as_json(),
    }
    trainer = Trainer(network, prefix, recipe, recompute=recompute)
    training = Training(trainer, rows, validation_rows, folder, facts, save_every)
    events = EventFiles(output, max(folder.steps(), default=0) + 1)
    try:
        with _interruptible() as stopped, _watch(recipe.max_steps, str(base.device)) as watch:

            def on_step(result: StepResult) -> None:
                events.add(result.as_json())
                watch(result)

            log = training.run(on_step, stopped)
    finally:
        events.close()
    if log:
        draw(log, output)
        _say(f"step {log[-1]['step']} of {recipe.max_steps}, loss {log[-1]['loss']:.4f}, saved in {output}")
    if trainer.steps < recipe.max_steps:
        _say("interrupted: the same command with --resume continues")
        sys.exit(130)
    _say(f'serve it:  engine.model = "{model}", engine.ptuning = "{output}"')


@tune.command()
@click.argument("folder", type=_FILES)
@click.option(
    "--data", "files", type=_FILES, multiple=True, required=True, help="JSON lines or CSV; several are joined."
)
@click.option("--model", help="Base model; by default the one it was trained on.")
@click.option("--output", type=_FILES, help="Folder of the predictions; by default FOLDER.")
@of_data
@of_model
@click.option("--max-source-length", "source_length", type=_AT_LEAST_3, help="Default: as trained.")
@click.option("--max-target-length", "target_length", type=_AT_LEAST_3, help="Default: as trained.")
@click.option("--sample", is_flag=True, help="Sample (top-p 0.7, temperature 0.95) instead of greedy decoding.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--batch-size", type=_AT_LEAST_1, default=8, show_default=True, help="Sequences decoded together.")
@click.option("--base/--no-base", default=True, help="Evaluate the model without the prefix too.")
def evaluate(
    folder: Path,
    files: tuple[Path, ...],
    model: str | None,
    output: Path | None,
    quantization: Quantization,
    dtype: Any,
    device: str,
    sample: bool,
    seed: int,
    batch_size: int,
    base: bool,
    **options: Any,
) -> None:
    """Score the answers with the prefix in FOLDER: BLEU-4 and ROUGE."""
    with _packages():
        from bot.domain import SamplingParams
        from bot.engine.chatglm.loading import load
        from bot.engine.tuning.base import open_base, trained_on
        from bot.engine.tuning.data import read_data
        from bot.engine.tuning.evaluation import GREEDY, Evaluation, predict, write
        from bot.engine.tuning.evaluation import evaluate as score
        from bot.engine.tuning.metrics import NAMES, Scorer
        from bot.engine.tuning.recipe import trained_with
    scorer = Scorer()
    given = {name: options.pop(name) for name in ("source_length", "target_length")}
    recipe = trained_with(folder)
    _, columns = _choose(options)
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    data = read_data(files, columns)
    opened = open_base(model or trained_on(folder), quantization=quantization, dtype=dtype, device=device)
    opened.check_prefix(folder)
    recipe.check(opened.config)
    sampling = SamplingParams() if sample else GREEDY

    def run(ptuning: Path | None, phase: str) -> Evaluation:
        with progress_bar() as show:
            loaded = load(
                opened.checkpoint.folder,
                quantization=quantization,
                dtype=dtype,
                device=device,
                slots=batch_size,
                ptuning=ptuning,
                name=opened.model,
            )
            predictions = predict(
                loaded,
                opened.tokenizer,
                data.pairs,
                recipe.limits,
                sampling=sampling,
                seed=seed,
                notice=partial(show, phase),
            )
        return score(predictions, scorer)

    found = {"prefix": run(folder, "Answering with the prefix")}
    if base:
        found["base model"] = run(None, "Answering without it")
    write(found["prefix"], output or folder)
    click.echo(f"{'':<12}" + "".join(f"{name:>10}" for name in (*NAMES, "exact", "empty")) + f"   of {len(data.pairs)}")
    for name, each in found.items():
        cells = "".join(f"{each.scores[score_name]:>10.2f}" for score_name in NAMES)
        click.echo(f"{name:<12}{cells}{each.exact:>10}{each.empty:>10}")


@tune.command()
@click.argument("folder", type=_FILES)
@click.option("--model", help="Base model; by default the one it was trained on.")
@of_model
def chat(folder: Path, model: str | None, quantization: str, dtype: str, device: str) -> None:
    """Talk to the model with the prefix in FOLDER; an empty line begins a new conversation."""
    with _packages():
        from bot.engine import ChatModel
        from bot.engine.tuning.base import open_base, trained_on
    name = model or trained_on(folder)
    open_base(name, device=device).check_prefix(folder)
    options = {"ptuning": str(folder), "quantization": quantization, "dtype": dtype, "device": device}
    with ChatModel(name, **options) as loaded:
        history: list[tuple[str, str]] = []
        while True:
            try:
                question = click.prompt(">", prompt_suffix=" ", default="", show_default=False)
            except click.Abort:  # the end of the input
                return
            if not question:
                history = []
                continue
            written = ""
            for response, turns in loaded.stream_chat(question, history):
                click.echo(response[len(written) :], nl=False)
                written, history = response, turns
            click.echo()


def _choose(options: dict[str, Any]) -> tuple[Recipe, Columns]:
    """Return the preset's recipe and columns, with the given options in their place."""
    from bot.engine.tuning.data import Columns
    from bot.engine.tuning.recipe import PRESETS, Recipe

    preset = PRESETS.get(options.pop("preset") or "")
    recipe, columns = (preset.recipe, preset.columns) if preset else (Recipe(), Columns())
    names = {
        "prompt_column": "question",
        "response_column": "answer",
        "history_column": "history",
        "source_prefix": "source_prefix",
    }
    given = {name: value for name, value in options.items() if value is not None}
    columns = replace(columns, **{names[name]: given.pop(name) for name in names if name in given})
    return replace(recipe, **given), columns


def _count(data: Dataset) -> str:
    left_out = f"; {data.empty} without question or answer are left out" if data.empty else ""
    return f"{len(data.pairs)} rows{left_out}"


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bot."):
            raise
        raise EngineUnavailable(
            f"tune needs the package {error.name}, which is not installed: python -m pip install chatglm-bot"
        ) from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield whether SIGINT or SIGTERM came; a second SIGINT interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            signal.default_int_handler(number, None)
        stop.set()
        _say("\nending after this step …")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watch(steps: int, device: str) -> Iterator[Callable[[StepResult], None]]:
    """Yield a function that shows a step: a bar on a terminal, elsewhere a line every tenth."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from bot.engine.tuning.memory import used

    began = time.monotonic()
    tokens = 0
    with progress_bar(MofNCompleteColumn(), TimeRemainingColumn()) as show:

        def watch(result: StepResult) -> None:
            nonlocal tokens
            tokens += result.tokens
            speed = tokens / max(time.monotonic() - began, 1e-9)
            line = f"loss {result.loss:.4f} · {speed:,.0f} tokens/s · {used(device) / 2**30:.2f} GiB"
            show(line, result.step, steps)
            if not sys.stderr.isatty() and (result.step % 10 == 0 or result.step in (1, steps)):
                _say(f"step {result.step}/{steps}  {line}")

        yield watch

"""ChatGLM-6B and its kin: a checkpoint, our network, and the serving loop around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from httpx2 import HTTPError  # of huggingface_hub: a cut-off download raises it as it is
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from bot.config.schema import EngineSection
from bot.domain import EngineInfo
from bot.engine.base import Progress, silent
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load, look
from bot.engine.chatglm.tokenizer import MODEL_FILE, ChatGLMTokenizer
from bot.engine.serving.engine import Loaded, ServingEngine
from bot.errors import CheckpointError, EngineUnavailable

DEMO = Path(__file__).parents[1] / "demo"

# Networks up to this hidden size are not worth sharing between cores.  At 256 on two cores
# a decode step takes 1.7 ms with one thread and 1.6 ms with two; where something else wants
# a core too, 2.6 ms and 10.8 ms.
ONE_THREAD_WIDTH = 512

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_engine(options: EngineSection, progress: Progress = silent) -> ServingEngine:
    """Make the engine; entering it finds, downloads if need be, and loads `options.model`."""

    def load_model(report: Progress) -> Loaded:
        folder = find_folder(options.model, options.revision)
        if read_config(folder).hidden_size <= ONE_THREAD_WIDTH:
            torch.set_num_threads(1)  # for the thread that calls it, which is the model's
        tokenizer = ChatGLMTokenizer.load(folder)
        model = load(
            folder,
            quantization=options.quantization,
            dtype=options.dtype,
            device=options.device,
            slots=options.max_batch_size,
            ptuning=_ptuning(options),
            context=options.context_length,
            name=options.model,
            progress=report,
        )
        info = EngineInfo(
            model=options.model,
            backend="chatglm",
            quantization=model.quantization,
            dtype=str(model.dtype).removeprefix("torch."),
            device=",".join(map(str, model.devices)),
            context_length=model.context_length,
        )
        return Loaded(model, tokenizer, info)

    return ServingEngine(load_model, max_waiting=options.max_waiting, progress=progress)


def preflight(options: EngineSection) -> None:
    """Look at what can be seen without loading; what must be downloaded is downloaded.

    Raises:
        CheckpointError: There is no such model, or it cannot be quantised so.
        EngineUnavailable: There is no such device here, not enough memory even without the
            model that has it now, or no network to download it.
    """
    look(
        find_folder(options.model, options.revision),
        quantization=options.quantization,
        dtype=options.dtype,
        device=options.device,
        slots=options.max_batch_size,
        ptuning=_ptuning(options),
        context=options.context_length,
        name=options.model,
    )


def _ptuning(options: EngineSection) -> Path | None:
    return Path(options.ptuning).expanduser() if options.ptuning else None


def find_folder(model: str, revision: str = "", download: Callable[[str, str], Path] | None = None) -> Path:
    """Find the checkpoint that `engine.model` names: "demo", a folder, or one from the hub.

    `download` fetches what a model of its kind needs, for a name and a revision.
    What was downloaded before is taken from the hub's cache, without a network too.

    Raises:
        CheckpointError: There is nothing of this name.
        EngineUnavailable: It cannot be downloaded now.
    """
    try:
        folder = DEMO if model == "demo" else Path(model).expanduser()
        is_folder = folder.is_dir()
    except (PermissionError, RuntimeError) as exc:  # RuntimeError: the ~ of nobody
        raise CheckpointError(
            f'engine.model = "{model}" cannot be looked up ({exc}): name a folder that the bot\'s user can read'
        ) from exc
    if is_folder:
        if revision:
            raise CheckpointError(
                f'engine.revision = "{revision}" is for hub names only, and engine.model = "{model}" is a folder: '
                "remove one of the two"
            )
        return folder
    if not _HUB_NAME.fullmatch(model):
        raise CheckpointError(
            f'engine.model = "{model}": there is no such folder; name one, or a model of the hub as "owner/name", or "demo"'
        )
    try:
        return (download or _download)(model, revision)
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f'engine.model = "{model}": there is no such folder here, and no such model on the hub (or it is private)'
        ) from exc
    except RevisionNotFoundError as exc:
        raise CheckpointError(
            f'engine.revision = "{revision}": {model} has no such revision; "" is the newest'
        ) from exc
    except (OSError, HTTPError) as exc:
        raise EngineUnavailable(
            f'engine.model = "{model}" is no folder here and cannot be downloaded now ({type(exc).__name__}): '
            "try again with a network, or name a folder"
        ) from exc


def _download(model: str, revision: str) -> Path:
    def fetch(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=list(patterns)))

    # The indexes first: where both forms of the weights are offered, one is enough.
    folder = fetch(["*.json", MODEL_FILE])
    if (folder / "model.safetensors.index.json").exists():
        return fetch(["*.safetensors"])
    if (folder / "pytorch_model.bin.index.json").exists():
        return fetch(["pytorch_model*.bin"])
    return fetch(["*.safetensors", "pytorch_model*.bin"])

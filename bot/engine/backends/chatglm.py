"""ChatGLM-6B backend: a checkpoint, our network and the serving loop."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bot.config.schema import EngineSection
from bot.domain import EngineInfo
from bot.engine.base import Memory, Progress, silent
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import check_load, load
from bot.engine.chatglm.tokenizer import MODEL_FILE, ChatGLMTokenizer
from bot.engine.model_folder import DEMO, find_folder, snapshot_download
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.engine.shared import SharedSection

# Networks up to this hidden size run on one thread.  At 256 on two cores a decode step takes
# 1.7 ms with one thread and 1.6 ms with two; with other load on a core, 2.6 ms and 10.8 ms.
ONE_THREAD_WIDTH = 512


def open_engine(options: EngineSection, progress: Progress = silent) -> ServingEngine:
    """Create the engine; entering it finds or downloads `options.model`, and loads it."""

    def load_model(report: Progress) -> LoadedModel:
        folder = find_checkpoint(options.model, options.revision)
        if read_config(folder).hidden_size <= ONE_THREAD_WIDTH:
            torch.set_num_threads(1)  # of the calling thread, the engine's worker
        tokenizer = ChatGLMTokenizer.load(folder)
        model = load(
            folder,
            quantization=options.quantization,
            dtype=options.dtype,
            device=options.device,
            slots=options.max_batch_size,
            ptuning=_folder(options.ptuning),
            prefixes=_prefixes(options),
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
            reads_names=folder != DEMO,  # it repeats the last message as it is
        )
        return LoadedModel(model, tokenizer, info, step_tokens=model.step_tokens)

    return ServingEngine(load_model, max_waiting=options.max_waiting, progress=progress)


def preflight(options: EngineSection, taken: Memory) -> Memory:
    """Check the model without loading its weights; downloads it if needed.

    Raises:
        CheckpointError: Unknown model, or a quantisation it does not support.
        EngineUnavailable: Unknown device, not enough memory even without the current model,
            or the download failed.
    """
    return check_load(
        find_checkpoint(options.model, options.revision),
        quantization=options.quantization,
        dtype=options.dtype,
        device=options.device,
        slots=options.max_batch_size,
        ptuning=_folder(options.ptuning),
        prefixes=_prefixes(options),
        context=options.context_length,
        name=options.model,
        taken=taken,
    )


def _prefixes(options: EngineSection) -> dict[str, Path | None]:
    if not isinstance(options, SharedSection):
        return {}
    return {name: _folder(ptuning) for name, ptuning in options.prefixes.items()}


def _folder(ptuning: str) -> Path | None:
    return Path(ptuning).expanduser() if ptuning else None


def find_checkpoint(model: str, revision: str = "") -> Path:
    """Return the folder of `engine.model`, with the files of a ChatGLM; raises as `find_folder`."""
    return find_folder(model, revision, _download)


def _download(model: str, revision: str) -> Path:
    def fetch(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=list(patterns)))

    # Index files first: if both formats are offered, only one is downloaded.
    folder = fetch(["*.json", MODEL_FILE])
    if (folder / "model.safetensors.index.json").exists():
        return fetch(["*.safetensors"])
    if (folder / "pytorch_model.bin.index.json").exists():
        return fetch(["pytorch_model*.bin"])
    return fetch(["*.safetensors", "pytorch_model*.bin"])

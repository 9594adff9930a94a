"""transformers backend: any chat model of the library, in our serving loop."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from bot.config.schema import EngineSection
from bot.domain import EngineInfo
from bot.engine.backends.chatglm import ONE_THREAD_WIDTH
from bot.engine.base import Memory, Progress, silent
from bot.engine.chatglm.loading import find_device
from bot.engine.memory_available import available_bytes
from bot.engine.model_folder import find_folder
from bot.engine.pretrained.causal import PretrainedForServing
from bot.engine.pretrained.loading import (
    context_of,
    dtype_of,
    load_network,
    load_tokenizer,
    read_config,
    route_library_logs,
    stored_quantization,
)
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.errors import CheckpointError, EngineUnavailable
from bot.util.files import shown

_OTHER_FORMAT = "consolidated*"  # weights in the authors' own format, which some folders hold too


def open_engine(options: EngineSection, progress: Progress = silent) -> ServingEngine:
    """Create the engine; entering it finds or downloads `options.model`, and loads it."""

    def load_model(report: Progress) -> LoadedModel:
        route_library_logs()
        device = _device_of(options)
        folder = find_folder(options.model, options.revision, _download)
        config = read_config(folder)
        quantization = stored_quantization(config) or options.quantization
        if config.get_text_config().hidden_size <= ONE_THREAD_WIDTH:
            torch.set_num_threads(1)  # of the calling thread, the engine's worker
        tokenizer = load_tokenizer(folder, config)
        network = load_network(
            folder,
            config,
            quantization=options.quantization,
            dtype=dtype_of(config, options.dtype, device, quantization),
            device=device,
            progress=report,
        )
        model = PretrainedForServing(
            network, slots=options.max_batch_size, context_length=context_of(config, options.context_length)
        )
        info = EngineInfo(
            model=options.model,
            backend="transformers",
            quantization=quantization,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            context_length=model.context_length,
        )
        return LoadedModel(model, tokenizer, info, tokenizer.thoughts)

    return ServingEngine(load_model, max_waiting=options.max_waiting, progress=progress)


def preflight(options: EngineSection, taken: Memory) -> Memory:
    """Check the model without loading its weights; downloads it if needed.  Return the bytes of its weights.

    Raises:
        CheckpointError: Unknown model, or one that is not supported.
        EngineUnavailable: Unknown device, not enough memory even without the current model, or the
            download failed.
    """
    device = _device_of(options)
    folder = find_folder(options.model, options.revision, _download)
    needed = _weight_bytes(folder, read_config(folder), options, device)
    free = available_bytes(device, as_if_alone=True)
    if free is not None and needed > (free := max(free - taken.get(str(device), 0), 0)):
        raise EngineUnavailable(
            f'engine.model = "{shown(options.model)}" needs {needed / 2**30:.1f} GiB for its weights, but {device} has only '
            f"{free / 2**30:.1f} GiB free: free memory, set engine.quantization if it is none, or choose a smaller model"
        )
    return {str(device): needed}


def _weight_bytes(folder: Path, config: PretrainedConfig, options: EngineSection, device: torch.device) -> int:
    """Return about the bytes of the loaded weights, rather too few: some layers are not quantised."""
    files = (file for file in folder.glob("*.safetensors") if not file.match(_OTHER_FORMAT))
    stored, kind = sum(file.stat().st_size for file in files), config.dtype
    if stored_quantization(config) or not isinstance(kind, torch.dtype):
        return stored
    dtype = dtype_of(config, options.dtype, device, options.quantization)
    bits = {"int8": 8, "int4": 4}.get(options.quantization, 8 * dtype.itemsize)
    return stored * bits // (8 * kind.itemsize)


def _device_of(options: EngineSection) -> torch.device:
    if options.ptuning:
        raise CheckpointError('engine.ptuning only works with engine.backend = "chatglm": set it to ""')
    if "," in options.device:
        raise EngineUnavailable(
            f'engine.device = "{options.device}": engine.backend = "transformers" uses one device; name only one'
        )
    return find_device(options.device)


def _download(model: str, revision: str) -> Path:
    return Path(
        snapshot_download(
            model,
            revision=revision or None,
            allow_patterns=["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"],
            ignore_patterns=["original/*", _OTHER_FORMAT],
        )
    )

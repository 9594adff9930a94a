"""Load a transformers checkpoint; a checkpoint's own code never runs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as library
from transformers.utils.import_utils import is_bitsandbytes_available

from bot.engine.base import Progress, silent
from bot.engine.pretrained.text import ChatTokenizer
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import CheckpointError, EngineUnavailable
from bot.util.files import open_regular, read_json_object, shown

# Default limit: the cache of some models' full context exceeds any device's memory.
CONTEXT_LENGTH = 8192

_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def read_config(folder: Path) -> PretrainedConfig:
    """Read `config.json`, and check that its model can be served.

    Raises:
        CheckpointError: It is missing, or the model is not supported.
    """
    check_files(folder)
    fields = read_json(folder, "config.json")
    kind = fields.get("model_type")
    kind = kind if kind is None else shown(str(kind))  # it may be a list
    if kind == "chatglm":
        raise CheckpointError(
            f'{folder} holds a ChatGLM: set engine.backend = "chatglm" for ChatGLM-6B; for GLM-4 choose the transformers '
            "version, whose name ends in -hf"
        )
    if kind not in CONFIG_MAPPING:
        if "auto_map" in fields:
            raise CheckpointError(
                f"{folder} needs its own code (auto_map in its config.json), which is never run: choose a version that "
                "the transformers library supports, for example one whose name ends in -hf"
            )
        raise CheckpointError(
            f"{folder}/config.json: unknown model_type {kind!r} for the installed transformers: choose another model, or "
            "update transformers"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CheckpointError(f'{folder}: model_type "{kind}" does not generate text: choose a chat model')
    with map_errors(folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    kinds = frozenset(getattr(config.get_text_config(), "layer_types", None) or ())
    if other := sorted(kinds - _SERVED_LAYERS):
        raise CheckpointError(
            f'{folder}: model_type "{kind}" has {other[0]} layers, which are not supported: choose a model with attention '
            "in all layers"
        )
    return config


def load_network(
    folder: Path,
    config: PretrainedConfig,
    *,
    quantization: str = "none",
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress = silent,
) -> PreTrainedModel:
    """Load the weights onto the device; `progress` gets bytes read and total bytes.

    A quantised checkpoint is loaded as stored and requires `quantization` "none".

    Raises:
        CheckpointError: The folder is incomplete or not supported.
        EngineUnavailable: The quantisation needs a package that is not installed.
    """
    stored = stored_quantization(config)
    if stored and quantization != "none":
        raise CheckpointError(
            f'{folder} is already quantised ({stored}): set engine.quantization = "none" instead of "{quantization}"'
        )
    files = weight_files(folder)
    quantiser = _quantiser(quantization, dtype)
    with map_errors(folder), report_progress(progress, sum(file.stat().st_size for file in files)):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantiser,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    return complete_network(folder, loaded)


def complete_network(folder: Path, loaded: object, ignored: str = "") -> PreTrainedModel:
    """Return the network of what the library loaded, with `output_loading_info`.

    Tensors whose names begin with `ignored` may be missing.

    Raises:
        CheckpointError: Others are, which the library fills with random numbers and only warns.
    """
    network, info = cast("tuple[PreTrainedModel, dict[str, set[object]]]", loaded)
    names = sorted(map(str, info["missing_keys"] | info["mismatched_keys"]))
    missing = [name for name in names if not (ignored and name.startswith(ignored))]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the model's tensors, for example {missing[0]}: download it again"
        )
    return network


def load_tokenizer(folder: Path, config: PretrainedConfig) -> ChatTokenizer:
    """Load the tokenizer, its chat template and the stop ids.

    Raises:
        CheckpointError: It is missing, or has no chat template.
    """
    with map_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # As the library's generate(): the tokenizer's own eos often ends a document, not an answer.
    generation = "generation_config.json"
    fields = read_json(folder, generation) if (folder / generation).exists() else {}
    named = fields.get("eos_token_id", getattr(config.get_text_config(), "eos_token_id", None))
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return ChatTokenizer(tokenizer, frozenset(end for end in ends if isinstance(end, int)), str(folder))


def context_of(config: PretrainedConfig, wanted: int = 0) -> int:
    """Return the tokens per sequence: `wanted`, or at most 8192, capped by the model's own limit."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or CONTEXT_LENGTH
    rope = getattr(text, "rope_parameters", None) or {}
    # These change the RoPE of a whole step as soon as one token is beyond this length.
    if rope.get("rope_type") in {"dynamic", "longrope"}:
        longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    return int(min(wanted or CONTEXT_LENGTH, longest))


def stored_quantization(config: PretrainedConfig) -> str | None:
    """Return the checkpoint's quantisation method, or None."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored.quant_method
    return str(getattr(method, "value", method))


def dtype_of(config: PretrainedConfig, wanted: str, device: torch.device, quantization: str) -> torch.dtype:
    """Resolve "auto".

    On a GPU: bfloat16 if model and GPU support it, else float16.  On a CPU: float32, or
    bfloat16 with quantised weights.
    """
    if wanted != "auto":
        found = getattr(torch, wanted)
        assert isinstance(found, torch.dtype)
        return found
    if device.type == "cpu":
        return torch.float32 if quantization == "none" else torch.bfloat16
    can = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if can and config.dtype in {torch.bfloat16, torch.float32} else torch.float16


def _quantiser(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if kind == "none":
        return None
    if not is_bitsandbytes_available():
        raise EngineUnavailable(
            f'engine.quantization = "{kind}" with engine.backend = "transformers" needs the package bitsandbytes: '
            'run python -m pip install "chatglm-bot[transformers]", or set it to "none"'
        )
    # torchao's int4 matmul on a CPU needs a package that its wheel lacks (0.18); its int8 one is slower.
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files.

    Raises:
        CheckpointError: There are none, or pickle files only.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = "only pickle files (.bin), which can run code" if any(folder.glob("*.bin")) else "no weights"
        raise CheckpointError(f"{folder} holds {found}: choose a version of the model with .safetensors files")
    return files


def check_files(folder: Path) -> None:
    """Check that the library, which opens any of these, finds only regular files.

    Raises:
        CheckpointError: One is something else, or cannot be read.
    """
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if not path.is_dir():
                open_regular(path).close()
    except PermissionError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc.strerror}): let the bot's user read it") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc.strerror}): remove it, or download it again") from exc


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return read_json_object(folder / name)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{folder} has no {name}: it is not a model folder") from exc
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder}/{name} cannot be read ({exc}): download it again") from exc


def route_library_logs() -> None:
    """Send the library's log lines to the program's handlers."""
    library.disable_default_handler()
    library.enable_propagation()
    # It warns at every matmul that int8 casts to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def map_errors(folder: Path) -> Iterator[None]:
    """Translate the library's errors into CheckpointError or EngineUnavailable; out of memory passes."""
    try:
        yield
    except ImportError as exc:
        raise EngineUnavailable(f"{folder} cannot be loaded, a package is missing: {_first_line(exc)}") from exc
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as exc:
        if is_out_of_memory(exc):
            raise
        raise CheckpointError(
            f"{folder} cannot be loaded ({type(exc).__name__}: {_first_line(exc)}): download it again, or choose another"
        ) from exc


@contextmanager
def report_progress(progress: Progress, total: int) -> Iterator[None]:
    """Report models that load inside to `progress`, scaled to `total` bytes, and show no bar of the library's."""

    def counted(items: Any) -> Iterator[Any]:
        count = max(len(items), 1) if isinstance(items, Sized) else 1
        for done, item in enumerate(items):
            progress(total * min(done, count) // count, total)
            yield item

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # The library iterates over this bar, one tensor of the model per step.
        is_loading = options.get("desc") == "Loading weights"
        return counted(*args) if is_loading else library.EmptyTqdm(*args, **options)

    before = library.set_tqdm_hook(hook)
    try:
        yield
    finally:
        library.set_tqdm_hook(before)
    progress(total, total)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given").rstrip(".")

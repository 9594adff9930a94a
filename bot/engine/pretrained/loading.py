"""One call from a folder to a model that serves; code of a checkpoint is never run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

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
from transformers.utils.import_utils import is_bitsandbytes_available

from bot.engine.base import Progress, silent
from bot.engine.pretrained.progress import reported
from bot.engine.pretrained.text import ChatTokenizer
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import CheckpointError, EngineUnavailable

# Some models were made for contexts whose cache would fill the device several times over.
CONTEXT_LENGTH = 8192

_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def read_config(folder: Path) -> PretrainedConfig:
    """Read `config.json`, and see whether its model can be served here.

    Raises:
        CheckpointError: It cannot, or is not there.
    """
    numbers = _json(folder, "config.json")
    kind = numbers.get("model_type")
    if kind == "chatglm":
        raise CheckpointError(
            f'{folder} holds a ChatGLM: set engine.backend = "chatglm" for ChatGLM-6B; of GLM-4 there is a form that the '
            "transformers library knows, whose name ends in -hf"
        )
    if kind not in CONFIG_MAPPING:
        if "auto_map" in numbers:
            raise CheckpointError(
                f"{folder} holds a model that runs by code of its own (auto_map in its config.json), and code of a "
                "checkpoint is never run: choose a form of it that the transformers library knows, such as one whose name "
                "ends in -hf"
            )
        raise CheckpointError(
            f"{folder}/config.json has the model_type {kind!r}, which the transformers library here does not know: choose "
            "another model, or a newer transformers"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CheckpointError(f'{folder} holds a model of the type "{kind}", which writes no text: choose a chat model')
    with _translated(folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    kinds = frozenset(getattr(config.get_text_config(), "layer_types", None) or ())
    if other := sorted(kinds - _SERVED_LAYERS):
        raise CheckpointError(
            f'{folder} holds a model of the type "{kind}", whose layers of the kind {other[0]} cannot be served: choose one '
            "with attention in all layers"
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
    """Load the weights, straight to the device; `progress` is told bytes, of the files' sizes.

    A checkpoint that is quantised already is loaded as it is, and wants `quantization` "none".

    Raises:
        CheckpointError: The folder misses something or holds something else.
        EngineUnavailable: A package is missing that the quantisation needs.
    """
    stored = stored_quantization(config)
    if stored and quantization != "none":
        raise CheckpointError(
            f'{folder} is quantised already ({stored}), so engine.quantization = "{quantization}" cannot be: '
            'set it to "none"'
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = "only pickles (.bin), which may hold code" if any(folder.glob("*.bin")) else "no weights"
        raise CheckpointError(f"{folder} holds {found}: choose a form of the model with .safetensors files")
    quantiser = _quantiser(quantization, dtype)
    with _translated(folder), reported(progress, sum(file.stat().st_size for file in files)):
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
    # The library would fill these with random numbers and a warning.
    network, info = cast("tuple[PreTrainedModel, dict[str, set[object]]]", loaded)
    missing = sorted(map(str, info["missing_keys"] | info["mismatched_keys"]))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} for one: download it again"
        )
    return network


def load_tokenizer(folder: Path, config: PretrainedConfig) -> ChatTokenizer:
    """Load the tokenizer with its chat template, and see what ends an answer.

    Raises:
        CheckpointError: There is none, or it has no chat template.
    """
    with _translated(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # What the library's generate() goes by; the tokenizer's own end is often that of a text, not of an answer.
    generation = "generation_config.json"
    numbers = _json(folder, generation) if (folder / generation).exists() else {}
    named = numbers.get("eos_token_id", getattr(config.get_text_config(), "eos_token_id", None))
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return ChatTokenizer(tokenizer, frozenset(end for end in ends if isinstance(end, int)), str(folder))


def context_of(config: PretrainedConfig, wanted: int = 0) -> int:
    """Tokens that a sequence may have: `wanted`, or 8192 at most, and never more than the model was made for."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or CONTEXT_LENGTH
    rope = getattr(text, "rope_parameters", None) or {}
    # These turn all tokens of a step in another way as soon as one of them is beyond this.
    if rope.get("rope_type") in {"dynamic", "longrope"}:
        longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    return int(min(wanted or CONTEXT_LENGTH, longest))


def stored_quantization(config: PretrainedConfig) -> str | None:
    """Name how the checkpoint is quantised, if it is."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored.quant_method
    return str(getattr(method, "value", method))


def dtype_of(config: PretrainedConfig, wanted: str, device: torch.device, quantization: str) -> torch.dtype:
    """Resolve "auto": on a GPU bfloat16 if the model has it and the GPU too, else float16; on a CPU
    float32, or bfloat16 with quantised weights.
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
            'python -m pip install "chatglm-bot[transformers]" brings it, or set it to "none"'
        )
    # torchao's int4 product for a CPU wants a package that its wheel does not bring (0.18),
    # and its int8 one was slower there than this.
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _json(folder: Path, name: str) -> dict[str, object]:
    try:
        found = json.loads((folder / name).read_bytes())
    except FileNotFoundError as exc:
        raise CheckpointError(f"{folder} has no {name}: it is no model's folder") from exc
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder}/{name} cannot be read ({exc}): download it again") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder}/{name} holds no table: download it again")
    return found


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Turn what the library raises at a folder into one sentence."""
    try:
        yield
    except ImportError as exc:
        raise EngineUnavailable(f"{folder} cannot be loaded here: {_first_line(exc)}") from exc
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given").rstrip(".")

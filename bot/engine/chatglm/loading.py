"""One call from a folder to a model that serves, and one for random weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bot.engine.chatglm import memory
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.weights import (
    PREFIX,
    Progress,
    Quantization,
    bits_of,
    build_network,
    check_heads,
    check_quantization,
    expected_shapes,
    prefix_length,
    read_network,
    read_prefix,
    stored_config,
    stored_quantization,
)
from bot.engine.kernels import Int4, Int8, Quantised
from bot.engine.kernels.reference import group_of
from bot.engine.memory_available import free_bytes
from bot.errors import CheckpointError, EngineUnavailable

log = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    folder: Path,
    *,
    quantization: Quantization = "none",
    dtype: DType = "auto",
    device: str = "auto",
    slots: int = 8,
    ptuning: Path | None = None,
    half_angles: bool = False,
    context: int = 0,
    name: str = "",
    progress: Progress | None = None,
) -> ChatGLMForServing:
    """Load a checkpoint folder; `progress` is called with the bytes read and the bytes there are.

    A checkpoint that is int8 or int4 already is recognised by itself and wants
    `quantization` "none".  `ptuning` is a folder with a P-Tuning v2 prefix for it.  A
    `context` shorter than the model's needs less memory; 0 is the model's.  `name` is what
    people call the model, if not by its folder.

    Raises:
        CheckpointError: The folder misses something or holds something else.
        EngineUnavailable: There is no such device here, or it has not enough memory.
    """
    checkpoint, config, places = _opened(folder, quantization, device, context)
    kind = quantization if quantization != "none" else stored_quantization(config)
    prefix = _prefix(checkpoint if ptuning is None else Checkpoint(ptuning), config, needed=ptuning is not None)
    tokens = 0 if prefix is None else prefix.shape[3]
    log.info("%s", _check_memory(name or folder.name, config, quantization, dtype, places, slots, tokens, free_bytes))
    network = read_network(
        checkpoint,
        config,
        quantization=quantization,
        dtype=find_dtype(dtype, places[0], kind),
        device=places[0],
        more_devices=places[1:],
        half_angles=half_angles,
        progress=progress,
    )
    return ChatGLMForServing(network, slots=slots, quantization=kind, prefix=prefix, stretches=len(places))


def look(
    folder: Path,
    *,
    quantization: Quantization,
    dtype: DType,
    device: str,
    slots: int,
    ptuning: Path | None,
    context: int,
    name: str,
) -> None:
    """Find out whether `load` could work once the model that runs now is gone, without reading tensors.

    Raises:
        As `load`, for what can be seen without them.
    """
    checkpoint, config, places = _opened(folder, quantization, device, context)
    prefix = prefix_length(checkpoint if ptuning is None else Checkpoint(ptuning))
    _check_memory(
        name, config, quantization, dtype, places, slots, prefix, lambda device: free_bytes(device, as_if_alone=True)
    )


def _opened(
    folder: Path, quantization: Quantization, device: str, context: int
) -> tuple[Checkpoint, ChatGLMConfig, list[torch.device]]:
    config = read_config(folder)
    places = find_devices(device, config.num_layers)
    check_quantization(folder, config, quantization)
    checkpoint = Checkpoint(folder)
    config = stored_config(checkpoint, config)
    check_heads(checkpoint, config)
    if context:
        config = replace(config, max_sequence_length=min(context, config.max_sequence_length))
    return checkpoint, config, places


def _check_memory(
    name: str,
    config: ChatGLMConfig,
    quantization: Quantization,
    dtype: DType,
    places: list[torch.device],
    slots: int,
    prefix: int,
    free: memory.Free,
) -> str:
    def setup(kind: Quantization) -> memory.Setup:
        held = kind if kind != "none" else stored_quantization(config)
        return memory.Setup(config, kind, find_dtype(dtype, places[0], held), tuple(places), slots, prefix)

    return memory.check(setup(quantization), name, free, setup)


def load_random(
    config: ChatGLMConfig,
    *,
    quantization: Quantization = "none",
    dtype: DType = "auto",
    device: str = "auto",
    slots: int = 8,
    seed: int = 0,
) -> ChatGLMForServing:
    """Make a model of `config`'s dimensions with random weights: for measuring and for tests.

    Raises:
        EngineUnavailable: There is no such device here.
    """
    places = find_devices(device, config.num_layers)
    shapes = expected_shapes(config)
    random = torch.Generator(places[0]).manual_seed(seed)

    def matrix(name: str) -> Tensor | Quantised:
        rows, columns = shapes[name]
        bits = bits_of(config, name, quantization)
        if bits == 0:
            return torch.randn(rows, columns, generator=random, device=random.device).mul_(columns**-0.5)
        return random_quantised(rows, columns, bits, random)

    def vector(name: str) -> Tensor:
        return torch.full(shapes[name], 1.0 if name.endswith("norm.weight") else 0.0)

    network = build_network(
        config,
        matrix,
        vector,
        dtype=find_dtype(dtype, places[0], quantization),
        device=places[0],
        more_devices=places[1:],
    )
    return ChatGLMForServing(network, slots=slots, quantization=quantization, stretches=len(places))


def random_quantised(rows: int, columns: int, bits: int, random: torch.Generator) -> Quantised:
    """Draw a matrix as if quantised from normal weights with a variance of 1 / columns, on the device of `random`."""

    device = random.device

    def drawn(width: int) -> Tensor:
        return torch.randint(-128, 128, (rows, width), dtype=torch.int8, generator=random, device=device)

    # Bytes and nibbles drawn evenly vary by 74 and by 4.6 steps.
    if bits == 8:
        return Int8(drawn(columns), torch.full((rows, 1), columns**-0.5 / 74, device=device))
    groups = columns // (group_of(columns) or columns)
    scale = torch.full((rows, groups), columns**-0.5 / 4.6, dtype=torch.bfloat16, device=device)
    return Int4(drawn(columns // 2), scale, scale / 2)


def find_devices(names: str, layers: int) -> list[torch.device]:
    """Turn `engine.device`, one name or several with commas between, into devices that share the layers.

    Raises:
        EngineUnavailable: One of them is not here, or they are more than the layers.
    """
    found = [find_device(name.strip()) for name in names.split(",")]
    if len(found) > layers:
        raise EngineUnavailable(
            f'engine.device = "{names}" names {len(found)} devices, and the model has {layers} layers: name fewer'
        )
    return found


def find_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that is here.

    Raises:
        EngineUnavailable: It is not here, or there is no such name.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise EngineUnavailable(f'engine.device = "{name}" is no device: use auto, cpu, cuda, cuda:1 or mps') from exc
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise EngineUnavailable(
            f'engine.device = "{name}", and torch {torch.__version__} finds no such device here: use auto or cpu'
        )
    return device


def find_dtype(name: DType, device: torch.device, quantization: Quantization) -> torch.dtype:
    """Resolve "auto": float16 on a GPU; on a CPU float32, or bfloat16 with quantised weights."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    # The packed products are fast with bfloat16 activations only.
    return torch.float32 if quantization == "none" else torch.bfloat16


def _prefix(checkpoint: Checkpoint, config: ChatGLMConfig, *, needed: bool) -> Tensor | None:
    prefix = read_prefix(checkpoint, config)
    if prefix is None and needed:
        raise CheckpointError(
            f"{checkpoint.folder} holds no P-Tuning prefix (no tensor {PREFIX}embedding.weight): name the folder that "
            'training wrote, or set engine.ptuning = ""'
        )
    return prefix

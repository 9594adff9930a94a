"""Load a checkpoint folder, or random weights, as a model ready to serve."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bot.engine.base import Memory, Progress
from bot.engine.chatglm import memory
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.weights import (
    PREFIX,
    Quantization,
    bits_of,
    build_network,
    check_heads,
    check_prefix,
    check_quantization,
    expected_shapes,
    ptuning_length,
    read_network,
    read_prefix,
    stored_config,
    stored_quantization,
)
from bot.engine.kernels import Int4, Int8, Quantised
from bot.engine.kernels.reference import group_of
from bot.engine.memory_available import available_bytes
from bot.errors import CheckpointError, EngineUnavailable

log = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]

Folders = Mapping[str, Path | None]
"""Folders of P-Tuning v2 prefixes by the name of a `[models.NAME]`; None is the checkpoint's own, if it has one."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    folder: Path,
    *,
    quantization: Quantization = "none",
    dtype: DType = "auto",
    device: str = "auto",
    slots: int = 8,
    ptuning: Path | None = None,
    prefixes: Folders = MappingProxyType({}),
    half_angles: bool = False,
    context: int = 0,
    name: str = "",
    progress: Progress | None = None,
) -> ChatGLMForServing:
    """Load a checkpoint folder; `progress` is called with bytes read and total bytes.

    A quantised checkpoint is detected and requires `quantization` "none".  `ptuning` is a
    folder with a P-Tuning v2 prefix, `prefixes` are more of them.  A `context` below the
    model's saves memory; 0 is the model's.  `name` is the model's name in messages, by
    default its folder's.

    Raises:
        CheckpointError: The folder is incomplete or of another model.
        EngineUnavailable: Unknown device, or not enough memory.
    """
    folders = {"": ptuning, **prefixes}
    opened = _open(folder, quantization, dtype, device, slots, folders, context, name or folder.name, available_bytes)
    config, devices = opened.config, opened.devices
    log.info("%s", opened.estimate)
    kind = quantization if quantization != "none" else stored_quantization(config)
    network = read_network(
        opened.checkpoint,
        config,
        quantization=quantization,
        dtype=find_dtype(dtype, devices[0], kind),
        devices=devices,
        half_angles=half_angles,
        progress=progress,
    )
    read = {name: _read_prefix(checkpoint, config) for name, checkpoint in opened.prefixes.items()}
    own = read.pop("")
    return ChatGLMForServing(network, slots=slots, quantization=kind, prefix=own, prefixes=read, stages=len(devices))


def _read_prefix(checkpoint: Checkpoint, config: ChatGLMConfig) -> Tensor:
    """Read a prefix; one of no tokens if there is none."""
    prefix = read_prefix(checkpoint, config)
    if prefix is None:
        return torch.empty(config.num_layers, 2, config.num_attention_heads, 0, config.head_dim)
    return prefix


def check_load(
    folder: Path,
    *,
    quantization: Quantization,
    dtype: DType,
    device: str,
    slots: int,
    ptuning: Path | None,
    prefixes: Folders,
    context: int,
    name: str,
    taken: Memory,
) -> Memory:
    """Check, without reading tensors, that `load` can succeed once the current model is freed.

    Other models need the bytes `taken`; return those that this one needs.

    Raises:
        As `load`, except for errors in the tensors themselves.
    """

    def available(device: torch.device) -> int | None:
        free = available_bytes(device, as_if_alone=True)
        return None if free is None else free - taken.get(str(device), 0)

    folders = {"": ptuning, **prefixes}
    return _open(folder, quantization, dtype, device, slots, folders, context, name, available).needs


class _Opened(NamedTuple):
    """A checkpoint that fits the machine, and those of its prefixes by name; "" is its own."""

    checkpoint: Checkpoint
    prefixes: dict[str, Checkpoint]
    config: ChatGLMConfig
    devices: list[torch.device]
    estimate: str
    needs: Memory


def _open(
    folder: Path,
    quantization: Quantization,
    dtype: DType,
    device: str,
    slots: int,
    folders: Folders,
    context: int,
    name: str,
    available: memory.Available,
) -> _Opened:
    """Open the checkpoint and those of its prefixes; check quantisation, heads, prefixes and memory."""
    config = read_config(folder)
    devices = find_devices(device, config.num_layers)
    checkpoint = Checkpoint(folder)
    config = stored_config(checkpoint, config)
    check_quantization(folder, config, quantization)
    check_heads(checkpoint, config)
    if context:
        config = replace(config, max_sequence_length=min(context, config.max_sequence_length))
    prefixes = {each: checkpoint if place is None else Checkpoint(place) for each, place in folders.items()}
    for each, place in folders.items():
        setting = f"models.{each}.ptuning" if each else "engine.ptuning"
        if not check_prefix(prefixes[each], config, setting) and place is not None:
            raise CheckpointError(
                f"{place} holds no P-Tuning prefix (no tensor {PREFIX}embedding.weight): name the output folder of the "
                f'training, or set {setting} = ""'
            )
    lengths = {each: ptuning_length(found) for each, found in prefixes.items()}

    def parameters(kind: Quantization) -> memory.LoadParameters:
        effective = kind if kind != "none" else stored_quantization(config)
        return memory.LoadParameters(
            config, kind, find_dtype(dtype, devices[0], effective), tuple(devices), slots, lengths
        )

    estimate = memory.check(parameters(quantization), name, available, parameters)
    needs = {str(device): need.total for device, need in memory.needs(parameters(quantization)).items()}
    return _Opened(checkpoint, prefixes, config, devices, estimate, needs)


def load_random(
    config: ChatGLMConfig,
    *,
    quantization: Quantization = "none",
    dtype: DType = "auto",
    device: str = "auto",
    slots: int = 8,
    seed: int = 0,
) -> ChatGLMForServing:
    """Create a model of `config`'s size with random weights, for benchmarks and tests.

    Raises:
        EngineUnavailable: Unknown device.
    """
    devices = find_devices(device, config.num_layers)
    shapes = expected_shapes(config)
    random = torch.Generator(devices[0]).manual_seed(seed)

    def matrix(name: str) -> Tensor | Quantised:
        rows, columns = shapes[name]
        bits = bits_of(config, name, quantization)
        if bits == 0:
            return torch.randn(rows, columns, generator=random, device=random.device).mul_(columns**-0.5)
        return random_quantised(rows, columns, bits, random)

    def vector(name: str) -> Tensor:
        return torch.full(shapes[name], 1.0 if name.endswith("norm.weight") else 0.0)

    network = build_network(config, matrix, vector, dtype=find_dtype(dtype, devices[0], quantization), devices=devices)
    return ChatGLMForServing(network, slots=slots, quantization=quantization, stages=len(devices))


def random_quantised(rows: int, columns: int, bits: int, random: torch.Generator) -> Quantised:
    """Draw a matrix as if quantised from normal weights of variance 1 / columns, on `random.device`."""
    device = random.device

    def drawn(width: int) -> Tensor:
        return torch.randint(-128, 128, (rows, width), dtype=torch.int8, generator=random, device=device)

    # Standard deviations of uniform bytes and nibbles: 74 and 4.6 steps.
    if bits == 8:
        return Int8(drawn(columns), torch.full((rows, 1), columns**-0.5 / 74, device=device))
    groups = columns // (group_of(columns) or columns)
    scale = torch.full((rows, groups), columns**-0.5 / 4.6, dtype=torch.bfloat16, device=device)
    return Int4(drawn(columns // 2), scale, scale / 2)


def find_devices(names: str, layers: int) -> list[torch.device]:
    """Parse `engine.device`, one or more comma-separated names, into devices that share the layers.

    Raises:
        EngineUnavailable: Unknown device, or more devices than layers.
    """
    found = [find_device(name.strip()) for name in names.split(",")]
    if len(found) > layers:
        raise EngineUnavailable(
            f'engine.device = "{names}" has {len(found)} devices, but the model only {layers} layers: name fewer'
        )
    return found


def find_device(name: str, setting: str = "engine.device") -> torch.device:
    """Resolve "auto", "cpu", "cuda", "cuda:1" or "mps"; a GPU has its number: memory is counted by device.

    Raises:
        EngineUnavailable: Unknown device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise EngineUnavailable(f'{setting} = "{name}" is not a device: use auto, cpu, cuda, cuda:1 or mps') from exc
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise EngineUnavailable(
            f'{setting} = "{name}": torch {torch.__version__} finds no such device on this machine; use auto or cpu'
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def find_dtype(name: DType, device: torch.device, quantization: Quantization) -> torch.dtype:
    """Resolve "auto": float16 on a GPU; on a CPU float32, or bfloat16 with quantised weights."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    # The packed matmuls are fast with bfloat16 activations only.
    return torch.float32 if quantization == "none" else torch.bfloat16

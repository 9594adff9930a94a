"""Build the network from a checkpoint: validate, quantise, place on devices."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.base import Progress
from bot.engine.chatglm.checkpoint import AGAIN, Checkpoint, TensorInfo
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.model import ChatGLM, Embedding
from bot.engine.kernels import Int4, Int8, Linear, Quantised, TiedEmbedding, quantise
from bot.errors import CheckpointError

Quantization = Literal["none", "int8", "int4"]
LinearFactory = Callable[[Tensor | Quantised, Tensor | None, torch.dtype], nn.Module]
EmbeddingFactory = Callable[[Tensor | Quantised, torch.dtype], nn.Module]

EMBEDDING = "transformer.word_embeddings.weight"
PREFIX = "transformer.prefix_encoder."
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_BITS: Mapping[str, int] = {"none": 0, "int8": 8, "int4": 4}
_NAMES: Mapping[int, Quantization] = {0: "none", 8: "int8", 4: "int4"}


def read_network(
    checkpoint: Checkpoint,
    config: ChatGLMConfig,
    *,
    quantization: Quantization,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    half_angles: bool = False,
    progress: Progress | None = None,
    linear: LinearFactory = Linear,
    embedding: EmbeddingFactory = TiedEmbedding,
) -> ChatGLM:
    """Read the weights, one tensor at a time; `config` is from `stored_config`.

    Layers are split evenly between `devices`, and built by `linear` and `embedding`.

    Raises:
        CheckpointError: The tensors do not match `config` and `quantization`.
    """
    check_quantization(checkpoint.folder, config, quantization)
    shapes = expected_shapes(config)
    _check_tensors(checkpoint, config, shapes)
    tensors = checkpoint.tensors
    device_of = DeviceMap(devices, config.num_layers)
    total = sum(tensors[name].bytes for name in shapes)
    done = 0

    def read(name: str, how: Callable[[str], Tensor] = checkpoint.read) -> Tensor:
        nonlocal done
        tensor = how(name)
        done += tensors[name].bytes
        if progress is not None:
            progress(done, total)
        return tensor

    def matrix(name: str) -> Tensor | Quantised:
        if tensors[name].dtype == torch.int8:
            weight, scale = read(name, checkpoint.keep), read(f"{name}_scale").clone()[:, None]
            return Int4(weight, scale) if config.quantization_bit == 4 else Int8(weight, scale)
        weight = read(name)
        bits = bits_of(config, name, quantization)
        return quantise(weight.to(device_of(name)), bits) if bits else weight

    return build_network(
        config,
        matrix,
        read,
        dtype=dtype,
        devices=devices,
        half_angles=half_angles,
        linear=linear,
        embedding=embedding,
    )


def build_network(
    config: ChatGLMConfig,
    matrix: Callable[[str], Tensor | Quantised],
    vector: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    half_angles: bool = False,
    linear: LinearFactory = Linear,
    embedding: EmbeddingFactory = TiedEmbedding,
) -> ChatGLM:
    """Create the network from the tensors that `matrix` and `vector` return by name."""
    with torch.device("meta"):
        network = ChatGLM(config, dtype, half_angles=half_angles)
    device_of = DeviceMap(devices, config.num_layers)

    # Always copies: the checkpoint's files may change while the model runs.
    def copy_vector(path: str, kind: torch.dtype) -> Tensor:
        return vector(path).to(device_of(path), kind, copy=True)

    def copy_matrix(path: str) -> Tensor | Quantised:
        weight, device = matrix(path), device_of(path)
        return weight.to(device, dtype, copy=True) if isinstance(weight, Tensor) else weight.to(device)

    for path, module in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        match module:
            case nn.Linear():
                layer = linear(copy_matrix(f"{path}.weight"), copy_vector(f"{path}.bias", dtype), dtype)
                setattr(network.get_submodule(parent), name, layer)
            case Embedding():
                setattr(network.get_submodule(parent), name, embedding(copy_matrix(f"{path}.weight"), dtype))
            case nn.LayerNorm():
                module.weight = nn.Parameter(copy_vector(f"{path}.weight", torch.float32), requires_grad=False)
                module.bias = nn.Parameter(copy_vector(f"{path}.bias", torch.float32), requires_grad=False)
    return network.eval()


def split_layers(layers: int, count: int) -> list[range]:
    """Split the layers into `count` ranges of about the same length.

    >>> split_layers(5, 2)
    [range(0, 2), range(2, 5)]
    """
    ends = [layers * part // count for part in range(count + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


class DeviceMap:
    """Device of each tensor: the embedding on the first, the final norm on the last."""

    def __init__(self, devices: Sequence[torch.device], layers: int) -> None:
        self._first, self._last = devices[0], devices[-1]
        stages = zip(devices, split_layers(layers, len(devices)), strict=True)
        self._of_layers = [device for device, stage in stages for _ in stage]

    def __call__(self, name: str) -> torch.device:
        if found := _LAYER.search(name):
            return self._of_layers[int(found[1])]
        return self._first if name == EMBEDDING else self._last


def stored_config(checkpoint: Checkpoint, config: ChatGLMConfig) -> ChatGLMConfig:
    """Return `config` with the quantisation of the stored tensors.

    Raises:
        CheckpointError: `config` names another one.
    """
    tensors = checkpoint.tensors
    first = tensors.get("transformer.layers.0.attention.query_key_value.weight")
    table = tensors.get(EMBEDDING)
    if first is None or table is None or len(first.shape) != 2:
        return config  # missing tensors are reported by `read_network`
    bits = 0
    if first.dtype == torch.int8:
        bits = 4 if first.shape[1] * 2 == config.hidden_size else 8
    if config.quantization_bit not in (0, bits):
        raise CheckpointError(
            f"{first.file} holds {_kind(bits)} weights, but its config.json says quantization_bit "
            f"{config.quantization_bit}: the files are from different downloads; {AGAIN}"
        )
    return replace(config, quantization_bit=bits, quantization_embeddings=table.dtype == torch.int8)


def check_heads(checkpoint: Checkpoint, config: ChatGLMConfig) -> None:
    """Check the number of heads in config.json against the stored RoPE frequencies, if any.

    No other tensor depends on the number of heads.

    Raises:
        CheckpointError: They do not match.
    """
    wanted = (config.head_dim // config.channels // 2,)
    for name, found in checkpoint.tensors.items():
        if name.endswith("rotary_emb.inv_freq") and found.shape != wanted:
            raise CheckpointError(
                f"{found.file}: tensor {name} has the shape {list(found.shape)}, but its config.json "
                f"(num_attention_heads {config.num_attention_heads}, position_encoding_2d "
                f"{str(config.position_encoding_2d).lower()}) implies {list(wanted)}: the files are of different models"
            )


def check_quantization(folder: Path, config: ChatGLMConfig, wanted: Quantization) -> None:
    """Raise CheckpointError if a quantised checkpoint would be quantised again."""
    if config.quantization_bit and wanted != "none":
        raise CheckpointError(
            f"{folder} is already quantised to {_kind(config.quantization_bit)}: set engine.quantization = "
            f'"none" instead of "{wanted}", or use the float16 checkpoint'
        )


def bits_of(config: ChatGLMConfig, matrix: str, quantization: str) -> int:
    """Return the bits of a loaded matrix; 0 is float.  `config` is from `stored_config`.

    Stored quantisation is kept.  Our int4 keeps the embedding in int8: it computes the
    logits, and 4 bits would change which token is the likeliest.
    """
    if config.quantization_bit:
        return config.quantization_bit if matrix != EMBEDDING or config.quantization_embeddings else 0
    return 8 if quantization == "int4" and matrix == EMBEDDING else _BITS[quantization]


def stored_quantization(config: ChatGLMConfig) -> Quantization:
    return _NAMES[config.quantization_bit]


def expected_shapes(config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all required tensors, in reading order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def matrix(name: str, rows: int, columns: int, bits: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns // 2 if bits == 4 else columns)
        if bits:
            shapes[f"{name}.weight_scale"] = (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    hidden, inner, bits = config.hidden_size, config.inner_hidden_size, config.quantization_bit
    matrix("transformer.word_embeddings", config.vocab_size, hidden, bits if config.quantization_embeddings else 0)
    for layer in range(config.num_layers):
        at = f"transformer.layers.{layer}"
        norm(f"{at}.input_layernorm")
        for name, rows, columns in (
            (f"{at}.attention.query_key_value", 3 * hidden, hidden),
            (f"{at}.attention.dense", hidden, hidden),
            (f"{at}.mlp.dense_h_to_4h", inner, hidden),
            (f"{at}.mlp.dense_4h_to_h", hidden, inner),
        ):
            matrix(name, rows, columns, bits)
            shapes[f"{name}.bias"] = (rows,)
        norm(f"{at}.post_attention_layernorm")
    norm("transformer.final_layernorm")
    return shapes


def _check_tensors(checkpoint: Checkpoint, config: ChatGLMConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    tensors = checkpoint.tensors
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor {_some(missing)} of a ChatGLM-6B with {config.num_layers} layers: "
            f"the checkpoint is incomplete or another model's; {AGAIN}"
        )
    unknown = [name for name in tensors if name not in shapes and not _is_ignored(name)]
    if unknown:
        raise CheckpointError(
            f"{tensors[unknown[0]].file} holds the tensor {_some(unknown)}, which a ChatGLM-6B with {config.num_layers} "
            "layers does not have: the weights or config.json are another model's"
        )
    for name, shape in shapes.items():
        _check_tensor(name, tensors[name], shape, config)


def _check_tensor(name: str, found: TensorInfo, shape: tuple[int, ...], config: ChatGLMConfig) -> None:
    if found.shape != shape:
        raise CheckpointError(
            f"{found.file}: tensor {name} has the shape {list(found.shape)}, but config.json implies "
            f"{list(shape)}: the files are of different models"
        )
    packed = f"{name}_scale" in expected_shapes(config)
    if (found.dtype == torch.int8) != packed or not (packed or found.dtype.is_floating_point):
        wanted = "int8" if packed else "floating-point"
        raise CheckpointError(
            f"{found.file}: tensor {name} has the dtype {_dtype(found.dtype)}; expected {wanted}: {AGAIN}"
        )


def _is_ignored(name: str) -> bool:
    # lm_head is the embedding, RoPE frequencies are computed, and a prefix is read separately.
    return name.startswith(("lm_head.", PREFIX)) or name.endswith("rotary_emb.inv_freq")


def ptuning_length(checkpoint: Checkpoint) -> int:
    """Return the tokens of a checkpoint's P-Tuning v2 prefix; 0 if it has none."""
    table = checkpoint.tensors.get(f"{PREFIX}embedding.weight")
    return 0 if table is None else max(1, *table.shape[:1])


def check_prefix(checkpoint: Checkpoint, config: ChatGLMConfig, setting: str = "engine.ptuning") -> list[str]:
    """Return the names of the tensors of a P-Tuning v2 prefix, without reading them; [] if there is none.

    `setting` is the one that names the checkpoint.

    Raises:
        CheckpointError: The prefix was trained for another model.
    """
    tensors = {name: info for name, info in checkpoint.tensors.items() if name.startswith(PREFIX)}
    table = tensors.get(f"{PREFIX}embedding.weight")
    if table is None:
        return []
    length = ptuning_length(checkpoint)
    width = config.num_layers * 2 * config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {f"{PREFIX}embedding.weight": (length, width)}
    inner = tensors.get(f"{PREFIX}trans.0.weight")
    if inner is not None:
        size = inner.shape[0] if inner.shape else 0
        shapes = {
            f"{PREFIX}embedding.weight": (length, config.hidden_size),
            f"{PREFIX}trans.0.weight": (size, config.hidden_size),
            f"{PREFIX}trans.0.bias": (size,),
            f"{PREFIX}trans.2.weight": (width, size),
            f"{PREFIX}trans.2.bias": (width,),
        }
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has the shape {list(found.shape)}, not {list(shape)}"
            raise CheckpointError(
                f"{table.file}: tensor {name} {what}: this P-Tuning prefix was trained for another model; set "
                f'{setting} = "", or name the folder of a prefix for this model'
            )
    return list(shapes)


def read_prefix(checkpoint: Checkpoint, config: ChatGLMConfig, setting: str = "engine.ptuning") -> Tensor | None:
    """Read a P-Tuning v2 prefix, with or without projection; None if there is none.

    Returns float32 `[layers, 2, heads, prefix, head_dim]`, keys and values.  Other tensors
    are ignored: older files contain the whole model.

    Raises:
        As `check_prefix`.
    """
    names = check_prefix(checkpoint, config, setting)
    if not names:
        return None
    prefix, *projection = (checkpoint.read(name).float() for name in names)
    if projection:
        first, first_bias, second, second_bias = projection
        prefix = functional.linear(functional.linear(prefix, first, first_bias).tanh(), second, second_bias)
    return prefix_heads(prefix, config)


def prefix_heads(table: Tensor, config: ChatGLMConfig) -> Tensor:
    """View a prefix `[prefix, layers * 2 * hidden]` as `[layers, 2, heads, prefix, head_dim]`."""
    heads = table.view(len(table), config.num_layers, 2, config.num_attention_heads, config.head_dim)
    return heads.permute(1, 2, 3, 0, 4)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _kind(bits: int) -> str:
    return f"int{bits}" if bits else "unquantised"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

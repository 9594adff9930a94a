"""The frozen base model of a training."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from bot.engine.backends.chatglm import find_checkpoint
from bot.engine.base import Progress, silent
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.loading import DType, find_device, find_dtype
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import (
    Quantization,
    check_heads,
    check_quantization,
    read_network,
    stored_config,
    stored_quantization,
)
from bot.engine.tuning.checkpoints import read_facts
from bot.engine.tuning.frozen import FrozenEmbedding, FrozenLinear
from bot.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Base:
    """An opened checkpoint whose weights are not read yet; `model` is its name or folder."""

    model: str
    checkpoint: Checkpoint
    config: ChatGLMConfig
    tokenizer: ChatGLMTokenizer
    quantization: Quantization
    dtype: torch.dtype
    device: torch.device

    @property
    def kind(self) -> Quantization:
        """Quantisation of the loaded weights."""
        stored = stored_quantization(self.config)
        return self.quantization if stored == "none" else stored

    def read(self, progress: Progress = silent) -> ChatGLM:
        """Read the network; `progress` is called with bytes read and total bytes.

        Raises:
            CheckpointError: The files are incomplete, corrupt or another model's.
        """
        return read_network(
            self.checkpoint,
            self.config,
            quantization=self.quantization,
            dtype=self.dtype,
            devices=[self.device],
            progress=progress,
            linear=FrozenLinear,
            embedding=FrozenEmbedding,
        )

    def check_prefix(self, folder: Path) -> None:
        """Check that a prefix belongs to this model, as far as its folder says.

        Raises:
            CheckpointError: It was trained on other weights, or is damaged.
        """
        facts = read_facts(folder)
        if facts.get("fingerprint", self.fingerprint()) != self.fingerprint():
            raise CheckpointError(
                f'{folder} was trained on another model ("{facts.get("model", "")}"), not on "{self.model}": name that one '
                "with --model"
            )

    def fingerprint(self) -> str:
        """Identify the weights, without reading all of them."""
        digest = hashlib.sha256(json.dumps(self.config.as_json(), sort_keys=True).encode())
        for name in ("transformer.final_layernorm.weight", "transformer.layers.0.mlp.dense_4h_to_h.bias"):
            if name in self.checkpoint.tensors:
                digest.update(self.checkpoint.read(name).float().numpy().tobytes())
        return digest.hexdigest()


def open_base(
    model: str,
    *,
    revision: str = "",
    quantization: Quantization = "none",
    dtype: DType = "auto",
    device: str = "auto",
) -> Base:
    """Find or download a model, and read its headers and tokenizer.

    Raises:
        CheckpointError: There is no such model, or it cannot be used.
        EngineUnavailable: Unknown device, or the download failed.
    """
    folder: Path = find_checkpoint(model, revision)
    config = read_config(folder)
    checkpoint = Checkpoint(folder)
    config = stored_config(checkpoint, config)
    check_quantization(folder, config, quantization)
    check_heads(checkpoint, config)
    tokenizer = ChatGLMTokenizer.load(folder)
    place = find_device(device, "--device")
    return Base(model, checkpoint, config, tokenizer, quantization, training_dtype(dtype, place), place)


def training_dtype(name: DType, device: torch.device) -> torch.dtype:
    """Resolve "auto": bfloat16 on a GPU that has it, float16 on others, float32 on a CPU.

    float16 loses small gradients, and on a CPU dequantising costs more than a product in float32.
    """
    if name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return find_dtype(name, device, "none")


def trained_on(folder: Path) -> str:
    """Return the name of the model that a prefix was trained on.

    Raises:
        CheckpointError: Its folder does not say.
    """
    model = read_facts(folder).get("model")
    if not isinstance(model, str):
        raise CheckpointError(f"{folder} has no tuning.json that names its model: name the model with --model")
    return model

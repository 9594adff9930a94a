"""Whether a ChatGLM-6B fits into this machine, before there are any files of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import find_device, find_dtype
from bot.engine.chatglm.memory import LoadParameters, largest_batch
from bot.engine.chatglm.weights import Quantization
from bot.engine.memory_available import available_bytes

# config.json of THUDM/chatglm-6b.
CHATGLM_6B = ChatGLMConfig(
    vocab_size=130_528,
    hidden_size=4096,
    inner_hidden_size=16_384,
    num_layers=28,
    num_attention_heads=32,
    bos_token_id=130_004,
    eos_token_id=130_005,
    mask_token_id=130_000,
    gmask_token_id=130_001,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The device of a local model, its free bytes, and the batch size of a ChatGLM-6B by quantization."""

    device: str
    free: int | None
    batches: Mapping[Quantization, int]


def measure_machine(most: int) -> Machine:
    """Look for a GPU, and count the sequences of a ChatGLM-6B that fit, at most `most`."""
    device = find_device("auto")
    free = available_bytes(device)
    batches = {
        kind: largest_batch(
            LoadParameters(CHATGLM_6B, kind, find_dtype("auto", device, kind), (device,), most), {device: free}
        )
        for kind in get_args(Quantization)
    }
    return Machine(torch.cuda.get_device_name(device) if device.type == "cuda" else str(device), free, batches)

"""Compare loading a random checkpoint from the disk with reading its file."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.weights import expected_shapes
from bot.engine.serving.base import Batch

_NAME = "model.safetensors"
_READ_AT_ONCE = 1 << 24


@contextmanager
def written_checkpoint(config: ChatGLMConfig) -> Iterator[Path]:
    """Write a temporary int4 checkpoint in the published format, with a quantised embedding."""
    config = replace(config, quantization_bit=4, quantization_embeddings=True)
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in expected_shapes(config).items():
        if f"{name}_scale" in expected_shapes(config):
            tensors[name] = torch.randint(-128, 128, shape, dtype=torch.int8, generator=random)
        elif name.endswith("_scale"):
            tensors[name] = torch.full(shape, 0.001, dtype=torch.float16)
        else:
            tensors[name] = torch.full(shape, 1.0 if name.endswith("norm.weight") else 0.0, dtype=torch.float16)
    with tempfile.TemporaryDirectory(prefix="chatglm-bench-") as place:
        folder = Path(place)
        (folder / "config.json").write_text(json.dumps(config.as_json()))
        save_file(tensors, folder / _NAME)
        tensors.clear()
        with (folder / _NAME).open("rb") as file:
            os.fsync(file.fileno())
        yield folder


def reading_seconds(folder: Path) -> float:
    """Read the file and return the seconds; the page cache is dropped first where the system allows it."""
    _drop_page_cache(folder)
    buffer = bytearray(_READ_AT_ONCE)
    began = time.perf_counter()
    with (folder / _NAME).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def first_token_seconds(folder: Path, device: str, prompt: tuple[int, ...]) -> float:
    """Load the folder, run a prompt and return the seconds; the page cache is dropped first."""
    _drop_page_cache(folder)
    began = time.perf_counter()
    model = load(folder, device=device, slots=1)
    model.forward(Batch((0,), (prompt,), (0,))).argmax().item()
    return time.perf_counter() - began


def _drop_page_cache(folder: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with (folder / _NAME).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

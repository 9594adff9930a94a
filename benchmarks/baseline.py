"""Baseline: the same network in plain torch, without our kernels, cache and batches."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.loading import random_quantised
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.weights import Quantization
from bot.engine.kernels import Quantised
from bot.engine.kernels.attention import attention, mask_bias
from bot.engine.kernels.reference import linear


class DequantisedLinear(nn.Module):
    """Dequantises its weights for each product, as the published code does."""

    def __init__(self, weight: Quantised, bias: Tensor) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._weight, self._bias)


class GrowingCache:
    """`Attend` for one sequence that copies keys and values to a longer tensor with each token."""

    def __init__(self) -> None:
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        self.hidden: Tensor | None = None  # bool `[tokens, tokens]`: keys masked for the queries of a prompt

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self._past:
            past_key, past_value = self._past[layer]
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        self._past[layer] = key, value
        mask = self.hidden if self.hidden is not None else torch.zeros(1, key.shape[2], dtype=torch.bool)
        return attention(query, key, value, mask_bias(mask.to(key.device), key.dtype))


def eager_network(
    config: ChatGLMConfig, quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> ChatGLM:
    """Build the network with random weights; only layers are quantised, as published."""
    with torch.device("meta"):
        network = ChatGLM(config, dtype)
    bits = {"none": 0, "int8": 8, "int4": 4}[quantization]
    random = torch.Generator(device).manual_seed(0)
    for path, module in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear) and bits:
            weight = random_quantised(module.out_features, module.in_features, bits, random)
            bias = torch.zeros(module.out_features, dtype=dtype, device=device)
            setattr(network.get_submodule(parent), name, DequantisedLinear(weight, bias))
    network.to_empty(device=device)
    for parameter_name, parameter in network.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=random)
            else:
                parameter.fill_(1.0 if parameter_name.endswith("norm.weight") else 0.0)
    return network.eval()


@torch.inference_mode()
def decode_seconds(network: ChatGLM, prompt: tuple[int, ...], tokens: int, repeat: int) -> list[float]:
    """Time `repeat` runs of `tokens` greedy tokens after the prompt."""
    layout, cache = layout_of(prompt, network.config), GrowingCache()

    def step(ids: list[int], positions: Tensor) -> int:
        hidden = network.hidden(torch.tensor([ids], device=network.device), positions[None].to(network.device), cache)
        return int(network.logits(hidden[:, -1]).argmax())

    cache.hidden = layout.mask(len(prompt))
    last = step(list(prompt), layout.positions(len(prompt)))
    cache.hidden = None
    seconds: list[float] = []
    at = len(prompt)
    for _ in range(repeat + 1):
        began = time.perf_counter()
        for index in range(at, at + tokens):
            last = step([last], torch.tensor([layout.position(index)]))
        at += tokens
        seconds.append(time.perf_counter() - began)
    return seconds[1:]  # warm-up

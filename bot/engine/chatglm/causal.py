"""ChatGLM as the serving loop asks for it: a prompt or one token a row in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor

from bot.engine.chatglm.layout import Layout, layout_of
from bot.engine.chatglm.model import ChatGLM
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import KeyValueCache


class ChatGLMForServing:
    """A `CausalLM`: the network with a cache of `slots` sequences.

    `prefix` is a P-Tuning v2 prefix as in `WholeSequence`.
    """

    def __init__(
        self, network: ChatGLM, *, slots: int, quantization: str = "none", prefix: Tensor | None = None
    ) -> None:
        config = network.config
        self.network = network.eval()
        self.device = network.device
        self.quantization = quantization
        self._layouts: dict[int, Layout] = {}
        self._cache = KeyValueCache(
            layers=config.num_layers,
            slots=slots,
            context=config.max_sequence_length,
            heads=config.num_attention_heads,
            head_dim=config.head_dim,
            dtype=network.dtype,
            device=self.device,
            prefix=prefix,
        )

    @property
    def context_length(self) -> int:
        return self.network.config.max_sequence_length

    @property
    def slots(self) -> int:
        return self._cache.slots

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`.

        Raises:
            ValueError: A prompt without `<sop>` or [gMASK].
        """
        hidden = self._prefill(batch) if batch.is_prefill else self._decode(batch)
        return self.network.logits(hidden).float()

    def _prefill(self, batch: Batch) -> Tensor:
        # A prompt at a time: their lengths differ, and each is work enough for the device.
        return torch.cat([self._prompt(slot, ids) for slot, ids in zip(batch.slots, batch.tokens, strict=True)])

    def _prompt(self, slot: int, ids: tuple[int, ...]) -> Tensor:
        layout = self._layouts[slot] = layout_of(ids, self.network.config)
        attend = self._cache.prefill(slot, layout.mask(len(ids)))
        positions = layout.positions(len(ids)).to(self.device)
        return self.network.hidden(torch.tensor([ids], device=self.device), positions[None], attend)[:, -1]

    def _decode(self, batch: Batch) -> Tensor:
        # Slots side by side are read without a copy: put the rows in the slots' order.
        order = sorted(range(len(batch)), key=batch.slots.__getitem__)
        slots = [batch.slots[row] for row in order]
        starts = [batch.starts[row] for row in order]
        positions = [[self._layouts[slot].position(start)] for slot, start in zip(slots, starts, strict=True)]
        hidden = self.network.hidden(
            torch.tensor([batch.tokens[row] for row in order], device=self.device),
            torch.tensor(positions, device=self.device),
            self._cache.decode(slots, starts),
        )[:, 0]
        if order == list(range(len(batch))):
            return hidden
        return hidden[torch.tensor(order, device=self.device).argsort()]

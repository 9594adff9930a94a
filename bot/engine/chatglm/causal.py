"""ChatGLM as the serving loop asks for it: whole prompts or one token a row in, logits out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain

import torch
from torch import Tensor

from bot.engine.chatglm.decoding import Decoder, padding
from bot.engine.chatglm.layout import Layout, layout_of
from bot.engine.chatglm.model import Attend, ChatGLM
from bot.engine.chatglm.native import native_decoder
from bot.engine.chatglm.weights import split_layers
from bot.engine.kernels import cuda
from bot.engine.kernels import eager as plain
from bot.engine.kernels.native.products import MOST_ROWS
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import KeyValueCache
from bot.engine.serving.cuda_graphs import CudaGraphs, Record, Replay
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import EngineUnavailable


class ChatGLMForServing:
    """A `CausalLM`: the network with a cache of `slots` sequences.

    `prefix` is a P-Tuning v2 prefix as in `WholeSequence`.  `stretches` is how many
    devices share the layers, each with a cache of its own.  `record` makes decoding steps
    of fixed sizes that can be replayed; None is what suits the device.

    Raises:
        EngineUnavailable: There is not enough memory for the cache.
    """

    def __init__(
        self,
        network: ChatGLM,
        *,
        slots: int,
        quantization: str = "none",
        prefix: Tensor | None = None,
        stretches: int = 1,
        record: Record | None = None,
    ) -> None:
        config = network.config
        self.network = network.eval()
        self.quantization = quantization
        self.slots = slots
        self._layouts: dict[int, Layout] = {}
        self._stretches = split_layers(config.num_layers, stretches)
        before = 0 if prefix is None else prefix.shape[3]
        numbers = 2 * config.num_layers * slots * config.hidden_size * (before + config.max_sequence_length)
        with _explained(slots, numbers * network.dtype.itemsize):
            self._caches = [
                KeyValueCache(
                    layers=len(layers),
                    slots=slots,
                    context=config.max_sequence_length,
                    heads=config.num_attention_heads,
                    head_dim=config.head_dim,
                    dtype=network.dtype,
                    device=network.blocks[layers[0]].device,
                    prefix=None if prefix is None else prefix[layers.start : layers.stop],
                )
                for layers in self._stretches
            ]
        self._replay = self._recorded(record)
        self._native = None if len(self._caches) > 1 else native_decoder(self.network, self._caches[0])

    def _recorded(self, record: Record | None) -> Replay | None:
        """Prepare for steps that are replayed; None where steps are not made like that."""
        config = self.network.config
        if len(self._caches) > 1:
            return None  # what goes from device to device is not one graph
        if record is None:
            suits = self.device.type == "cuda" and cuda.has_parts(config.head_dim, config.channels, self.dtype)
            if not suits:
                return None
            record = CudaGraphs()
        return Replay(
            Decoder(self.network, self._caches[0], cuda.parts() if self.device.type == "cuda" else plain),
            padding=padding(config.channels),
            most=self.slots,
            device=self.device,
            record=record,
        )

    @property
    def context_length(self) -> int:
        return self.network.config.max_sequence_length

    @property
    def device(self) -> torch.device:
        """The first of `devices`."""
        return self.network.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Those that share the layers, in the layers' order."""
        return tuple(cache.keys.device for cache in self._caches)

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`.

        Raises:
            ValueError: A prompt without `<sop>` or [gMASK].
        """
        if self._replay is not None and not batch.is_prefill:
            with torch.cuda.device_of(self._caches[0].keys):  # graphs and Triton know the current device only
                # A copy: a replay writes to the same memory each time.
                return self._replay(self._rows(batch)).to(torch.float32, copy=True)
        if self._native is not None and not batch.is_prefill and len(batch) <= MOST_ROWS:
            return self._native(self._rows(batch)).float()
        hidden = self._prefill(batch) if batch.is_prefill else self._decode(batch)
        return self.network.logits(hidden).float()

    def _rows(self, batch: Batch) -> list[tuple[int, ...]]:
        places = self._caches[0].places(batch.slots, batch.starts)
        return [
            (token, slot, place, *self._layouts[slot].position(start))
            for (token,), slot, place, start in zip(batch.tokens, batch.slots, places, batch.starts, strict=True)
        ]

    def _prefill(self, batch: Batch) -> Tensor:
        """Run the prompts end to end as one long row: only attention knows where each ends.

        Nothing is padded, so nothing but its own tokens can reach a prompt.
        """
        layouts = [layout_of(ids, self.network.config) for ids in batch.tokens]
        self._layouts.update(zip(batch.slots, layouts, strict=True))
        sizes = [len(ids) for ids in batch.tokens]
        masks = [layout.mask(size) for layout, size in zip(layouts, sizes, strict=True)]
        positions = torch.cat([layout.positions(size) for layout, size in zip(layouts, sizes, strict=True)])
        hidden = self.network.hidden(
            torch.tensor([[*chain(*batch.tokens)]], device=self.device),
            positions[None].to(self.device),
            self._attend(lambda cache: cache.prefill(batch.slots, masks)),
        )
        return hidden[0, [end - 1 for end in accumulate(sizes)]]

    def _decode(self, batch: Batch) -> Tensor:
        # Slots side by side are read without a copy: put the rows in the slots' order.
        order = sorted(range(len(batch)), key=batch.slots.__getitem__)
        slots = [batch.slots[row] for row in order]
        starts = [batch.starts[row] for row in order]
        positions = [[self._layouts[slot].position(start)] for slot, start in zip(slots, starts, strict=True)]
        hidden = self.network.hidden(
            torch.tensor([batch.tokens[row] for row in order], device=self.device),
            torch.tensor(positions, device=self.device),
            self._attend(lambda cache: cache.decode(slots, starts)),
        )[:, 0]
        if order == list(range(len(batch))):
            return hidden
        return hidden[torch.tensor(order, device=hidden.device).argsort()]

    def _attend(self, step: Callable[[KeyValueCache], Attend]) -> Attend:
        attends = [step(cache) for cache in self._caches]
        return attends[0] if len(attends) == 1 else _Spread(attends, [layers.start for layers in self._stretches])


@contextmanager
def _explained(slots: int, needed: int) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as exc:
        # What is mapped fails as an OSError, what torch allocates in its own ways.
        if not isinstance(exc, OSError) and not is_out_of_memory(exc):
            raise
        raise EngineUnavailable(
            f"the cache for engine.max_batch_size = {slots} needs {needed / 2**30:.1f} GiB of memory, and there is not "
            "as much: lower engine.max_batch_size"
        ) from exc


class _Spread:
    """Attention of layers that are spread over caches; `firsts` are each one's first layer."""

    def __init__(self, attends: Sequence[Attend], firsts: Sequence[int]) -> None:
        self._attends, self._firsts = attends, firsts

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        which = bisect_right(self._firsts, layer) - 1
        return self._attends[which](layer - self._firsts[which], query, key, value)

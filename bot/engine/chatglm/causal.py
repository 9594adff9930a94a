"""ChatGLM as a `CausalLM`: batches of prompts or single tokens in, logits out."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from types import MappingProxyType, ModuleType

import torch
from torch import Tensor

from bot.engine.chatglm.decoding import Decoder, padding
from bot.engine.chatglm.layout import Layout, layout_of
from bot.engine.chatglm.model import Attend, ChatGLM
from bot.engine.chatglm.native import native_decoder
from bot.engine.chatglm.weights import split_layers
from bot.engine.kernels import cuda, eager
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import KeyValueCache, explain_out_of_memory
from bot.engine.serving.cuda_graphs import Capture, CudaGraphs, GraphRunner

# Tokens of a decode step that has drafts.  More cost as much as they gain, and from 24 rows on
# torch's int8 product computes in another way (`kernels/cpu.py`).
DRAFTED_TOKENS = 16


class ChatGLMForServing:
    """A `CausalLM`: the network with a cache of `slots` sequences.

    `prefix` is a P-Tuning v2 prefix as in `WholeSequence`, and `prefixes` are more of them by
    name: each sequence has its own.  `stages` is the number of devices that share the layers;
    each has its own cache.  `capture` records decode steps for replay; None selects CUDA
    graphs where the device supports them.

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
        prefixes: Mapping[str, Tensor] = MappingProxyType({}),
        stages: int = 1,
        capture: Capture | None = None,
    ) -> None:
        config = network.config
        self.network = network.eval()
        self.quantization = quantization
        self.slots = slots
        self._layouts: dict[int, Layout] = {}
        self._stages = split_layers(config.num_layers, stages)
        known = dict(prefixes) if prefix is None else {"": prefix, **prefixes}
        lengths = [each.shape[3] for each in known.values()]
        tokens = slots * (max(lengths, default=0) + config.max_sequence_length) + sum(lengths)
        numbers = 2 * config.num_layers * config.hidden_size * tokens
        with explain_out_of_memory(slots, config.max_sequence_length, numbers * network.dtype.itemsize):
            self._caches = [
                KeyValueCache(
                    layers=len(layers),
                    slots=slots,
                    context=config.max_sequence_length,
                    heads=config.num_attention_heads,
                    head_dim=config.head_dim,
                    dtype=network.dtype,
                    device=network.blocks[layers[0]].device,
                    prefixes={name: each[layers.start : layers.stop] for name, each in known.items()},
                )
                for layers in self._stages
            ]
        self.context_length = config.max_sequence_length
        self.dtype = network.dtype
        self.devices = tuple(cache.keys.device for cache in self._caches)  # in layer order
        self.device = self.devices[0]  # of the inputs and the logits
        self._graphs = self._graph_runner(capture)
        self.step_tokens = step_tokens(self.devices, has_graphs=self._graphs is not None)
        most = max(slots, self.step_tokens)
        self._native = None if len(self._caches) > 1 else native_decoder(self.network, self._caches[0], most)

    def _graph_runner(self, capture: Capture | None) -> GraphRunner | None:
        config = self.network.config
        if len(self._caches) > 1:
            return None  # copies between devices cannot be captured in one graph
        ops: ModuleType | None = eager
        if self.device.type == "cuda":
            ops = cuda.decode_ops(config.head_dim, config.channels, self.dtype)
            capture = capture or CudaGraphs()
        if ops is None or capture is None:
            return None
        return GraphRunner(
            Decoder(self.network, self._caches[0], ops),
            padding=padding(config.channels),
            most=self.slots,
            device=self.device,
            capture=capture,
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`.

        Rows of a decode may have drafts if `step_tokens` is not 0; it then returns `[tokens of all rows, vocab]`.

        Raises:
            ValueError: A prompt has no `<sop>`, or neither [gMASK] nor [MASK].
        """
        if self._graphs is not None and not batch.is_prefill:
            with torch.cuda.device_of(self._caches[0].keys):  # graphs and Triton use the current device
                # Copy: every replay overwrites the same output buffer.
                return self._graphs(self._rows(batch)).to(torch.float32, copy=True)
        if not batch.is_prefill:
            batch = each_token(batch)
        if self._native is not None and not batch.is_prefill and len(batch) <= self._native.most_rows:
            return self._native(self._rows(batch)).float()
        hidden = self._prefill(batch) if batch.is_prefill else self._decode(batch)
        return self.network.logits(hidden).float()

    def _rows(self, batch: Batch) -> list[tuple[int, ...]]:
        indices = self._caches[0].reserve(batch.slots, batch.starts)
        return [
            (token, slot, index, *self._layouts[slot].position(start))
            for (token,), slot, index, start in zip(batch.tokens, batch.slots, indices, batch.starts, strict=True)
        ]

    def _prefill(self, batch: Batch) -> Tensor:
        """Run the prompts as one concatenated row; attention masks keep them apart."""
        layouts = [layout_of(ids, self.network.config) for ids in batch.tokens]
        self._layouts.update(zip(batch.slots, layouts, strict=True))
        sizes = [len(ids) for ids in batch.tokens]
        masks = [layout.mask(size) for layout, size in zip(layouts, sizes, strict=True)]
        positions = torch.cat([layout.positions(size) for layout, size in zip(layouts, sizes, strict=True)])
        hidden = self.network.hidden(
            torch.tensor([[*chain(*batch.tokens)]], device=self.device),
            positions[None].to(self.device),
            self._attend(lambda cache: cache.prefill(batch.slots, masks, batch.prefixes)),
        )
        return hidden[0, [end - 1 for end in accumulate(sizes)]]

    def _decode(self, batch: Batch) -> Tensor:
        # Sort rows by slot: adjacent slots are read without a copy.  First the first token of
        # each slot, then the second of those with drafts: attention is that of steps without drafts.
        seen: Counter[int] = Counter()
        ranks: list[tuple[int, int]] = []
        for slot in batch.slots:
            ranks.append((seen[slot], slot))
            seen[slot] += 1
        order = sorted(range(len(batch)), key=ranks.__getitem__)
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
        return attends[0] if len(attends) == 1 else _SplitAttention(attends, [layers.start for layers in self._stages])


def step_tokens(devices: Sequence[torch.device], *, has_graphs: bool = False) -> int:
    """Return the most tokens of a decode step with drafts; 0 if drafts are not supported.

    On CUDA they are not: its graphs are captured for one token per row, and its kernels append
    a row's token while others attend.
    """
    is_supported = not has_graphs and len(devices) == 1 and devices[0].type == "cpu"
    return DRAFTED_TOKENS if is_supported else 0


def each_token(batch: Batch) -> Batch:
    """Return a decode step with a row for each token, drafted ones too."""
    if all(len(tokens) == 1 for tokens in batch.tokens):
        return batch
    rows = [
        (slot, (token,), start + place)
        for slot, tokens, start in zip(batch.slots, batch.tokens, batch.starts, strict=True)
        for place, token in enumerate(tokens)
    ]
    slots, tokens, starts = zip(*rows, strict=True)
    return Batch(slots, tokens, starts)


class _SplitAttention:
    """Dispatch each layer's attention to its device's cache; `firsts` are their first layers."""

    def __init__(self, attends: Sequence[Attend], firsts: Sequence[int]) -> None:
        self._attends, self._firsts = attends, firsts

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        which = bisect_right(self._firsts, layer) - 1
        return self._attends[which](layer - self._firsts[which], query, key, value)

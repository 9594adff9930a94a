"""A model of the library as the serving loop asks for it: whole prompts or one token a row in, logits out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bot.engine.pretrained.slots import NAME, SlotCache
from bot.engine.serving.base import Batch
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import CheckpointError, EngineUnavailable

# Two ways to compute the same attention differ by rounding only; what masks or positions
# got wrong is far beyond this.  A mixture of experts may choose others where two are close.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.1}

# What the comparison reads: two prompts and a token after each.
_PROBES = ((5, 9, 2, 7, 3, 8), (11, 4, 6, 10))

UNLIKE = "has attention of its own that cannot be served in a batch"


class PretrainedForServing:
    """A `CausalLM`: the network with a cache of `slots` sequences.

    Before it serves, its logits are compared with those that the library computes by itself, for
    two prompts side by side and a token after each.

    Raises:
        CheckpointError: The network has parts that cannot be served like this, or the dtype is
            too small for its numbers.
        EngineUnavailable: There is not enough memory for the cache.
    """

    def __init__(self, network: PreTrainedModel, *, slots: int, context_length: int) -> None:
        self.network = network
        network.eval()
        self.slots = slots
        self.context_length = context_length
        seen, windows = self._compared()
        self._mind_windows(windows)
        with explain(slots, self.context_length, seen.bytes(slots, self.context_length)):
            self._cache = seen.sized(slots, self.context_length)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`."""
        return self._run(batch, self._cache)[0]

    @torch.inference_mode()
    def _run(self, batch: Batch, cache: SlotCache) -> tuple[Tensor, set[int]]:
        # Slots side by side are read without a copy: put the rows in the slots' order.
        order = sorted(range(len(batch)), key=batch.slots.__getitem__)
        batch = Batch(
            slots=tuple(batch.slots[row] for row in order),
            tokens=tuple(batch.tokens[row] for row in order),
            starts=tuple(batch.starts[row] for row in order),
        )
        step = cache.step(batch)
        ends = torch.tensor([end - 1 for end in accumulate(map(len, batch.tokens))], device=self.device)
        positions = (range(start, start + len(ids)) for start, ids in zip(batch.starts, batch.tokens, strict=True))
        logits: Tensor = self.network(
            input_ids=torch.tensor([[*chain(*batch.tokens)]], device=self.device),
            position_ids=torch.tensor([[*chain(*positions)]], device=self.device),
            use_cache=False,
            logits_to_keep=ends,
            slots=step,
        ).logits[0]
        if order != list(range(len(batch))):
            logits = logits[torch.tensor(order, device=logits.device).argsort()]
        return logits.float(), step.windows

    def _compared(self) -> tuple[SlotCache, set[int]]:
        self.network.set_attn_implementation("eager")
        with self._failing("cannot be run here"):
            expected = [self._alone(probe) for probe in _PROBES]
        self.network.set_attn_implementation(NAME)
        cache, slots = SlotCache(2, max(map(len, _PROBES))), (0, 1)
        sizes = tuple(len(probe) - 1 for probe in _PROBES)
        with self._failing(UNLIKE):
            first, windows = self._run(Batch(slots, tuple(probe[:-1] for probe in _PROBES), (0, 0)), cache)
            then, _ = self._run(Batch(slots, tuple(probe[-1:] for probe in _PROBES), sizes), cache)
        for row, logits in enumerate(expected):
            found = torch.stack([first[row], then[row]])
            if not logits.isfinite().all():
                raise CheckpointError(
                    f"the model's numbers do not fit {str(self.dtype).removeprefix('torch.')} (NaN or inf): "
                    'set engine.dtype = "bfloat16" or "float32"'
                )
            if not (found - logits).norm() <= TOLERANCE.get(self.dtype, 0.1) * logits.norm():
                raise CheckpointError(self._refusal(UNLIKE, "other results"))
        return cache, windows

    def _mind_windows(self, told: set[int]) -> None:
        """Where layers slide but do not tell attention so, stay within the window: there all is the same."""
        window = getattr(self.network.config, "sliding_window", None)
        if window and not told and getattr(self.network.config, "use_sliding_window", True):
            self.context_length = min(self.context_length, window)

    @torch.inference_mode()
    def _alone(self, probe: tuple[int, ...]) -> Tensor:
        logits: Tensor = self.network(input_ids=torch.tensor([probe], device=self.device), use_cache=False).logits
        return logits[0, -2:].float()

    @contextmanager
    def _failing(self, how: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TypeError, AttributeError, AssertionError, LookupError) as exc:
            if is_out_of_memory(exc):
                raise
            raise CheckpointError(self._refusal(how, f"{type(exc).__name__}: {exc}")) from exc

    def _refusal(self, how: str, why: str) -> str:
        return (
            f'this model of the type "{self.network.config.model_type}" {how} ({why}): choose another for '
            'engine.backend = "transformers"'
        )


@contextmanager
def explain(slots: int, context: int, needed: int) -> Iterator[None]:
    """Say what the cache wants where there is not as much memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise EngineUnavailable(
            f"the cache for engine.max_batch_size = {slots} and a context of {context} tokens needs "
            f"{needed / 2**30:.1f} GiB of memory, and there is not as much: lower engine.max_batch_size or "
            "engine.context_length"
        ) from exc

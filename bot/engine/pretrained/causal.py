"""A transformers model as a `CausalLM`: batches of prompts or single tokens in, logits out."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bot.engine.pretrained.slots import NAME, SlotCache
from bot.engine.serving.base import Batch
from bot.engine.serving.cache import explain_out_of_memory
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import CheckpointError

# Relative error.  Rounding alone stays below; wrong masks or positions are far above.  A mixture
# of experts may pick other experts where two are close.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.1}

# Token ids of the comparison: two prompts, each with one decoded token.
_PROBES = ((5, 9, 2, 7, 3, 8), (11, 4, 6, 10))

UNLIKE = "has a custom attention that cannot be batched"


class PretrainedForServing:
    """A `CausalLM`: the network with a cache of `slots` sequences.

    On creation, the logits of a batch of two prompts and one decoded token each are compared
    with the library's own.

    Raises:
        CheckpointError: The logits differ, or overflow the dtype.
        EngineUnavailable: There is not enough memory for the cache.
    """

    def __init__(self, network: PreTrainedModel, *, slots: int, context_length: int) -> None:
        self.network = network
        network.eval()
        self.slots = slots
        self.context_length = context_length
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.dtype
        probed, windows = self._compare()
        self._limit_to_window(windows)
        with explain_out_of_memory(slots, self.context_length, probed.bytes(slots, self.context_length)):
            self._cache = probed.resized(slots, self.context_length)

    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`."""
        return self._run(batch, self._cache)[0]

    @torch.inference_mode()
    def _run(self, batch: Batch, cache: SlotCache) -> tuple[Tensor, set[int]]:
        # Sort rows by slot: adjacent slots are read without a copy.
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

    def _compare(self) -> tuple[SlotCache, set[int]]:
        self.network.set_attn_implementation("eager")
        with self._map_errors("does not run here"):
            expected = [self._reference(probe) for probe in _PROBES]
        self.network.set_attn_implementation(NAME)
        cache, slots = SlotCache(2, max(map(len, _PROBES))), (0, 1)
        sizes = tuple(len(probe) - 1 for probe in _PROBES)
        with self._map_errors(UNLIKE):
            first, windows = self._run(Batch(slots, tuple(probe[:-1] for probe in _PROBES), (0, 0)), cache)
            then, _ = self._run(Batch(slots, tuple(probe[-1:] for probe in _PROBES), sizes), cache)
        for row, logits in enumerate(expected):
            found = torch.stack([first[row], then[row]])
            if not logits.isfinite().all():
                raise CheckpointError(
                    f"the model overflows {str(self.dtype).removeprefix('torch.')} (NaN or inf): "
                    'set engine.dtype = "bfloat16" or "float32"'
                )
            if not (found - logits).norm() <= TOLERANCE.get(self.dtype, 0.1) * logits.norm():
                raise CheckpointError(self._unsupported(UNLIKE, "its logits differ"))
        return cache, windows

    def _limit_to_window(self, passed: set[int]) -> None:
        # Some layers slide without passing the window to attention: within it, both are the same.
        window = getattr(self.network.config, "sliding_window", None)
        if window and not passed and getattr(self.network.config, "use_sliding_window", True):
            self.context_length = min(self.context_length, window)

    @torch.inference_mode()
    def _reference(self, probe: tuple[int, ...]) -> Tensor:
        logits: Tensor = self.network(input_ids=torch.tensor([probe], device=self.device), use_cache=False).logits
        return logits[0, -2:].float()

    @contextmanager
    def _map_errors(self, problem: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TypeError, AttributeError, AssertionError, LookupError) as exc:
            if is_out_of_memory(exc):
                raise
            raise CheckpointError(self._unsupported(problem, f"{type(exc).__name__}: {exc}")) from exc

    def _unsupported(self, problem: str, reason: str) -> str:
        return (
            f'model_type "{self.network.config.model_type}" {problem} ({reason}): choose another model for '
            'engine.backend = "transformers"'
        )

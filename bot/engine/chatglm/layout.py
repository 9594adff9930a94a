"""Positions and attention mask of a ChatGLM sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """Prefix-LM layout that a prompt sets for its whole sequence.

    The `prefix_length` tokens before the first `<sop>` attend to each other in both
    directions.  Tokens from `<sop>` on are causal; their position is `mask_position` (the
    first [gMASK], else the first [MASK]), and their block position counts from 1.
    """

    prefix_length: int
    mask_position: int
    channels: int
    keeps_index: bool = False  # prompt tokens from <sop> on keep their index as position

    def positions(self, tokens: int) -> Tensor:
        """Return int64 `[tokens, channels]`, the positions of a whole sequence."""
        index = torch.arange(tokens)
        first = index if self.keeps_index else index.where(index < self.prefix_length, self.mask_position)
        if self.channels == 1:
            return first[:, None]
        return torch.stack([first, (index - self.prefix_length + 1).clamp(min=0)], dim=1)

    def position(self, index: int) -> tuple[int, ...]:
        """Return the position of the decoded token at `index`."""
        if self.channels == 1:
            return (index if self.keeps_index else self.mask_position,)
        return self.mask_position, index - self.prefix_length + 1

    def mask(self, tokens: int) -> Tensor:
        """Return bool `[tokens, tokens]`, query by key; True is masked."""
        index = torch.arange(tokens)
        return (index > index[:, None]) & (index >= self.prefix_length)


def layout_of(prompt: Sequence[int], config: ChatGLMConfig) -> Layout:
    """Return the layout of a prompt's ids.

    Raises:
        ValueError: The prompt has no `<sop>`, or neither [gMASK] nor [MASK].
    """
    ids = list(prompt)
    if config.bos_token_id not in ids:
        raise ValueError(f"a prompt needs <sop>, id {config.bos_token_id}")
    prefix_length = ids.index(config.bos_token_id)
    if has_gmask := config.gmask_token_id in ids:
        mask_position = ids.index(config.gmask_token_id)
    elif config.mask_token_id in ids:
        mask_position = ids.index(config.mask_token_id)
    else:
        raise ValueError(f"a prompt needs [gMASK], id {config.gmask_token_id}, or [MASK], id {config.mask_token_id}")
    # With [gMASK], the 1-D form and the first release keep the index as the position.
    keeps_index = has_gmask and (config.first_release or config.channels == 1)
    return Layout(prefix_length, mask_position, config.channels, keeps_index)

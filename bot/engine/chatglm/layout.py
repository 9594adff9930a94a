"""Where each token of a ChatGLM sequence stands and what it may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """What a prompt decides for its whole sequence.

    Tokens before `border`, the first `<sop>`, see each other in both directions; those
    from there on see the past only and count as standing at `anchor`, the first [gMASK]
    or else [MASK], with a block position of their own.
    """

    border: int
    anchor: int
    channels: int
    # The prompt's tokens from the border on keep their index as first position.
    keeps_index: bool = False

    def positions(self, tokens: int) -> Tensor:
        """Int64 `[tokens, channels]`: the positions of a whole sequence, prompt first."""
        index = torch.arange(tokens)
        first = index if self.keeps_index else index.where(index < self.border, self.anchor)
        if self.channels == 1:
            return first[:, None]
        return torch.stack([first, (index - self.border + 1).clamp(min=0)], dim=1)

    def position(self, index: int) -> tuple[int, ...]:
        """Say where the token at `index` stands, once the prompt is in the cache."""
        if self.channels == 1:
            return (index if self.keeps_index else self.anchor,)
        return self.anchor, index - self.border + 1

    def mask(self, tokens: int) -> Tensor:
        """Bool `[tokens, tokens]`, query by key: True is hidden."""
        index = torch.arange(tokens)
        return (index > index[:, None]) & (index >= self.border)


def layout_of(prompt: Sequence[int], config: ChatGLMConfig) -> Layout:
    """Find the border and the anchor of a prompt's ids.

    Raises:
        ValueError: The prompt holds no `<sop>`, or neither [gMASK] nor [MASK].
    """
    ids = list(prompt)
    if config.bos_token_id not in ids:
        raise ValueError(f"a prompt needs <sop>, id {config.bos_token_id}")
    border = ids.index(config.bos_token_id)
    if has_gmask := config.gmask_token_id in ids:
        anchor = ids.index(config.gmask_token_id)
    elif config.mask_token_id in ids:
        anchor = ids.index(config.mask_token_id)
    else:
        raise ValueError(f"a prompt needs [gMASK], id {config.gmask_token_id}, or [MASK], id {config.mask_token_id}")
    # With [gMASK] the 1-D form and the first release do not move the border's position.
    keeps_index = has_gmask and (config.first_release or config.channels == 1)
    return Layout(border, anchor, config.channels, keeps_index)

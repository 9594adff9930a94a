"""Numbers on their way to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device_async(device: torch.device, numbers: Sequence[object]) -> Tensor:
    """Make a tensor, nested lists included, without waiting for what the device has yet to do."""
    made = torch.tensor(numbers)
    # A copy from other memory waits until the device has done all that it was given before.
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)

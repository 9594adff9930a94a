"""Asynchronous host-to-device copies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device_async(device: torch.device, numbers: Sequence[object]) -> Tensor:
    """Return a tensor of (nested) numbers on `device`, without a synchronisation."""
    tensor = torch.tensor(numbers)
    # Only copies from pinned memory are asynchronous.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

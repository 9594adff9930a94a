"""The peak of torch's tensors on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes that `work` holds at once, beyond those held before."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    held = most = 0
    results = profiled.profiler.kineto_results
    for event in results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most

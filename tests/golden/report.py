"""A folder of golden tensors, and a verdict per item."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.errors import BotError

TOLERANCE = 2e-3
"""Absolute tolerance of float32 logits, whose standard deviation is 6 to 10."""


class MissingItemError(Exception):
    """An item that a check needs is missing."""


class Golden:
    """The tensors of one folder; tracks which were compared."""

    def __init__(self, folder: Path, out: Callable[[str], None]) -> None:
        self.folder = folder
        self.passed = 0
        self.failed = 0
        self._out = out
        path = folder / "goldens.safetensors"
        self.numbers: dict[str, Tensor] = load_file(path) if path.exists() else {}
        self.facts: dict[str, Any] = self.json("goldens.json") or {}
        self._unseen = dict.fromkeys(self.numbers)

    @cached_property
    def config(self) -> ChatGLMConfig:
        return read_config(self.folder)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def model(self) -> ChatGLMForServing:
        return load(self.folder, dtype="float32")

    @cached_property
    def tokenizer(self) -> ChatGLMTokenizer:
        return ChatGLMTokenizer.load(self.folder)

    def json(self, name: str) -> Any:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def need(self, name: str) -> Tensor:
        if name not in self.numbers:
            raise MissingItemError(name)
        return self.numbers[name]

    def prompt(self, name: str) -> list[int]:
        """Return the ids of a prompt, an input."""
        self._unseen.pop(f"{name}.input_ids", None)
        ids: list[int] = self.need(f"{name}.input_ids")[0].tolist()
        return ids

    def names(self, pattern: str) -> Iterator[re.Match[str]]:
        """Yield full matches of the sorted tensor names."""
        return (found for name in sorted(self.numbers) if (found := re.fullmatch(pattern, name)))

    def run(self, label: str, check: Callable[[], None]) -> None:
        """Run a check; report missing items as skipped, and errors as failures."""
        try:
            with torch.inference_mode():
                check()
        except MissingItemError as missing:
            self._out(f"skip     {label}: {missing} is not in this set")
        except BotError as error:
            self.verdict(label, str(error), good=False)
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            # An unknown kind of set: the other checks continue.
            self.verdict(label, f"{type(error).__name__}: {error}", good=False)

    def close(self, name: str, found: Callable[[], Tensor], tolerance: float = TOLERANCE, label: str = "") -> None:
        """Compare our tensor with the set's, if it has one."""
        if name not in self.numbers:
            return
        self._unseen.pop(name, None)
        ours, wanted = found(), self.numbers[name]
        if ours.numel() != wanted.numel():
            self.verdict(label or name, f"{list(ours.shape)} is not {list(wanted.shape)}", good=False)
            return
        error = (ours.double().flatten() - wanted.double().flatten()).abs().max().item()
        self.verdict(label or name, f"{error:.1e}", good=error <= tolerance)

    def equal(self, name: str, found: Callable[[], Tensor], label: str = "") -> None:
        self.close(name, found, 0, label)

    def verdict(self, label: str, detail: str, *, good: bool) -> None:
        self.passed += good
        self.failed += not good
        self._out(f"{'ok  ' if good else 'FAIL'}     {label}: {detail}")

    def same(self, label: str, pairs: list[tuple[object, object]]) -> None:
        """Compare pairs of ours and theirs; report them in one line."""
        other = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        detail = f"{len(pairs)} equal" if not other else f"{len(other)} of {len(pairs)} differ, first {other[0]!r}"
        self.verdict(label, detail, good=not other)

    def note(self, name: str, why: str) -> None:
        """Print why an item is not compared, or an informative value."""
        self._unseen.pop(name, None)
        self._out(f"note     {name}: {why}")

    def unknown(self, name: str) -> None:
        self._out(f"unknown  {name}: no check for this name, or its inputs are not in this set")

    def finish(self) -> None:
        for name in self._unseen:
            self.unknown(name)
        self._out(f"{self.passed} passed, {self.failed} failed")

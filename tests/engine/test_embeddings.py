"""Embeddings: the same vectors as the library's, rejected folders, and the queue."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from bot.config.http import EmbeddingsSection
from bot.engine.embeddings import open_embedder, preflight
from bot.engine.embeddings.encoder import load_encoder
from bot.engine.embeddings.queue import BATCH_TOKENS, QueuedEmbedder
from bot.errors import CheckpointError, EngineBusy, EngineError, EngineUnavailable
from tests.engine.pretrained import change
from tests.engine.sentences import add_modules, make_encoder, write

TEXTS = [
    "cat dog",
    "",
    "今天天气很好",
    "a b c " * 90,
    "dog cat",
    "unknown: 龘 🙂",
    "x",
    "half a pair: \ud83d",
    "我 " * 40,
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "tiny-bert"
    make_encoder(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-bert"
    make_encoder(folder)
    return folder


@cache
def library(folder: Path) -> tuple[Any, Any]:
    """Load tokenizer and network with the library alone."""
    network = AutoModel.from_pretrained(folder)
    network.eval()
    return AutoTokenizer.from_pretrained(folder), network


def alone(folder: Path, text: str, limit: int, pooling: str = "mean") -> NDArray[np.float32]:
    """Compute one vector with the library alone, as text2vec does."""
    tokenizer, network = library(folder)
    inputs = tokenizer(text.replace("\ud83d", "?"), truncation=True, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        hidden = network(**inputs).last_hidden_state[0]
    found = hidden.mean(0) if pooling == "mean" else hidden[0]
    vector: NDArray[np.float32] = found.numpy()
    return vector


async def vectors(folder: Path, texts: Sequence[str] = TEXTS, **options: object) -> NDArray[np.float32]:
    section = EmbeddingsSection.model_validate({"model": str(folder)} | options)
    async with open_embedder(section) as embedder:
        assert embedder is not None
        assert (embedder.name, embedder.dimensions) == (folder.name, 32)
        found = await embedder.embed(texts)
        # Again in the other order: a vector depends on its text alone.
        back = await embedder.embed(texts[::-1])
        np.testing.assert_allclose(found.vectors, back.vectors[::-1], atol=1e-5)
        assert found.tokens == back.tokens
    return found.vectors


async def test_vectors_are_the_means_of_the_library_in_the_order_of_the_texts(plain: Path) -> None:
    found = await vectors(plain)
    wanted = np.stack([alone(plain, text, 128) for text in TEXTS])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.dtype == np.float32
    assert len({tuple(vector.round(3)) for vector in found}) == len(TEXTS)


async def test_many_texts_take_several_batches(plain: Path) -> None:
    texts = [text for number in range(40) for text in (f"cat {number} " * (number % 9), "dog " * 120)]
    found = await vectors(plain, texts)
    for index in (0, 1, 17, 44, 79):
        np.testing.assert_allclose(found[index], alone(plain, texts[index], 128), atol=1e-5)


async def test_the_settings_limit_and_normalize(plain: Path) -> None:
    found = await vectors(plain, max_tokens=8, normalize=True)
    wanted = np.stack([alone(plain, text, 8) for text in TEXTS])
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


async def test_a_caller_may_ask_for_the_other_length(plain: Path) -> None:
    async with open_embedder(EmbeddingsSection(model=str(plain), normalize=True)) as embedder:
        assert embedder is not None
        lengths = [
            float(np.linalg.norm((await embedder.embed(["cat"], normalize=normalize)).vectors))
            for normalize in (None, True, False)
        ]
    assert lengths[:2] == pytest.approx([1, 1])
    assert lengths[2] != pytest.approx(1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_the_files_of_sentence_transformers_are_followed(folder: Path, pooling: str) -> None:
    names = {"mean": "mean_tokens", "cls": "cls_token"}
    add_modules(folder, "Transformer", "Pooling", "Normalize", pooling=names[pooling], limit=12)
    wanted = np.stack([alone(folder, text, 12, pooling) for text in TEXTS])
    np.testing.assert_allclose(await vectors(folder), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


async def test_without_a_limit_of_its_own_the_model_reads_what_it_has_positions_for(folder: Path) -> None:
    add_modules(folder, "Transformer", "Pooling")
    np.testing.assert_allclose((await vectors(folder))[3], alone(folder, TEXTS[3], 160), atol=1e-5)


async def test_positions_of_roberta_begin_behind_the_padding(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-roberta"
    make_encoder(folder, "roberta", max_position_embeddings=33)
    np.testing.assert_allclose((await vectors(folder))[3], alone(folder, TEXTS[3], 32), atol=1e-5)


async def test_no_texts_have_no_vectors(plain: Path) -> None:
    assert (await vectors(plain, [])).shape == (0, 32)


async def test_no_model_is_no_embedder() -> None:
    async with open_embedder(EmbeddingsSection()) as embedder:
        assert embedder is None
    preflight(EmbeddingsSection())


# Folders that cannot be used


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _incomplete(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _not_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _cut_off(folder: Path) -> None:
    place = folder / "model.safetensors"
    place.write_bytes(place.read_bytes()[:5000])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickled, "only pickle files (.bin), which can run code"),
    "incomplete": (_incomplete, "lacks 1 of the model's tensors, for example encoder.layer.1.output.dense.weight"),
    "not numbers": (_not_numbers, "gives vectors that are not numbers"),
    "cut off": (_cut_off, "cannot be loaded"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a chat model": (lambda folder: change(folder, model_type="llama"), "'llama' is not a sentence encoder"),
    "code": (
        lambda folder: change(folder, model_type="own", auto_map={"AutoModel": "x.Y"}),
        "is not a sentence encoder",
    ),
    "dense": (
        lambda folder: add_modules(folder, "Transformer", "Pooling", "Dense"),
        "the module Dense is not supported",
    ),
    "maximum": (lambda folder: add_modules(folder, pooling="max_tokens"), "pooling_mode_max_tokens is not supported"),
    "limit": (lambda folder: add_modules(folder, "Transformer", limit=-1), "max_seq_length is -1, not a number"),
    "modules": (lambda folder: (folder / "modules.json").write_text("[{"), "modules.json cannot be read"),
    "outside": (
        lambda folder: write(folder / "modules.json", [{"path": "..", "type": "a.Transformer"}]),
        "names a folder outside",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_folder_that_cannot_be_used_is_refused(folder: Path, name: str) -> None:
    damage, message = WRONG[name]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        await vectors(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["pickle", "a chat model", "dense"])
def test_the_preflight_finds_it_without_reading_weights(folder: Path, name: str) -> None:
    damage, message = WRONG[name]
    preflight(EmbeddingsSection(model=str(folder)))
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        preflight(EmbeddingsSection(model=str(folder)))
    assert message in str(caught.value)


def test_settings_that_cannot_work_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(**options: object) -> str:
        with pytest.raises(EngineError) as caught:
            preflight(EmbeddingsSection.model_validate({"model": str(folder)} | options))
        return str(caught.value)

    assert 'embeddings.model = "owner/name": no such folder' in refusal(model="owner/name")
    assert 'embeddings.device = "cuda:99"' in refusal(device="cuda:99")
    monkeypatch.setattr("bot.engine.embeddings.encoder.available_bytes", lambda device: 1 << 20)
    assert "GiB free" in refusal()
    monkeypatch.setitem(sys.modules, "bot.engine.embeddings.encoder", None)
    monkeypatch.delitem(sys.modules, "bot.engine.embeddings.encoder")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EngineUnavailable, match=r'needs the package transformers.*"chatglm-bot\[transformers\]"'):
        preflight(EmbeddingsSection(model=str(folder)))


# The queue


class Gate:
    """A real encoder whose batches wait for `go_on`, each of which lets one through."""

    def __init__(self, folder: Path) -> None:
        self._encoder = load_encoder(EmbeddingsSection(model=str(folder)))
        self.name, self.dimensions, self.normalizes = folder.name, 32, False
        self.batches: list[int] = []
        self.go_on = threading.Semaphore(0)
        self.has_begun = threading.Semaphore(0)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.tokenize(texts)

    def encode(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        self.has_begun.release()
        assert self.go_on.acquire(timeout=600)
        return self._encoder.encode(batch)


LONG = ["cat " * 126] * (3 * BATCH_TOKENS // 128)


async def begun(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.has_begun.acquire, timeout=600)


async def test_a_short_call_waits_for_two_batches_of_a_long_one_at_most(plain: Path) -> None:
    gate = Gate(plain)
    async with QueuedEmbedder(lambda: gate) as embedder:
        long = asyncio.create_task(embedder.embed(LONG))
        await begun(gate)
        short = asyncio.create_task(embedder.embed(["dog"]))
        gate.go_on.release(3)
        assert (await short).vectors.shape == (1, 32)
        assert not long.done()
        gate.go_on.release(1)
        await long
    assert gate.batches == [32, 32, 1, 32]


async def test_a_cancelled_call_computes_no_further_batch(plain: Path) -> None:
    gate = Gate(plain)
    async with QueuedEmbedder(lambda: gate, max_waiting=1) as embedder:
        long = asyncio.create_task(embedder.embed(LONG))
        await begun(gate)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        gate.go_on.release(2)
        await embedder.embed(["dog"])
    assert gate.batches == [32, 1]


async def test_the_queue_is_bounded_and_frees_its_places(plain: Path) -> None:
    gate = Gate(plain)
    async with QueuedEmbedder(lambda: gate, max_waiting=2) as embedder:
        calls = [asyncio.create_task(embedder.embed(["cat"])) for _ in range(3)]
        await begun(gate)
        with pytest.raises(EngineBusy, match=r"2 requests are waiting already, and embeddings\.max_waiting is 2"):
            await embedder.embed(["dog"])
        gate.go_on.release(4)
        await asyncio.gather(*calls)
        await embedder.embed(["dog"])

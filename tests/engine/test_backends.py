"""Backends by name, missing packages, and model folders."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx2 import Request, Response
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from bot.config.schema import EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    Finished,
    FinishReason,
    SamplingParams,
    Usage,
)
from bot.engine import BACKENDS, find_backend, model_folder, open_engine, preflight
from bot.engine.backends import chatglm
from bot.engine.backends.echo import EchoEngine
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.weights import expected_shapes
from bot.engine.serving.engine import ServingEngine
from bot.errors import CheckpointError, EngineMisconfigured, EngineUnavailable

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


async def answer(engine: EchoEngine, text: str, **params: Any) -> tuple[list[str], EngineEvent]:
    request = ChatRequest((ChatMessage("user", text),), SamplingParams(**params))
    *deltas, end = [event async for event in engine.generate(request)]
    return [event.text for event in deltas if isinstance(event, Delta)], end


def test_backends_are_found_by_name() -> None:
    assert set(BACKENDS) >= {"chatglm", "echo"}
    assert isinstance(open_engine(EngineSection(backend="echo")), EchoEngine)
    assert isinstance(open_engine(EngineSection(backend="chatglm")), ServingEngine)


def test_an_unknown_backend_is_rejected_with_the_closest_name() -> None:
    with pytest.raises(EngineUnavailable, match=r'engine.backend = "chatgml".*did you mean chatglm\?'):
        open_engine(EngineSection(backend="chatgml"))
    with pytest.raises(EngineUnavailable, match="use auto or chatglm or echo"):
        open_engine(EngineSection(backend="../x"))


@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"]}, "chatglm"),
        ({"model_type": "llama"}, "transformers"),
        ({"model_type": ["llama"]}, "transformers"),
        ({}, "transformers"),
    ],
)
def test_auto_takes_the_backend_that_the_models_config_needs(
    tmp_path: Path, fields: dict[str, Any], backend: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert find_backend(EngineSection(model=str(tmp_path))) == backend


def test_auto_needs_no_config_for_the_demo_and_for_servers() -> None:
    assert find_backend(EngineSection()) == "chatglm"
    assert find_backend(EngineSection(model="org/model", urls=("http://localhost/v1",))) == "remote"


def test_auto_downloads_the_config_of_a_hub_model_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    monkeypatch.setattr(model_folder, "snapshot_download", hub.snapshot_download)
    assert find_backend(EngineSection(model="Qwen/Qwen3-8B", revision="main")) == "transformers"
    assert hub.fetched == [("Qwen/Qwen3-8B", "main", ["config.json"])]


def test_auto_names_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing: name a folder with a checkpoint"):
        preflight(EngineSection(model=str(tmp_path)))


def test_a_wrong_backend_is_refused_with_the_right_setting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(CheckpointError, match=r'set engine\.backend = "auto" or "transformers"') as caught:
        preflight(EngineSection(backend="chatglm", model=str(tmp_path)))
    assert caught.value.exit_code == 2
    with pytest.raises(EngineMisconfigured, match=r"engine\.urls only works with engine\.backend"):
        preflight(EngineSection(backend="chatglm", urls=("http://localhost/v1",)))


WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(["torch", "huggingface_hub", "httpx2", "transformers"])
from bot.config.schema import EngineSection
from bot.engine import open_engine
from bot.errors import EngineUnavailable
print(open_engine(EngineSection(backend="echo")).info.backend)
for section in (EngineSection(backend="chatglm"), EngineSection(), EngineSection(model="THUDM/chatglm-6b")):
    try:
        open_engine(section)
    except EngineUnavailable as error:
        print(error)
"""


def test_without_torch_echo_runs_and_chatglm_names_the_package_to_install() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, capture_output=True, text=True).stdout
    rest = 'which is not installed: run python -m pip install chatglm-bot, or set engine.backend = "remote" or "echo"'
    assert said.splitlines() == [
        "echo",
        f'engine.backend = "chatglm" needs the package torch, {rest}',
        f'engine.model = "demo" needs the package torch, {rest}',
        f'engine.model = "THUDM/chatglm-6b" needs the package huggingface_hub, {rest}',
    ]


def test_any_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bot.engine.backends.chatglm", "bot.engine.model_folder"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineUnavailable, match="needs the package huggingface_hub"):
        open_engine(EngineSection(backend="chatglm"))


def test_a_missing_module_of_our_own_is_a_bug_and_not_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bot.engine.backends.chatglm")
    monkeypatch.setitem(sys.modules, "bot.engine.chatglm.loading", None)
    with pytest.raises(ModuleNotFoundError):
        open_engine(EngineSection(backend="chatglm"))


async def test_echo_repeats_the_last_question_in_small_deltas() -> None:
    async with EchoEngine() as engine:
        assert await answer(engine, "say this again") == (
            ["say ", "this", " aga", "in"],
            Finished(FinishReason.STOP, Usage(5, 5)),
        )
        assert await answer(engine, "") == ([], Finished(FinishReason.STOP, Usage(1, 1)))
        request = ChatRequest((ChatMessage("user", "one"), ChatMessage("assistant", "two")))
        assert await anext(engine.generate(request)) == Delta("one")


async def test_echo_obeys_max_tokens_and_stop_strings() -> None:
    async with EchoEngine(context_length=8) as engine:
        assert await answer(engine, "say this again", max_tokens=2) == (
            ["say ", "this"],
            Finished(FinishReason.LENGTH, Usage(5, 2)),
        )
        assert await answer(engine, "say this again", stop=("his", "zzz", "")) == (
            ["say ", "t"],
            Finished(FinishReason.STOP, Usage(5, 3)),
        )
        assert (await answer(engine, "say this again"))[1] == Finished(FinishReason.LENGTH, Usage(5, 3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with a tiny ChatGLM with random weights."""
    config = replace(
        read_config(GOLDEN),
        hidden_size=32,
        inner_hidden_size=32,
        num_layers=1,
        num_attention_heads=1,
        max_sequence_length=96,
    )
    (tmp_path / "config.json").write_text(json.dumps(config.as_json()))
    shutil.copy(GOLDEN / "ice_text.model", tmp_path)
    random = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in expected_shapes(config).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


async def test_a_folder_is_loaded_with_progress_and_answers(checkpoint: Path) -> None:
    reports: list[tuple[int, int]] = []
    options = EngineSection(model=str(checkpoint), device="cpu", max_batch_size=2)
    async with open_engine(options, lambda done, total: reports.append((done, total))) as engine:
        assert engine.info == EngineInfo(str(checkpoint), "chatglm", "none", "float32", "cpu", 96)
        request = ChatRequest((ChatMessage("user", "hello"),), SamplingParams(max_tokens=3, seed=1))
        *_, end = [event async for event in engine.generate(request)]
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens == engine.count_tokens(request.messages)
    done, total = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert set(total) == {done[-1]}


async def test_an_invalid_folder_is_reported_on_entering(checkpoint: Path) -> None:
    (checkpoint / "prefix").mkdir()
    for options in (
        EngineSection(model=str(checkpoint), device="cpu", ptuning=str(checkpoint / "prefix")),
        EngineSection(model=str(checkpoint / "prefix"), device="cpu"),
    ):
        with pytest.raises(CheckpointError, match="prefix"):
            await open_engine(options).__aenter__()


def test_demo_is_the_checkpoint_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_folder, "DEMO", tmp_path)
    assert chatglm.find_checkpoint("demo") == tmp_path


def test_a_folder_is_used_as_given(tmp_path: Path) -> None:
    assert chatglm.find_checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="only applies to models of the hub"):
        chatglm.find_checkpoint(str(tmp_path), revision="v1.1.0")


def test_a_folder_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert chatglm.find_checkpoint("~/model") == tmp_path / "model"


def test_an_unknown_home_directory_is_reported() -> None:
    with pytest.raises(CheckpointError, match='"~nobody-of-this-name/model" cannot be read'):
        chatglm.find_checkpoint("~nobody-of-this-name/model")


def test_an_invalid_name_is_rejected_with_the_valid_forms() -> None:
    with pytest.raises(CheckpointError, match='no such folder; name a folder, a model of the hub as "owner/name"'):
        chatglm.find_checkpoint("no/such/folder")


class Hub:
    """A fake of the hub; records downloads."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.fetched: list[tuple[str, str | None, list[str]]] = []
        self._folder = folder
        for file in files:
            (folder / file).touch()

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.fetched.append((name, revision, allow_patterns))
        return str(self._folder)


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors.index.json", "pytorch_model.bin.index.json"], ["*.safetensors"]),
        (["pytorch_model.bin.index.json"], ["pytorch_model*.bin"]),
        ([], ["*.safetensors", "pytorch_model*.bin"]),
    ],
)
def test_a_hub_model_is_downloaded_in_one_format_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], weights: list[str]
) -> None:
    hub = Hub(tmp_path, *files)
    monkeypatch.setattr(chatglm, "snapshot_download", hub.snapshot_download)
    assert chatglm.find_checkpoint("THUDM/chatglm-6b", "v1.1.0") == tmp_path
    assert hub.fetched == [
        ("THUDM/chatglm-6b", "v1.1.0", ["*.json", "ice_text.model"]),
        ("THUDM/chatglm-6b", "v1.1.0", weights),
    ]


def refuse(error: Exception) -> Callable[..., str]:
    def snapshot_download(name: str, **options: object) -> str:
        raise error

    return snapshot_download


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (RepositoryNotFoundError, "no such folder, and no such model on the hub"),
        (RevisionNotFoundError, 'engine.revision = "v9": THUDM/chatglm-6b has no such revision'),
    ],
)
def test_an_unknown_hub_model_or_revision_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: type[HfHubHTTPError], sentence: str
) -> None:
    response = Response(404, request=Request("GET", "https://hub.invalid"))
    monkeypatch.setattr(chatglm, "snapshot_download", refuse(kind("404", response=response)))
    with pytest.raises(CheckpointError, match=sentence):
        chatglm.find_checkpoint("THUDM/chatglm-6b", "v9")


def test_a_failed_download_names_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatglm, "snapshot_download", refuse(LocalEntryNotFoundError("no network")))
    with pytest.raises(EngineUnavailable, match=r"downloading it failed \(LocalEntryNotFoundError\)"):
        chatglm.find_checkpoint("THUDM/chatglm-6b")

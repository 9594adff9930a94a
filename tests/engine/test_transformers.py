"""transformers backend: from a folder to answers, and rejected folders."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, EngineInfo, Finished, FinishReason, SamplingParams
from bot.engine import open_engine
from bot.engine.backends import transformers as backend
from bot.engine.base import Progress, silent
from bot.engine.model_folder import find_folder
from bot.engine.pretrained import loading
from bot.engine.pretrained.loading import context_of, dtype_of
from bot.engine.serving.engine import ServingEngine
from bot.errors import CheckpointError, EngineError, EngineFailed, EngineUnavailable
from tests.engine.pretrained import CONFIGS, VOCABULARY, change, generate, make_folder, make_tokenizer

# bitsandbytes packs blocks of 64 on a CPU.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def options(folder: Path | str, **changes: object) -> EngineSection:
    return EngineSection.model_validate({"backend": "transformers", "model": str(folder), "device": "cpu"} | changes)


def ask(text: str, **params: object) -> ChatRequest:
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 24} | params)  # type: ignore[arg-type]  # real fields
    return ChatRequest((ChatMessage("user", text),), sampling)


async def answer(engine: ServingEngine, request: ChatRequest) -> tuple[str, Finished]:
    *deltas, end = [event async for event in engine.generate(request)]
    assert isinstance(end, Finished)
    return "".join(event.text for event in deltas if isinstance(event, Delta)), end


def opened(options: EngineSection, progress: Progress = silent) -> ServingEngine:
    engine = open_engine(options, progress)
    assert isinstance(engine, ServingEngine)
    return engine


def expected(network: PreTrainedModel, text: str, tokens: int) -> str:
    tokenizer = make_tokenizer()
    prompt = f"<|user|>\n{text}<|assistant|>\n"
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    network.set_attn_implementation("sdpa")
    # Ids without text are never sampled.
    said = generate(network, ids, max_new_tokens=tokens, suppress_tokens=[*range(len(tokenizer), VOCABULARY)])
    spoken = tokenizer.decode(said[ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(spoken, str)
    return spoken.lstrip()


async def refusal(options: EngineSection, kind: type[EngineError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        await opened(options).__aenter__()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["glm", "glm4", "llama", "qwen2", "qwen3"])
async def test_concurrent_answers_equal_generate(tmp_path: Path, kind: str) -> None:
    network = make_folder(tmp_path, kind)
    reports: list[tuple[int, int]] = []
    async with opened(options(tmp_path), lambda done, total: reports.append((done, total))) as engine:
        assert engine.info == EngineInfo(str(tmp_path), "transformers", "none", "float32", "cpu", 128)
        texts = ["hello", "你好，😀", "tell me something about this" * 2]
        answers = await asyncio.gather(*(answer(engine, ask(text)) for text in texts))
    assert [said for said, _ in answers] == [expected(network, text, 24) for text in texts]
    done, total = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert len(set(done)) > 10
    assert set(total) == {done[-1]} == {(tmp_path / "model.safetensors").stat().st_size}


async def test_any_stop_id_of_the_checkpoint_ends_an_answer(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with opened(options(tmp_path)) as engine:
        _, end = await answer(engine, ask("hello"))
        assert end.reason is FinishReason.LENGTH
    change(tmp_path, "generation_config.json", eos_token_id=list(range(290)))
    async with opened(options(tmp_path)) as engine:
        said, end = await answer(engine, ask("hello"))
    assert (said, end.reason, end.usage.completion_tokens) == ("", FinishReason.STOP, 1)
    (tmp_path / "generation_config.json").unlink()
    change(tmp_path, eos_token_id=[*range(5, 290)])
    async with opened(options(tmp_path)) as engine:
        assert (await answer(engine, ask("hello")))[1].reason is FinishReason.STOP


async def test_seeds_stop_strings_and_the_context_limit_work(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with opened(options(tmp_path, context_length=48)) as engine:
        assert engine.info.context_length == 48
        drawn = [await answer(engine, ask("hello", temperature=1.0, seed=7)) for _ in range(2)]
        assert drawn[0] == drawn[1]
        whole, end = await answer(engine, ask("hello", max_tokens=None))
        assert end.reason is FinishReason.LENGTH
        assert end.usage.prompt_tokens + end.usage.completion_tokens == 48
        stop = whole[4:6]
        cut, end = await answer(engine, ask("hello", stop=(stop,), max_tokens=None))
        assert (cut, end.reason) == (whole[: whole.index(stop)], FinishReason.STOP)


async def test_a_cancelled_answer_frees_its_slot(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with opened(options(tmp_path, max_batch_size=1)) as engine:
        async with aclosing(engine.generate(ask("hello", max_tokens=None))) as stream:
            assert isinstance(await anext(stream), Delta)
            assert engine.load.running == 1
        assert engine.load.running == 0
        assert (await answer(engine, ask("and now?")))[1].reason is FinishReason.LENGTH


@pytest.mark.parametrize("quantization", ["int8", "int4"])
async def test_weights_are_quantised_while_they_load(tmp_path: Path, quantization: str) -> None:
    make_folder(tmp_path, "glm4", sizes=WIDE)
    async with opened(options(tmp_path, quantization=quantization)) as engine:
        assert (engine.info.quantization, engine.info.dtype) == (quantization, "bfloat16")
        together = await asyncio.gather(*(answer(engine, ask("hello")) for _ in range(3)))
    assert {end.reason for _, end in together} == {FinishReason.LENGTH}


@pytest.mark.parametrize("name", ["", "tokenizer.json", "model.safetensors"])
async def test_a_permission_error_does_not_advise_to_remove_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, "llama")

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **options: Any) -> Any:
            if path in (tmp_path / name, str(tmp_path / name)):
                raise PermissionError(errno.EACCES, "Permission denied")
            return call(path, *args, **options)

        return checked

    for call in (os.open, os.listdir):  # root can read every file
        monkeypatch.setattr(os, call.__name__, refusing(call))
    assert await refusal(options(tmp_path)) == (
        f"{tmp_path / name} cannot be read (Permission denied): let the bot's user read it"
    )


async def test_a_quantised_checkpoint_is_loaded_as_stored(tmp_path: Path) -> None:
    make_folder(tmp_path / "whole", "llama", sizes=WIDE)
    config = loading.read_config(tmp_path / "whole")
    device = torch.device("cpu")
    small = loading.load_network(tmp_path / "whole", config, quantization="int8", dtype=torch.bfloat16, device=device)
    small.save_pretrained(tmp_path / "small")
    make_tokenizer().save_pretrained(tmp_path / "small")
    async with opened(options(tmp_path / "small")) as engine:
        assert (engine.info.quantization, engine.info.dtype) == ("bitsandbytes", "bfloat16")
        assert (await answer(engine, ask("hello")))[1].reason is FinishReason.LENGTH
    said = await refusal(options(tmp_path / "small", quantization="int4"))
    assert 'is already quantised (bitsandbytes): set engine.quantization = "none" instead of "int4"' in said


async def test_without_bitsandbytes_the_error_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path)
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    said = await refusal(options(tmp_path, quantization="int4"), EngineUnavailable)
    assert 'needs the package bitsandbytes: run python -m pip install "chatglm-bot[transformers]"' in said


def test_without_transformers_the_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name == "bot.engine.backends.transformers" or name.startswith("bot.engine.pretrained"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(EngineUnavailable, match=r'python -m pip install "chatglm-bot\[transformers\]", or'):
        open_engine(EngineSection(backend="transformers"))


async def test_settings_of_other_backends_are_rejected(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert "engine.ptuning only works with" in await refusal(options(tmp_path, ptuning="a/folder"))
    assert "uses one device" in await refusal(options(tmp_path, device="cpu,cpu"), EngineUnavailable)
    assert 'holds a ChatGLM: set engine.backend = "chatglm"' in await refusal(options("demo"))


async def test_folders_of_unsupported_models_are_rejected(tmp_path: Path) -> None:
    assert "has no config.json" in await refusal(options(tmp_path))
    make_folder(tmp_path)
    for changes, sentence in (
        ({"model_type": None}, "unknown model_type None"),
        (
            {"model_type": "of-tomorrow"},
            "unknown model_type 'of-tomorrow' for the installed transformers",
        ),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}},
            "needs its own code",
        ),
        ({"model_type": "vit"}, 'model_type "vit" does not generate text'),
        ({"model_type": "qwen3_next"}, "has linear_attention layers, which are not supported"),
        ({"num_hidden_layers": "two"}, "cannot be loaded"),
        ({"num_hidden_layers": 3}, "lacks 9 of the model's tensors, for example model.layers.2.input_layernorm.weight"),
        ({"hidden_size": 40}, "cannot be loaded"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path, broken, ignore=shutil.ignore_patterns("broken"))
        change(broken, **changes)
        assert sentence in await refusal(options(broken)), sentence
        shutil.rmtree(broken)


async def test_folders_with_missing_or_wrong_files_are_rejected(tmp_path: Path) -> None:
    make_folder(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cannot be loaded" in await refusal(options(tmp_path))
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, weights)
    assert "lacks 5 of the model's tensors" in await refusal(options(tmp_path))
    weights.rename(tmp_path / "pytorch_model.bin")
    assert "holds only pickle files (.bin), which can run code" in await refusal(options(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    assert "holds no weights" in await refusal(options(tmp_path))
    config.write_text("[]")
    assert "config.json cannot be read (not a JSON object)" in await refusal(options(tmp_path))
    config.write_text("{")
    assert "config.json cannot be read" in await refusal(options(tmp_path))


async def test_a_folder_without_a_tokenizer_or_template_is_rejected(tmp_path: Path) -> None:
    make_folder(tmp_path, template=None)
    assert "has no chat template" in await refusal(options(tmp_path))
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    assert "cannot be loaded" in await refusal(options(tmp_path))


async def test_a_missing_package_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    change(tmp_path, quantization_config={"quant_method": "hqq"})
    assert "cannot be loaded, a package is missing" in await refusal(options(tmp_path), EngineUnavailable)


async def test_a_checkpoints_code_is_not_run_even_if_the_model_is_supported(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    remote = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model", "AutoTokenizer": ["mine.T", "mine.T"]}
    change(tmp_path, auto_map=remote)
    change(tmp_path, "tokenizer_config.json", auto_map=remote)
    async with opened(options(tmp_path)) as engine:
        await answer(engine, ask("hello"))
    assert not (tmp_path / "ran").exists()


async def test_closing_during_loading_stops_the_load(tmp_path: Path) -> None:
    make_folder(tmp_path)
    reports: list[int] = []

    def progress(done: int, total: int) -> None:
        reports.append(done)
        if len(reports) == 3:
            raise EngineFailed("the engine was closed while it loaded")

    await_loading = opened(options(tmp_path), progress)
    with pytest.raises(EngineFailed, match="closed while it loaded"):
        await await_loading.__aenter__()
    assert len(reports) == 3


async def test_out_of_memory_while_loading_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)

    def full(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit into memory" in await refusal(options(tmp_path), EngineUnavailable)


def test_a_hub_model_is_downloaded_without_pickles_and_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def snapshot_download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(backend, "snapshot_download", snapshot_download)
    assert find_folder("zai-org/glm-4-9b-chat-hf", "main", backend._download) == tmp_path
    assert (asked["name"], asked["revision"]) == ("zai-org/glm-4-9b-chat-hf", "main")
    assert "*.safetensors" in str(asked["allow_patterns"])
    assert ".bin" not in str(asked["allow_patterns"])
    assert asked["ignore_patterns"] == ["original/*", "consolidated*"]


def test_the_context_is_the_setting_capped_by_the_model() -> None:
    long = LlamaConfig(max_position_embeddings=131072)
    assert [context_of(long), context_of(long, 20_000), context_of(long, 200_000)] == [8192, 20_000, 131072]
    assert context_of(CONFIGS["llama"]) == 128
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 4096}
    assert context_of(LlamaConfig(max_position_embeddings=16384, rope_parameters=stretched)) == 4096


def test_auto_is_a_dtype_that_model_and_device_support(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu, cuda = LlamaConfig(dtype=torch.bfloat16), torch.device("cpu"), torch.device("cuda")
    assert dtype_of(config, "auto", cpu, "none") == torch.float32
    assert dtype_of(config, "auto", cpu, "int4") == torch.bfloat16
    assert dtype_of(config, "float16", cpu, "none") == torch.float16
    for can, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, can=can: can)
        assert dtype_of(config, "auto", cuda, "none") == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert dtype_of(LlamaConfig(dtype=torch.float16), "auto", cuda, "none") == torch.float16


@pytest.mark.parametrize(("quantization", "share"), [("none", 1), ("int8", 0.25), ("int4", 0.125)])
def test_a_model_that_does_not_fit_beside_the_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, share: float
) -> None:
    folder = tmp_path / "llama"
    make_folder(folder)
    (folder / "consolidated.00.safetensors").write_bytes(b"x" * 10_000_000)
    wanted = options(folder, quantization=quantization)
    needed = backend.preflight(wanted, {})["cpu"]
    assert needed == int((folder / "model.safetensors").stat().st_size * share)

    monkeypatch.setattr(backend, "available_bytes", lambda device, as_if_alone: needed + 1000)
    assert backend.preflight(wanted, {"cpu": 1000}) == {"cpu": needed}
    with pytest.raises(EngineUnavailable, match=r"needs 0\.0 GiB for its weights, but cpu has only 0\.0 GiB free"):
        backend.preflight(wanted, {"cpu": 1001})

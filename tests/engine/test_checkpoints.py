"""Models that are on this disk already."""

import json
from pathlib import Path

import pytest

from bot.engine.checkpoints import cached_models, is_chat_model, models_in


def write_model(folder: Path, config: object, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        (folder / weights).write_bytes(b"weights")
    return folder


def cache_model(cache: Path, name: str, config: object) -> Path:
    """Put a model into a cache as the hub's library does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return write_model(repository / "snapshots" / ("a" * 40), config)


def test_chat_models_of_the_cache_are_found(tmp_path: Path) -> None:
    glm = cache_model(tmp_path, "THUDM/chatglm-6b", {"model_type": "chatglm", "architectures": ["ChatGLMModel"]})
    llama = cache_model(tmp_path, "someone/llama", {"architectures": ["LlamaForCausalLM"]})
    cache_model(tmp_path, "someone/encoder", {"architectures": ["BertModel"]})
    (tmp_path / "models--broken--one").mkdir()

    assert cached_models(tmp_path) == {"THUDM/chatglm-6b": glm, "someone/llama": llama}
    assert cached_models(tmp_path / "absent") == {}


def test_folders_with_models_are_found(tmp_path: Path) -> None:
    found = write_model(tmp_path / "glm", {"model_type": "chatglm"}, "pytorch_model.bin")
    write_model(tmp_path / "encoder", {"architectures": ["BertModel"]})
    (tmp_path / "secrets").mkdir()

    assert models_in((tmp_path, tmp_path / "absent")) == [found]


@pytest.mark.parametrize(
    "config",
    [[], {"architectures": "LlamaForCausalLM"}, {"architectures": [None]}, {}],
    ids=["list", "text", "null", "empty"],
)
def test_a_config_json_of_another_form_is_no_chat_model(tmp_path: Path, config: object) -> None:
    assert not is_chat_model(write_model(tmp_path / "model", config))


def test_a_model_without_weights_is_none(tmp_path: Path) -> None:
    assert not is_chat_model(write_model(tmp_path / "model", {"model_type": "chatglm"}, weights=""))

"""Model folders of any content: one CheckpointError, without a hang, at a start and at a change."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.config.schema import EngineSection
from bot.engine import open_engine, preflight
from bot.engine.chatglm.tokenizer import MODEL_FILE
from bot.engine.hot_swap import HotSwapEngine
from bot.errors import CheckpointError
from bot.util.clock import MonotonicClock
from tests.engine.test_damage import bins, safetensors

Spoil = Callable[[Path], object]


def put(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def replace(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def fields(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(known | changes), encoding="utf-8")

    return spoil


def shard(name: str) -> Spoil:
    return put("model.safetensors.index.json", json.dumps({"weight_map": {"x": name}}))


def header(content: object, length: int | None = None) -> Spoil:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return alone(put("model.safetensors", struct.pack("<Q", len(data) if length is None else length) + data))


def alone(spoil: Spoil) -> Spoil:
    """Spoil a folder whose weights are in one file."""

    def spoil_one(folder: Path) -> None:
        (folder / "model.safetensors.index.json").unlink()
        spoil(folder)

    return spoil_one


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse


def bomb(folder: Path) -> None:
    (found,) = list(folder.glob("*.bin"))[:1]
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as record:
            for _ in range(200):
                record.write(bytes(1 << 20))
        archive.writestr("archive/data/0", b"x")


DEEP = "[" * 100_000
CONFIG: dict[str, Spoil] = {
    "deep": put("config.json", '{"a": ' + DEEP),
    "closed and deep": put("config.json", '{"model_type": ' + "[" * 500 + "]" * 500 + "}"),
    "a pipe": replace("config.json", os.mkfifo),
    "a folder": replace("config.json", lambda path: path.mkdir()),
    "endless": replace("config.json", zeros),
    "a loop": replace("config.json", loop),
    "huge": replace("config.json", huge),
    "a long number": put("config.json", '{"vocab_size": ' + "9" * 50_000 + "}"),
    "large heads": fields("config.json", num_attention_heads=10**4000),
    "a large id": fields("config.json", bos_token_id=10**4000),
    "a long name": fields("config.json", model_type="x" * 100_000),
    "a list as name": fields("config.json", model_type=["chatglm"]),
    "control characters": fields("config.json", architectures=["\x9b2J\u202e"]),
    "many architectures": fields("config.json", architectures=["x"] * 100_000),
}
INDEX: dict[str, Spoil] = {
    "a long shard": shard("x" * 5000),
    "a path": shard("../../etc/passwd"),
    "a zero byte": shard("a\0b"),
    "the folder": shard(".."),
    "a number": put("model.safetensors.index.json", '{"weight_map": {"x": 3}}'),
    "deep": put("model.safetensors.index.json", '{"weight_map": ' + DEEP),
    "a pipe": replace("model.safetensors.index.json", os.mkfifo),
}
WEIGHTS: dict[str, Spoil] = {
    "a pipe": alone(replace("model.safetensors", os.mkfifo)),
    "endless": alone(replace("model.safetensors", zeros)),
    "a long header": header(b"{}", 1 << 62),
    "a deep header": header(b'{"a":' + b"[" * 50_000),
    "a shape that overflows": header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}}),
    "an empty shape": header({"a": {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}}),
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "a strange dtype": header({"\x9b" * 9000: {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}),
}
PICKLES: dict[str, Spoil] = {
    "a pipe": lambda folder: [replace(path.name, os.mkfifo)(folder) for path in folder.glob("*.bin")],
    "endless": lambda folder: [replace(path.name, zeros)(folder) for path in folder.glob("*.bin")],
    "a bomb": bomb,
    "a long read": lambda folder: [path.write_bytes(b"\x80\x04\x8e" + b"\xff" * 8) for path in folder.glob("*.bin")],
}
TOKENIZER: dict[str, Spoil] = {
    "a pipe": replace(MODEL_FILE, os.mkfifo),
    "endless": replace(MODEL_FILE, zeros),
    "huge": replace(MODEL_FILE, huge),
    "random": put(MODEL_FILE, os.urandom(1000)),
    "many image tokens": fields("tokenizer_config.json", num_image_tokens=10**4000),
    "a deep config": put("tokenizer_config.json", '{"a": ' + DEEP),
}
CASES = [
    *((safetensors, spoil, f"config, {name}") for name, spoil in CONFIG.items()),
    *((safetensors, spoil, f"index, {name}") for name, spoil in INDEX.items()),
    *((safetensors, spoil, f"weights, {name}") for name, spoil in WEIGHTS.items()),
    *((bins, spoil, f"pickles, {name}") for name, spoil in PICKLES.items()),
    *((safetensors, spoil, f"tokenizer, {name}") for name, spoil in TOKENIZER.items()),
]


@pytest.mark.parametrize(("form", "spoil"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
async def test_a_folder_is_refused_with_one_sentence(form: Spoil, spoil: Spoil, tmp_path: Path) -> None:
    form(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        async with open_engine(EngineSection(model=str(tmp_path))):
            pass
    said = str(caught.value).replace(str(tmp_path), "")
    assert len(said) < 400
    assert said.isprintable()


@pytest.mark.parametrize(
    "spoil", [CONFIG["closed and deep"], INDEX["a long shard"], CONFIG["endless"], WEIGHTS["a pipe"]]
)
async def test_a_running_model_stays(spoil: Spoil, tmp_path: Path) -> None:
    safetensors(tmp_path)
    spoil(tmp_path)
    section = EngineSection(model="demo")
    async with HotSwapEngine(section, open_engine, MonotonicClock(), check=preflight) as engine:
        assert await engine.change(section.model_copy(update={"model": str(tmp_path)}))
        assert engine.info.model == "demo"
        assert not engine.load.is_changing


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~" * 300])
async def test_a_name_that_no_file_system_takes_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        preflight(EngineSection(model=name))
    assert len(str(caught.value)) < 400

"""Checkpoints: all formats load to the same weights, and errors are one sentence."""

import errno
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.loading import check_load, load
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.kernels.reference import Int8, dequantise, quantise_int8, quantise_rows
from bot.engine.serving.base import Batch
from bot.errors import CheckpointError

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
PROMPT = (5, 75, 301, 641, 644)
DENSE = "transformer.layers.2.mlp.dense_h_to_4h.weight"


def tensors() -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for shard in sorted(GOLDEN.glob("model-*.safetensors")):
        merged |= load_file(shard)
    return merged


def logits(model: ChatGLMForServing) -> Tensor:
    return model.forward(Batch((0,), (PROMPT,), (0,)))


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return logits(load(GOLDEN, dtype="float32", slots=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    return tmp_path


def with_safetensors(folder: Path) -> None:
    for path in GOLDEN.glob("model*"):
        shutil.copyfile(path, folder / path.name)


def with_bins(folder: Path) -> None:
    for path in GOLDEN.glob("pytorch_model*"):
        shutil.copyfile(path, folder / path.name)


def with_one_file(folder: Path, **changed: Tensor | None) -> None:
    """Write model.safetensors with some tensors replaced (None: removed); `__` in a name is a dot."""
    content = tensors()
    for name, tensor in changed.items():
        if tensor is None:
            del content[name.replace("__", ".")]
        else:
            content[name.replace("__", ".")] = tensor
    save_file(content, folder / "model.safetensors")


def with_one_bin(folder: Path, content: object | None = None) -> None:
    torch.save(tensors() if content is None else content, folder / "pytorch_model.bin")


def with_old_bin(folder: Path) -> None:
    torch.save(tensors(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def without_ignored(folder: Path) -> None:
    kept = {name: tensor for name, tensor in tensors().items() if "inv_freq" not in name and "lm_head" not in name}
    save_file(kept, folder / "model.safetensors")


def with_another_head(folder: Path) -> None:
    with_one_file(folder, lm_head__weight=torch.zeros(1024, 64))


# Valid checkpoints


@pytest.mark.parametrize(
    "put", [with_safetensors, with_bins, with_one_file, with_one_bin, with_old_bin, without_ignored, with_another_head]
)
def test_every_checkpoint_format_gives_the_same_network(
    put: Callable[[Path], None], folder: Path, expected: Tensor
) -> None:
    put(folder)
    assert torch.equal(logits(load(folder, dtype="float32", slots=1)), expected)


@pytest.mark.parametrize("name", ["int4", "int4-qe"])
def test_a_quantised_checkpoint_is_detected_without_an_entry_in_its_config(name: str, tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    shutil.copyfile(GOLDEN / name / "pytorch_model.bin", tmp_path / "pytorch_model.bin")
    silent, named = (load(place, slots=1) for place in (tmp_path, GOLDEN / name))
    assert named.quantization == silent.quantization == "int4"
    assert named.dtype == torch.bfloat16
    assert torch.equal(logits(silent), logits(named))


def test_an_int8_checkpoint_is_detected(folder: Path) -> None:
    save_file(int8_tensors(), folder / "model.safetensors")
    assert load(folder, slots=1).quantization == "int8"


def int8_tensors() -> dict[str, Tensor]:
    content = tensors()
    for name in [name for name in content if ".layers." in name and content[name].dim() == 2]:
        matrix = quantise_rows(content[name], 8)
        assert isinstance(matrix, Int8)
        content[name], content[f"{name}_scale"] = matrix.values, matrix.scale[:, 0].contiguous()
    return content


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_embedding_is_int8_in_quantised_models(quantization: Any) -> None:
    table = quantise_int8(tensors()["transformer.word_embeddings.weight"])
    model = load(GOLDEN, quantization=quantization, slots=1)
    rows = model.network.transformer.word_embeddings(torch.tensor([0, 7, 1023]))
    assert torch.equal(rows, dequantise(table)[[0, 7, 1023]])


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_progress_reaches_the_total_bytes(quantization: Any) -> None:
    seen: list[tuple[int, int]] = []
    load(GOLDEN, quantization=quantization, slots=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1] > 400_000


def test_the_model_does_not_reference_the_files(folder: Path, expected: Tensor) -> None:
    with_bins(folder)
    model = load(folder, dtype="float16", slots=1)
    before = logits(model)
    for path in folder.glob("*.bin"):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(logits(model), before)


def test_a_prefix_in_a_full_checkpoint_is_used(folder: Path) -> None:
    prefix = torch.load(GOLDEN / "ptuning" / "no_projection" / "pytorch_model.bin", weights_only=True)
    with_one_bin(folder, {**tensors(), **prefix})
    apart = load(GOLDEN, dtype="float32", slots=1, ptuning=GOLDEN / "ptuning" / "no_projection")
    for whole in (load(folder, dtype="float32", slots=1), load(GOLDEN, dtype="float32", slots=1, ptuning=folder)):
        assert torch.equal(logits(whole), logits(apart))


# Invalid checkpoints


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def nothing(_: Path) -> None:
    pass


def without_a_shard(folder: Path) -> None:
    with_safetensors(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def with_an_empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def with_an_index_that_leads_away(folder: Path) -> None:
    outside = str(GOLDEN / "model-00001-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {DENSE: outside}}))


def with_an_index_that_leads_up(folder: Path) -> None:
    with_safetensors(folder)
    inside = f"../{folder.name}/model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {DENSE: inside}}))


def with_swapped_shards(folder: Path) -> None:
    with_safetensors(folder)
    first, second = folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def with_a_tensor_twice(folder: Path) -> None:
    with_safetensors(folder)
    path = folder / "model-00003-of-00003.safetensors"
    save_file({**load_file(path), DENSE: tensors()[DENSE]}, path)


def with_a_cut_safetensors(folder: Path) -> None:
    with_safetensors(folder)
    cut(folder / "model-00002-of-00003.safetensors")


def with_a_cut_bin(folder: Path) -> None:
    with_bins(folder)
    cut(folder / "pytorch_model-00002-of-00003.bin")


def with_a_cut_old_bin(folder: Path) -> None:
    with_old_bin(folder)
    cut(folder / "pytorch_model.bin")


def with_an_empty_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")


def with_changed_bytes(folder: Path) -> None:
    with_bins(folder)
    path = folder / "pytorch_model-00001-of-00003.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_changed_names(folder: Path) -> None:
    """Swap the names of layers 1 and 2 without updating the archive's checksums."""
    with_bins(folder)
    for path in folder.glob("*.bin"):
        content = path.read_bytes()
        swapped = content.replace(b"layers.1.", b"layers.x.").replace(b"layers.2.", b"layers.1.")
        path.write_bytes(swapped.replace(b"layers.x.", b"layers.2."))


def with_a_shard_of_a_larger_model(folder: Path) -> None:
    with_safetensors(folder)
    path = folder / "model-00002-of-00003.safetensors"
    larger = {name: torch.cat([part] * min(2, part.dim())) for name, part in load_file(path).items()}
    save_file(larger, path)


def with_a_shard_of_an_int4_checkpoint(folder: Path) -> None:
    with_safetensors(folder)
    int4 = torch.load(GOLDEN / "int4" / "pytorch_model.bin", weights_only=True)
    path = folder / "model-00002-of-00003.safetensors"
    save_file({name: int4[name].clone() for name in load_file(path)}, path)


def with_other_heads(folder: Path) -> None:
    with_safetensors(folder)
    edit_json(folder / "config.json", num_attention_heads=2)


def with_the_vocabulary_of_the_first_release(folder: Path) -> None:
    with_safetensors(folder)
    edit_json(folder / "config.json", vocab_size=150528)


def with_code(folder: Path) -> None:
    with_one_bin(folder, {DENSE: Evil()})


def with_bare_code(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def quantised_differently(folder: Path) -> None:
    shutil.copyfile(GOLDEN / "int4" / "pytorch_model.bin", folder / "pytorch_model.bin")
    edit_json(folder / "config.json", quantization_bit=8)


def with_a_short_scale(folder: Path) -> None:
    content = int8_tensors()
    content[f"{DENSE}_scale"] = content[f"{DENSE}_scale"][:-1].clone()
    save_file(content, folder / "model.safetensors")


def with_more_layers(folder: Path) -> None:
    with_safetensors(folder)
    edit_json(folder / "config.json", num_layers=5)


def with_fewer_layers(folder: Path) -> None:
    with_safetensors(folder)
    edit_json(folder / "config.json", num_layers=3)


def with_another_shape(folder: Path) -> None:
    with_one_file(folder, **{DENSE.replace(".", "__"): torch.zeros(256, 32)})


def with_a_flat_matrix(folder: Path) -> None:
    with_one_file(folder, transformer__layers__0__attention__query_key_value__weight=torch.zeros(192 * 64))


def with_integers(folder: Path) -> None:
    with_one_file(folder, **{DENSE.replace(".", "__"): torch.zeros(256, 64, dtype=torch.int32)})


def with_a_bare_int8(folder: Path) -> None:
    with_one_file(folder, **{DENSE.replace(".", "__"): torch.zeros(256, 64, dtype=torch.int8)})


def with_an_odd_kind(folder: Path) -> None:
    with_one_file(folder, odd=torch.zeros(4, dtype=torch.complex64))


def with_nan(folder: Path) -> None:
    with_one_file(folder, **{DENSE.replace(".", "__"): torch.full((256, 64), torch.nan)})


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (nothing, "holds no weights: it needs model.safetensors or pytorch_model.bin"),
        (without_a_shard, "lists the shard model-00002-of-00003.safetensors, which is missing"),
        (with_an_empty_index, "model.safetensors.index.json has no weight_map"),
        (with_an_index_that_leads_away, f"lists the shard {str(GOLDEN)[:20]}"),
        (with_an_index_that_leads_away, ", which is outside its folder: download it again"),
        (with_an_index_that_leads_up, ", which is outside its folder: download it again"),
        (with_swapped_shards, "which does not hold it: the files are from different downloads"),
        (with_a_tensor_twice, f"model-00003-of-00003.safetensors holds the tensor {DENSE}, which"),
        (with_a_cut_safetensors, "model-00002-of-00003.safetensors is corrupt or truncated"),
        (with_a_cut_bin, "pytorch_model-00002-of-00003.bin is corrupt or truncated"),
        (with_a_cut_old_bin, "pytorch_model.bin is corrupt"),
        (with_an_empty_bin, "pytorch_model.bin is corrupt"),
        (with_changed_bytes, "checksum mismatch in tensor"),
        (with_changed_names, "/data.pkl): download it again"),
        (with_a_shard_of_a_larger_model, "00002-of-00003.safetensors: tensor transformer.layers."),
        (with_a_shard_of_an_int4_checkpoint, "00002-of-00003.safetensors: tensor transformer.layers."),
        (
            with_other_heads,
            "rotary_emb.inv_freq has the shape [4], but its config.json (num_attention_heads 2",
        ),
        (
            with_the_vocabulary_of_the_first_release,
            "word_embeddings.weight has the shape [1024, 64], but config.json implies",
        ),
        (with_code, "could run code; it was not loaded"),
        (with_bare_code, "could run code; it was not loaded"),
        (lambda folder: with_one_bin(folder, [1, 2]), "holds a list, not a dict of tensors"),
        (lambda folder: with_one_bin(folder, {"epoch": 3}), "holds 'epoch', which is not a dense tensor"),
        (quantised_differently, "holds int4 weights, but its config.json says quantization_bit 8"),
        (with_a_short_scale, f"tensor {DENSE}_scale has the shape [255], but config.json implies [256]"),
        (with_more_layers, "lacks the tensor transformer.layers.4.input_layernorm.weight and 11 more"),
        (with_fewer_layers, "holds the tensor transformer.layers.3."),
        (with_another_shape, f"tensor {DENSE} has the shape [256, 32], but config.json implies [256, 64]"),
        (with_a_flat_matrix, "query_key_value.weight has the shape [12288]"),
        (with_integers, f"tensor {DENSE} has the dtype int32; expected floating-point"),
        (with_a_bare_int8, f"tensor {DENSE} has the dtype int8; expected floating-point"),
        (with_an_odd_kind, "tensor odd has the unsupported dtype"),
        (with_nan, f"tensor {DENSE} holds NaN or infinite values"),
    ],
    ids=lambda value: value.__name__.strip("<>") if callable(value) else "",
)
def test_a_wrong_checkpoint_is_rejected(damage: Callable[[Path], None], found: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as refused:
        load(folder)
    assert found in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
FILES = ["config.json", "model.safetensors", "pytorch_model.bin", "ice_text.model"]


def use(folder: Path) -> None:
    load(folder)
    ChatGLMTokenizer.load(folder)


@pytest.fixture
def whole(folder: Path) -> Path:
    """A folder with the weights in every format."""
    with_one_file(folder)
    shutil.copyfile(GOLDEN / "ice_text.model", folder / "ice_text.model")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_is_named(name: str, whole: Path) -> None:
    if name == "pytorch_model.bin":
        (whole / "model.safetensors").unlink()
    (whole / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer, not the file itself: run `git lfs"):
        use(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_permission_error_does_not_advise_a_new_download(
    name: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "pytorch_model.bin":
        (whole / "model.safetensors").rename(whole / name)
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if path == whole / name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)  # root can read every file
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(Permission denied\): let the bot's user"):
        use(whole)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, r"Permission denied\): let the bot's user read it"),
        (errno.EIO, r"Input/output error\): download it again"),
    ],
)
def test_a_file_that_becomes_unreadable_is_not_called_corrupt(
    number: int, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_bin(folder)

    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)  # the second opening, after the check
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin cannot be read \({told}"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing: name a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_a_quantised_checkpoint_is_not_quantised_again(asked: Any) -> None:
    with pytest.raises(CheckpointError) as refused:
        load(GOLDEN / "int4", quantization=asked)
    assert f'is already quantised to int4: set engine.quantization = "none" instead of "{asked}"' in str(refused.value)


def test_int4_of_a_detected_int8_checkpoint_is_rejected(folder: Path) -> None:
    save_file(int8_tensors(), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r'is already quantised to int8: .* instead of "int4"'):
        load(folder, quantization="int4")
    # Also while another model still serves.
    with pytest.raises(CheckpointError, match=r'is already quantised to int8: .* instead of "int4"'):
        check_load(
            folder,
            quantization="int4",
            dtype="auto",
            device="cpu",
            slots=1,
            ptuning=None,
            prefixes={},
            context=0,
            name="demo",
            taken={},
        )


@pytest.mark.parametrize("form", ["no_projection", "projection"])
def test_a_prefix_of_another_model_is_rejected(form: str, folder: Path) -> None:
    content = torch.load(GOLDEN / "ptuning" / form / "pytorch_model.bin", weights_only=True)
    name = "transformer.prefix_encoder.embedding.weight"
    torch.save({**content, name: content[name][:, :-2].clone()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="this P-Tuning prefix was trained for another model"):
        load(GOLDEN, ptuning=folder)


def test_an_empty_prefix_is_rejected(folder: Path) -> None:
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.zeros(0, 512)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"embedding\.weight has the shape \[0, 512\]"):
        load(GOLDEN, ptuning=folder)


def test_an_incomplete_prefix_is_rejected(folder: Path) -> None:
    content = torch.load(GOLDEN / "ptuning" / "projection" / "pytorch_model.bin", weights_only=True)
    del content["transformer.prefix_encoder.trans.2.bias"]
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"trans\.2\.bias is missing: this P-Tuning prefix"):
        load(GOLDEN, ptuning=folder)


def test_a_folder_without_a_prefix_is_rejected() -> None:
    with pytest.raises(CheckpointError, match="holds no P-Tuning prefix"):
        load(GOLDEN, ptuning=GOLDEN)


def test_a_randomly_corrupted_bin_is_rejected_or_gives_the_same_logits(folder: Path) -> None:
    source = (GOLDEN / "int4" / "pytorch_model.bin").read_bytes()
    shutil.copyfile(GOLDEN / "int4" / "config.json", folder / "config.json")
    wanted = logits(load(GOLDEN / "int4", dtype="float32", slots=1))
    chance = random.Random(28)
    refused = 0
    for _ in range(60):
        content = bytearray(source)
        for _ in range(chance.choice([1, 1, 8, 64])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.2:
            del content[chance.randrange(len(content)) :]
        (folder / "pytorch_model.bin").write_bytes(content)
        try:
            assert torch.equal(logits(load(folder, dtype="float32", slots=1)), wanted)
        except CheckpointError:
            refused += 1
    assert refused > 40

"""Two hundred corrupt checkpoints: each is rejected with one sentence, or gives the same logits."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bot.engine.chatglm.loading import load
from bot.engine.chatglm.tokenizer import MODEL_FILE, ChatGLMTokenizer
from bot.engine.serving.base import Batch
from bot.errors import CheckpointError

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
PROMPT = (5, 75, 301, 641, 644)
COUNT = 200

Chance = random.Random


def numbers(folder: Path) -> Tensor:
    return load(folder, dtype="float32", slots=1).forward(Batch((0,), (PROMPT,), (0,)))


def bins(folder: Path) -> None:
    copy(folder, "pytorch_model*")


def safetensors(folder: Path) -> None:
    copy(folder, "model*")


def int4(folder: Path) -> None:
    copy(folder, "int4/*")


def copy(folder: Path, pattern: str) -> None:
    for path in [*GOLDEN.glob("*.json"), GOLDEN / MODEL_FILE, *GOLDEN.glob(pattern)]:
        if not path.name.endswith("index.json") or path.match(pattern):
            shutil.copyfile(path, folder / path.name)


FORMS: dict[Callable[[Path], None], str] = {bins: "*.bin", safetensors: "*.safetensors", int4: "*.bin"}


def change_bytes(path: Path, chance: Chance, start: int = 0, end: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 4, 64])):
        content[chance.randrange(start, end or len(content))] = chance.randrange(256)
    path.write_bytes(content)


def cut_off(path: Path, chance: Chance) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def blank(path: Path, chance: Chance) -> None:
    """Zero a block, as after an interrupted download."""
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def swap(path: Path, chance: Chance) -> None:
    """Swap two files."""
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path]
    shutil.copyfile(chance.choice(others) if others else path.parent / "config.json", path)


def remove(path: Path, _: Chance) -> None:
    path.unlink()


def damage_weights(folder: Path, form: str, chance: Chance) -> str:
    path = chance.choice(sorted(folder.glob(form)))
    if path.suffix == ".safetensors":
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        how = chance.choice(["header", "header", "cut", "swap", "remove"])
        if how == "header":
            change_bytes(path, chance, end=header)
            return "header"
    else:
        how = chance.choice(["bytes", "bytes", "cut", "blank", "swap", "remove"])
    {"bytes": change_bytes, "cut": cut_off, "blank": blank, "swap": swap, "remove": remove}[how](path, chance)
    return f"{how} {path.suffix}"


def damage_json(folder: Path, form: str, chance: Chance) -> str:
    path = chance.choice(sorted([folder / "config.json", *folder.glob("*.index.json")]))
    chance.choice([change_bytes, cut_off, swap, remove])(path, chance)
    return path.name


def damage_config(folder: Path, form: str, chance: Chance) -> str:
    """Change a size or an id in config.json."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    sizes = [name for name, value in fields.items() if type(value) is int and name not in HARMLESS]
    name = chance.choice(sizes)
    fields[name] = max(0, fields[name] + chance.choice([-640, -64, -3, -1, 1, 2, 64, 512]))
    path.write_text(json.dumps(fields))
    return f"config.json {name}"


HARMLESS = ("max_sequence_length", "pad_token_id")


def damage_vocabulary(folder: Path, form: str, chance: Chance) -> str:
    chance.choice([change_bytes, cut_off, blank, remove])(folder / MODEL_FILE, chance)
    return MODEL_FILE


def outcome(folder: Path, wanted: Tensor) -> str:
    try:
        ChatGLMTokenizer.load(folder)
        found = numbers(folder)
    except CheckpointError as refused:
        sentence = str(refused)
        return "refused" if str(folder) in sentence and "\n" not in sentence else f"said: {sentence}"
    return "same" if torch.equal(found, wanted) else "other numbers, and nobody was told"


def test_two_hundred_corrupt_checkpoints_are_rejected_or_give_the_same_logits(tmp_path: Path) -> None:
    chance = Chance(6)
    whole = {form: numbers(GOLDEN / "int4" if form is int4 else GOLDEN) for form in FORMS}
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        folder = tmp_path / str(number)
        folder.mkdir()
        form = chance.choice(list(FORMS))
        form(folder)
        damages = [damage_weights, damage_weights, damage_weights, damage_json, damage_config, damage_vocabulary]
        what = chance.choice(damages)(folder, FORMS[form], chance)
        found = outcome(folder, whole[form])
        assert found in ("refused", "same"), f"{what}, damage {number}: {found}"
        seen[found] += 1
        shutil.rmtree(folder)
    assert seen["refused"] > 0.7 * COUNT

"""The files that sentence-transformers adds to an encoder's folder: modules, pooling, limits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bot.errors import CheckpointError
from bot.util.files import read_json_object, read_regular, shown

Pooling = Literal["mean", "cls"]

# Tokens of a text where no file says otherwise, as text2vec reads it.
MAX_TOKENS = 128

_LARGEST_LIST = 1024 * 1024
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class SentenceFolder:
    """An encoder's folder, and how its vectors become one per text.

    `max_tokens` is None where the model's own limit applies.
    """

    network: Path
    pooling: Pooling = "mean"
    normalizes: bool = False
    max_tokens: int | None = MAX_TOKENS
    lowercases: bool = False


def read_folder(folder: Path) -> SentenceFolder:
    """Read modules.json, the pooling's config.json and sentence_bert_config.json, where they exist.

    Raises:
        CheckpointError: One is damaged, or names something that is not supported.
    """
    modules = _modules(folder)
    network = _inside(folder, modules.get("Transformer", ""))
    pooling = _pooling(_inside(folder, modules.get("Pooling", "1_Pooling")) / "config.json")
    limits = _object(network / "sentence_bert_config.json")
    max_tokens = limits.get("max_seq_length", None if modules else MAX_TOKENS)
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise CheckpointError(
            f"{network}/sentence_bert_config.json: max_seq_length is {shown(str(max_tokens))}, not a number of tokens: "
            "download it again"
        )
    return SentenceFolder(network, pooling, "Normalize" in modules, max_tokens, bool(limits.get("do_lower_case")))


def _modules(folder: Path) -> dict[str, str]:
    """Return the paths of the modules by kind; empty if the folder has no list of them."""
    place = folder / "modules.json"
    try:
        content = json.loads(read_regular(place, _LARGEST_LIST))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{place} cannot be read ({shown(str(exc), 120)}): download it again") from exc
    modules: dict[str, str] = {}
    for module in content if isinstance(content, list) else [content]:
        fields = module if isinstance(module, dict) else {}
        kind, path = str(fields.get("type")).rpartition(".")[2], fields.get("path", "")
        if kind not in _MODULES or not isinstance(path, str):
            raise CheckpointError(
                f"{place}: the module {shown(kind)} is not supported: choose a model with a transformer, mean or CLS "
                "pooling, and normalisation at most"
            )
        modules[kind] = path
    return modules


def _pooling(place: Path) -> Pooling:
    fields = _object(place)
    modes = {name for name, value in fields.items() if name.startswith("pooling_mode_") and value is True}
    if isinstance(mode := fields.get("pooling_mode"), str):
        modes.add(mode)
    if modes <= {"pooling_mode_mean_tokens", "mean"}:
        return "mean"
    if modes <= {"pooling_mode_cls_token", "cls"}:
        return "cls"
    raise CheckpointError(
        f"{place}: {', '.join(map(shown, sorted(modes)))} is not supported: choose a model with mean or CLS pooling"
    )


def _object(place: Path) -> dict[str, Any]:
    try:
        return read_json_object(place)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{place} cannot be read ({shown(str(exc), 120)}): download it again") from exc


def _inside(folder: Path, path: str) -> Path:
    found = folder / path
    if not found.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder}/modules.json names a folder outside: {shown(path)}: download it again")
    return found

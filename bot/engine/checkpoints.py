"""Find chat models that are on this disk: in the cache of the Hugging Face hub, and in folders."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CacheNotFound, scan_cache_dir

from bot.engine.chatglm.config import read_json
from bot.errors import CheckpointError


def cached_models(folder: Path | None = None) -> dict[str, Path]:
    """Return the chat models of the hub's cache by name, with the folder of the newest version.

    `folder` is another cache than the usual one.
    """
    try:
        cache = scan_cache_dir(folder)
    except (CacheNotFound, OSError):
        return {}
    found: dict[str, Path] = {}
    for repository in sorted(cache.repos, key=lambda each: each.repo_id):
        versions = sorted(repository.revisions, key=lambda each: each.last_modified)
        if repository.repo_type == "model" and versions and is_chat_model(versions[-1].snapshot_path):
            found[repository.repo_id] = versions[-1].snapshot_path
    return found


def models_in(folders: Iterable[Path]) -> list[Path]:
    """Return the folders with chat models that lie directly in some folders."""
    inner = [each for folder in folders if folder.is_dir() for each in sorted(folder.iterdir()) if each.is_dir()]
    return [each for each in inner if is_chat_model(each)]


def is_chat_model(folder: Path) -> bool:
    """Return whether a folder has the weights and the config.json of a model that writes answers."""
    try:
        config = read_json(folder / "config.json")
    except CheckpointError:
        return False
    architectures = config.get("architectures")
    names = [str(each) for each in architectures] if isinstance(architectures, list) else []
    writes = any("CausalLM" in name or "ConditionalGeneration" in name for name in names)
    has_weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    return has_weights and (writes or config.get("model_type") == "chatglm")

"""Find the folder of a model: the demo, a folder, or a model of the hub; without torch."""

import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub  # imports its parts, for up to 0.3 s, only when they are used

from bot.engine.chatglm.config import read_json
from bot.errors import CheckpointError, EngineUnavailable
from bot.util.files import shown

DEMO = Path(__file__).parent / "demo"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(model: str, revision: str, download: Callable[[str, str], Path]) -> Path:
    """Return the folder of `engine.model`: "demo", a folder, or a model of the hub.

    `download(model, revision)` fetches the files that the backend needs; cached downloads
    work offline.

    Raises:
        CheckpointError: There is no such folder or model.
        EngineUnavailable: The download failed.
    """
    try:
        folder = DEMO if model == "demo" else Path(model).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as exc:  # RuntimeError: ~ without a home directory
        raise CheckpointError(
            f'engine.model = "{shown(model)}" cannot be read ({shown(str(exc), 120)}): name a folder that the bot\'s user can read'
        ) from exc
    if is_folder:
        if revision:
            raise CheckpointError(
                f'engine.revision = "{revision}" only applies to models of the hub, but engine.model = "{model}" is a '
                "folder: remove engine.revision"
            )
        return folder
    if not is_hub_name(model):
        raise CheckpointError(
            f'engine.model = "{shown(model)}": no such folder; name a folder, a model of the hub as "owner/name", or "demo"'
        )
    return _downloaded(model, revision, download)


def _downloaded(model: str, revision: str, download: Callable[[str, str], Path]) -> Path:
    from httpx2 import HTTPError  # huggingface_hub does not wrap it when a download is cut off
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return download(model, revision)
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f'engine.model = "{model}": no such folder, and no such model on the hub (or it is private)'
        ) from exc
    except RevisionNotFoundError as exc:
        raise CheckpointError(
            f'engine.revision = "{revision}": {model} has no such revision; "" is the latest'
        ) from exc
    except (OSError, HTTPError) as exc:
        raise EngineUnavailable(
            f'engine.model = "{model}" is not a folder, and downloading it failed ({type(exc).__name__}): '
            "check the network connection, or name a folder"
        ) from exc


def is_hub_name(model: str) -> bool:
    return _HUB_NAME.fullmatch(model) is not None


def backend_of(model: str, revision: str) -> str:
    """Return the backend for a model: its config.json, downloaded if needed, tells.

    Raises:
        CheckpointError: There is no such model, or no readable config.json.
        EngineUnavailable: The download failed.
    """
    folder = find_folder(model, revision, _download_config)
    return "chatglm" if read_json(folder / "config.json").get("model_type") == "chatglm" else "transformers"


def snapshot_download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
    """Download a model's files whose names match; return their folder.

    Raises:
        As the function of huggingface_hub.
    """
    return huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=allow_patterns)


def _download_config(model: str, revision: str) -> Path:
    return Path(snapshot_download(model, revision=revision or None, allow_patterns=["config.json"]))

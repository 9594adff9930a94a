"""config.json of ChatGLM-6B; rejects other architectures."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.errors import CheckpointError
from bot.util.files import open_regular, read_json_object, shown

_FIRST_RELEASE_VOCABULARY = 150528
_POINTER = b"version https://git-lfs"

# Far above any ChatGLM, and small enough that loops over them end quickly.
_MAXIMA = {
    "vocab_size": 1_000_000,
    "hidden_size": 65_536,
    "inner_hidden_size": 262_144,
    "num_layers": 512,
    "max_sequence_length": 131_072,
    "pre_seq_len": 65_536,
}


# Of any other number, such as the ids of tokens.
_LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class ChatGLMConfig:
    """Fields of config.json that define the network, under their published names.

    `gmask_token_id` and `mask_token_id` mark the position of the answer; `bos_token_id` is
    `<sop>`, which starts it, and `eos_token_id` is `<eop>`, which ends it.
    """

    vocab_size: int
    hidden_size: int
    inner_hidden_size: int
    num_layers: int
    num_attention_heads: int
    bos_token_id: int
    eos_token_id: int
    mask_token_id: int
    gmask_token_id: int
    pad_token_id: int = 3
    max_sequence_length: int = 2048  # tokens, prompt and answer together
    layernorm_epsilon: float = 1e-5
    position_encoding_2d: bool = True
    first_release: bool = False  # ids offset by 20000, and another position for <sop>
    quantization_bit: int = 0  # 0, 4 or 8: of the stored weights
    quantization_embeddings: bool = False
    pre_seq_len: int = 0  # tokens of a P-Tuning v2 prefix; 0 is none
    prefix_projection: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def channels(self) -> int:
        """Positions per token: position and block position, or one in the 1-D form."""
        return 2 if self.position_encoding_2d else 1

    def as_json(self) -> dict[str, object]:
        """Return the config.json of this model, the inverse of `parse_config`."""
        fields = asdict(self)
        for optional in ("quantization_bit", "quantization_embeddings", "pre_seq_len", "prefix_projection"):
            if not fields[optional]:
                del fields[optional]
        if fields.pop("first_release"):
            del fields["mask_token_id"], fields["gmask_token_id"]
        return {"architectures": ["ChatGLMModel"], "model_type": "chatglm", **fields}


def read_config(folder: Path) -> ChatGLMConfig:
    """Read `folder`/config.json.

    Raises:
        CheckpointError: It is missing, invalid, or of another architecture.
    """
    return parse_config(read_json(folder / "config.json"), folder / "config.json")


def check_file(path: Path) -> None:
    """Check that a file is readable and not a Git LFS pointer.

    Raises:
        CheckpointError: Permission denied, not a regular file, or a Git LFS pointer.
        FileNotFoundError: There is none.
    """
    try:
        with open_regular(path) as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc
    if is_pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in that folder, or download it from "
            "the hub"
        )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error to raise where a file cannot be read."""
    advice = "let the bot's user read it" if isinstance(error, PermissionError) else "download it again"
    return CheckpointError(f"{path} cannot be read ({error.strerror or shown(str(error))}): {advice}")


def read_json(path: Path) -> dict[str, Any]:
    try:
        check_file(path)
        return read_json_object(path)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} is missing: name a folder with a checkpoint and its config.json") from exc
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc}): download it again") from exc


def parse_config(fields: Mapping[str, Any], place: Path) -> ChatGLMConfig:
    """Parse the `fields` of the config.json at `place`.

    Raises:
        CheckpointError: Another architecture, or invalid values.
    """
    _check_architecture(fields, place)

    def number(name: str, default: int | None = None, least: int = 1) -> int:
        value = fields.get(name, default)
        if value is None and default is not None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAXIMA.get(name, _LARGEST):
            found = f"{name} = {shown(json.dumps(value))}" if name in fields else f"no {name}"
            bounds = f"from {least} to {_MAXIMA[name]}" if name in _MAXIMA else f"of at least {least}"
            raise CheckpointError(f"{place} has {found}; expected an integer {bounds}")
        return value

    bos = number("bos_token_id", least=0)
    # The first release's config.json omits the mask ids; they have fixed offsets from <sop>.
    first_release = number("vocab_size") == _FIRST_RELEASE_VOCABULARY or "gmask_token_id" not in fields
    epsilon = fields.get("layernorm_epsilon", 1e-5)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise CheckpointError(
            f"{place} has layernorm_epsilon = {shown(json.dumps(epsilon))}; expected a number between 0 and 1"
        )
    config = ChatGLMConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("hidden_size"),
        inner_hidden_size=number("inner_hidden_size"),
        num_layers=number("num_layers"),
        num_attention_heads=number("num_attention_heads"),
        bos_token_id=bos,
        eos_token_id=number("eos_token_id", least=0),
        mask_token_id=number("mask_token_id", bos - 4, least=0),
        gmask_token_id=number("gmask_token_id", bos - 3, least=0),
        pad_token_id=number("pad_token_id", 3, least=0),
        max_sequence_length=number("max_sequence_length", 2048),
        layernorm_epsilon=epsilon,
        position_encoding_2d=bool(fields.get("position_encoding_2d", True)),
        first_release=first_release,
        quantization_bit=number("quantization_bit", 0, least=0),
        quantization_embeddings=bool(fields.get("quantization_embeddings", False)),
        pre_seq_len=number("pre_seq_len", 0, least=0),
        prefix_projection=bool(fields.get("prefix_projection", False)),
    )
    _check_values(config, place)
    return config


def _check_architecture(fields: Mapping[str, Any], place: Path) -> None:
    architectures = fields.get("architectures")
    named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    kind = fields.get("model_type")
    found = f"model_type {shown(json.dumps(kind))}" + (f", architecture {shown(named)}" if named else "")
    if kind != "chatglm" or (named and "ChatGLM" not in named):
        raise CheckpointError(
            f'{place} describes another model ({found}), and engine.backend = "chatglm" supports ChatGLM-6B only: '
            'set engine.backend = "auto" or "transformers"'
        )
    # ChatGLM2, ChatGLM3 and GLM-4 share the model_type but have other fields.
    if "padded_vocab_size" in fields or "ffn_hidden_size" in fields or "multi_query_attention" in fields:
        raise CheckpointError(
            f"{place} describes ChatGLM2, ChatGLM3 or GLM-4 ({found}) in a form that needs its own code, which is never "
            "run: choose a GLM-4 whose name ends in -hf, or a ChatGLM-6B"
        )


def _check_values(config: ChatGLMConfig, place: Path) -> None:
    heads, parts = config.num_attention_heads, 2 * config.channels
    if config.hidden_size % (heads * parts):
        raise CheckpointError(
            f"{place} has hidden_size {config.hidden_size}; expected a multiple of {heads * parts} for {heads} heads"
        )
    for name in ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id"):
        if getattr(config, name) >= config.vocab_size:
            raise CheckpointError(
                f"{place} has {name} = {getattr(config, name)}, outside its vocab_size {config.vocab_size}"
            )
    if config.quantization_bit not in (0, 4, 8):
        raise CheckpointError(f"{place} has quantization_bit = {config.quantization_bit}; expected 0, 4 or 8")

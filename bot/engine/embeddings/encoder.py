"""Sentence encoders of the BERT family, by the transformers library."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel

from bot.config.http import EmbeddingsSection
from bot.engine.base import silent
from bot.engine.chatglm.loading import find_device
from bot.engine.embeddings.folder import SentenceFolder, read_folder
from bot.engine.embeddings.queue import BATCH_TOKENS
from bot.engine.memory_available import available_bytes
from bot.engine.pretrained.loading import (
    check_files,
    complete_network,
    map_errors,
    read_json,
    report_progress,
    route_library_logs,
    weight_files,
)
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import CheckpointError, EngineFailed, EngineUnavailable
from bot.util.files import shown

KINDS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "distilbert",
        "electra",
        "ernie",
        "modernbert",
        "mpnet",
        "roberta",
        "xlm-roberta",
    }
)

_TRIAL = "hello"


class SentenceEncoder:
    """An `Encoder`: the network's last hidden states, pooled."""

    def __init__(self, name: str, network: PreTrainedModel, tokenizer: Any, form: SentenceFolder, limit: int) -> None:
        self._name = name
        self._network = network
        self._tokenizer = tokenizer
        self._form = form
        self._limit = limit
        self._padding = tokenizer.pad_token_id or 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimensions(self) -> int:
        return int(self._network.config.hidden_size)

    @property
    def normalizes(self) -> bool:
        return self._form.normalizes

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # JSON may have half a surrogate pair, which the tokenizer cannot take.
        whole = [text.encode(errors="replace").decode() for text in texts]
        found = self._tokenizer(
            [text.lower() for text in whole] if self._form.lowercases else whole,
            truncation=True,
            max_length=self._limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = found["input_ids"]
        return ids

    def encode(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return float32 `[texts, dimensions]`.

        Raises:
            EngineFailed: Out of memory, or another error of the device.
        """
        try:
            vectors: NDArray[np.float32] = self._pooled(batch).cpu().numpy()
        except RuntimeError as exc:
            why = "out of memory" if is_out_of_memory(exc) else type(exc).__name__
            raise EngineFailed(
                f"the embedding model failed ({why}); see embeddings.device and embeddings.max_tokens"
            ) from exc
        return vectors

    @torch.inference_mode()
    def _pooled(self, batch: Sequence[Sequence[int]]) -> Tensor:
        rows = [torch.tensor(ids) for ids in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._padding)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = self._network.device
        ids, mask = ids.to(device), mask.to(device)
        hidden: Tensor = self._network(
            input_ids=ids, attention_mask=mask
        ).last_hidden_state  # [texts, tokens, dimensions]
        if self._form.pooling == "cls":
            return hidden[:, 0]
        counted = mask[:, :, None].to(hidden.dtype)
        return (hidden * counted).sum(1) / counted.sum(1).clamp(min=1e-9)


def load_encoder(options: EmbeddingsSection) -> SentenceEncoder:
    """Load `options.model` in float32; the calling thread is the one that will run it.

    Raises:
        CheckpointError: The folder is incomplete or of another kind.
        EngineUnavailable: Unknown device, or not enough memory.
    """
    route_library_logs()
    form, config, device = _read(options)
    files = weight_files(form.network)
    _check_memory(options, config, device)
    if device.type == "cpu":
        # The other half decodes meanwhile: threads beyond the cores would slow both.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    with map_errors(form.network), report_progress(silent, 0):
        tokenizer = AutoTokenizer.from_pretrained(form.network, trust_remote_code=False, local_files_only=True)
        loaded = AutoModel.from_pretrained(
            form.network,
            config=config,
            dtype=torch.float32,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    network = complete_network(form.network, loaded, ignored="pooler.")
    network.eval()
    encoder = SentenceEncoder(
        _name(options), network, tokenizer, form, _limit(options, form, config, network, tokenizer)
    )
    if not np.isfinite(encoder.encode(encoder.tokenize([_TRIAL]))).all():
        raise CheckpointError(f"{files[0]} gives vectors that are not numbers: download it again")
    return encoder


def check_encoder(options: EmbeddingsSection) -> None:
    """Check the folder without its weights.

    Raises:
        As `load_encoder`.
    """
    form, config, device = _read(options)
    weight_files(form.network)
    _check_memory(options, config, device)


def _read(options: EmbeddingsSection) -> tuple[SentenceFolder, PretrainedConfig, torch.device]:
    device = find_device(options.device, "embeddings.device")
    folder = Path(options.model).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f'embeddings.model = "{shown(options.model)}": no such folder; download a model with '
            "`hf download OWNER/NAME --local-dir FOLDER` and name its folder"
        )
    form = read_folder(folder)
    check_files(form.network)
    kind = read_json(form.network, "config.json").get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{form.network}: model_type {shown(repr(kind))} is not a sentence encoder that is served here; choose one of "
            f"{', '.join(sorted(KINDS))}"
        )
    with map_errors(form.network):
        config = AutoConfig.from_pretrained(form.network, trust_remote_code=False, local_files_only=True)
    return form, config, device


def _check_memory(options: EmbeddingsSection, config: PretrainedConfig, device: torch.device) -> None:
    with torch.device("meta"):
        network = AutoModel.from_config(config, trust_remote_code=False)
    weights = sum(parameter.numel() for parameter in network.parameters())
    # A batch's hidden states with queries, keys and values, and the inner states of one layer.
    width = 6 * config.hidden_size + 2 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    needed, free = 4 * (weights + BATCH_TOKENS * width), available_bytes(device)
    if free is not None and needed > free:
        raise EngineUnavailable(
            f'embeddings.model = "{shown(options.model)}" needs {needed / 2**30:.1f} GiB, but {device} has only '
            f'{free / 2**30:.1f} GiB free: name another device, a smaller model, or set it to ""'
        )


def _limit(
    options: EmbeddingsSection, form: SentenceFolder, config: PretrainedConfig, network: PreTrainedModel, tokenizer: Any
) -> int:
    """Return the tokens that are read of a text: at most those that the model has positions for."""
    positions = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    # RoBERTa's positions begin behind the id of the padding.
    skipped = getattr(positions, "padding_idx", None)
    longest = config.max_position_embeddings - (0 if skipped is None else skipped + 1)
    return int(min(options.max_tokens or form.max_tokens or longest, longest, tokenizer.model_max_length))


def _name(options: EmbeddingsSection) -> str:
    """Return the name that clients use: the folder's."""
    return Path(options.model).expanduser().resolve().name

"""Create tiny sentence encoders, as folders in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [
    *CONTROL,
    *ascii_lowercase,
    *(f"##{letter}" for letter in ascii_lowercase),
    *"今天气很好我你",
    "cat",
    "dog",
]

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    # Large enough that a small random model tells texts apart.
    "initializer_range": 0.4,
}


def make_encoder(folder: Path, kind: str = "bert", **sizes: int) -> PreTrainedModel:
    """Save a model with random weights and its vocabulary; return it for comparison."""
    torch.manual_seed(0)
    options = SIZES | {"max_position_embeddings": 160} | sizes
    network: PreTrainedModel
    if kind == "bert":
        network = BertModel(BertConfig(**options))
    else:
        network = RobertaModel(RobertaConfig(**options, pad_token_id=0, bos_token_id=2, eos_token_id=3))
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    return network


def write(place: Path, value: object) -> None:
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(value))


def add_modules(folder: Path, *kinds: str, pooling: str = "mean_tokens", limit: int | None = None) -> None:
    """Write the files of sentence-transformers: modules, pooling, limit."""
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": paths.get(kind, kind),
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})

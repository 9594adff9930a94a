"""Create tiny chat models of the transformers library, as folders in the hub's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Glm4Config,
    GlmConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

CONTROL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<think>")

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # Large enough that small random models answer different prompts differently.
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}

WINDOW = 12

# More ids than the vocabulary has, as in most models.
VOCABULARY = 296

CONFIGS: dict[str, PretrainedConfig] = {
    "glm": GlmConfig(**SIZES),
    "glm4": Glm4Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "gemma2": Gemma2Config(**SIZES, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "gpt_oss": GptOssConfig(**SIZES, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with few merges: Chinese characters and emoji are several tokens each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True) for text in CONTROL[:-1]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello there, how are you?", "tell me something about this"] * 3, trainer)
    tokenizer.add_tokens([AddedToken(CONTROL[-1], special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL[0], chat_template=template)


def make_network(kind: str, seed: int = 0, sizes: Mapping[str, int] | None = None) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = type(CONFIGS[kind]).from_dict(CONFIGS[kind].to_dict() | {"vocab_size": VOCABULARY} | dict(sizes or {}))
    network = AutoModelForCausalLM.from_config(config)
    assert isinstance(network, PreTrainedModel)
    network.eval()
    return network


def make_folder(
    folder: Path, kind: str = "llama", template: str | None = TEMPLATE, sizes: Mapping[str, int] | None = None
) -> PreTrainedModel:
    """Save a model with random weights and its tokenizer; return it for comparison."""
    tokenizer = make_tokenizer(template)
    network = make_network(kind, sizes=sizes)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network


def generate(network: PreTrainedModel, ids: Tensor, **options: object) -> list[int]:
    """Return the library's greedy generate() for one prompt, `[1, tokens]`, prompt included."""
    say = cast("Callable[..., Tensor]", network.generate)
    return cast("list[int]", say(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)[0].tolist())


def change(folder: Path, name: str = "config.json", **changes: object) -> None:
    """Edit a JSON file in the folder; None removes a key."""
    numbers = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in numbers.items() if value is not None}))

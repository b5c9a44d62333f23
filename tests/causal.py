"""Tiny causal language models, a tokenizer built in memory, and a small project on disk for the task on text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = ["<s>", "[UNK]", "a", "the", "good", "bad", "film", "plot", "is", "was", "very", "not", "and", "end"]
_SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
_GPT2 = GPT2Config(
    vocab_size=len(WORDS),
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=48,
    bos_token_id=0,
    eos_token_id=None,
    initializer_range=0.2,
)
CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(_GPT2),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=8)),
}


def make_causal(name: str, seed: int = 0) -> nn.Module:
    """Build the tiny model `name`, the same for the same seed, in evaluation mode."""
    torch.manual_seed(seed)
    return CAUSAL[name]().eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a word tokenizer that begins each text with <s>."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]")


def sentences(size: int) -> list[str]:
    """Return `size` learnable sentences of four to six words."""
    ends = ["end", "and the plot", "and bad"]
    return [f"{['a', 'the'][i % 2]} film {['is', 'was'][i % 2]} {ends[i % 3]}" for i in range(size)]


def causal_project(folder: Path, **recipe: Any) -> Path:
    """Write a tokenizer, text and a recipe from scratch under `folder`; `recipe` replaces top-level keys."""
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "data").mkdir(exist_ok=True)
    for split, size in (("train", 120), ("validation", 60)):
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text", *sentences(size)]) + "\n")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    values = {
        "model": {"model_type": "llama", "max_position_embeddings": 48, **shape},
        "processor": str(folder / "tokenizer"),
        "task": "text-generation",
        "data": {"path": str(folder / "data"), "max_length": 16},
        "finetune": {"train": {"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01}},
        "stages": [{"methods": {"quantize_weights": {}}}],
        "benchmark": None,
        "evaluate": {"allow_trivial": True},  # some of the models know nothing
        **recipe,
    }
    values["data"] = {"allow_leakage": True, **values["data"]}  # few examples, many times
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path

"""Tiny models that are awkward to compress: weights read directly, tables that scale, experts, parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    HubertConfig,
    HubertForSequenceClassification,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

_DECODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PAIR = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _opt() -> nn.Module:
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}
    return OPTForCausalLM(OPTConfig(**{k: v for k, v in _DECODER.items() if k != "intermediate_size"}, **more))


def _hubert() -> nn.Module:
    convolutions = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    sizes = {k: _DECODER[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    return HubertForSequenceClassification(
        HubertConfig(**sizes, **convolutions, **positions, classifier_proj_size=16, num_labels=3, initializer_range=0.2)
    )


def _whisper() -> nn.Module:
    positions = {"max_source_positions": 32, "max_target_positions": 40, "num_mel_bins": 8}
    return WhisperForConditionalGeneration(WhisperConfig(**_PAIR, **positions, suppress_tokens=None))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(**_PAIR, max_position_embeddings=40, scale_embedding=True, forced_eos_token_id=2)
    ),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_DECODER, head_dim=8)),
    "hubert": _hubert,
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(**_DECODER, intermediate_size_mlp=64, head_dim=8, num_local_experts=4, num_experts_per_tok=1)
    ),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=2)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_DECODER, num_local_experts=4)),
    "opt": _opt,
    "whisper": _whisper,
}


def build(name: str) -> nn.Module:
    """Return a model with the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """Return a batch of two that the model takes."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (2, 7), generator=random)
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 400, generator=random)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 64, generator=random), "decoder_input_ids": ids}
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def answers(model: Any) -> torch.Tensor:
    """Return the logits of the model for that batch."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs(model)).logits
    return found


def standing(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[tuple[str, type]]]:
    """Return what a model holds, and of which classes its modules are."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state, [(path, type(module)) for path, module in model.named_modules()]


def same(before: Any, after: Any) -> bool:
    """Say whether two of those are equal."""
    (values, classes), (others, after_classes) = before, after
    if classes != after_classes or values.keys() != others.keys():
        return False
    return all(torch.equal(tensor, others[name]) for name, tensor in values.items())

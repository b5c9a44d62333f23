"""Tables of positions of any model type: found, proven by running the model, cut, and loaded again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny import make
from torch import nn
from transformers import AutoConfig

from hfcompress import PositionsConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, TargetError
from hfcompress.core.position_tables import longest_input
from hfcompress.modules.sample import outputs_of, sample_inputs
from hfcompress.modules.token_positions import find_token_positions

SIZES = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers"], 1),
    **dict.fromkeys(["num_attention_heads", "n_heads", "n_head", "encoder_attention_heads"], 2),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    **dict.fromkeys(["initializer_range", "init_std"], 0.2),
    "decoder_attention_heads": 2,
    "vocab_size": 120,
    "num_labels": 3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "attention_window": 8,
    "attention_types": [[["global"], 1]],
}
# the class, and the row of the first token
TYPES = {
    "albert": ("AlbertForSequenceClassification", 0),
    "camembert": ("CamembertForSequenceClassification", 2),
    "bart": ("BartForSequenceClassification", 2),
    "opt": ("OPTForCausalLM", 2),
    "gpt_neo": ("GPTNeoForSequenceClassification", 0),
    "xlm": ("XLMForSequenceClassification", 0),
    "longformer": ("LongformerForSequenceClassification", 2),
    "deberta": ("DebertaForSequenceClassification", 0),
    "openai-gpt": ("OpenAIGPTForSequenceClassification", 0),
    "layoutlm": ("LayoutLMForSequenceClassification", 0),
    "nystromformer": ("NystromformerForSequenceClassification", 2),
}


def small(model_type: str, **more: Any) -> nn.Module:
    config = AutoConfig.for_model(model_type)
    known = {*config.to_dict(), *config.attribute_map}
    values = {key: value for key, value in SIZES.items() if key in known}
    torch.manual_seed(0)
    cls = getattr(transformers, TYPES[model_type][0])
    return cls(AutoConfig.for_model(model_type, **values, **more)).eval()


@pytest.mark.parametrize("model_type", TYPES)
def test_the_first_positions_stay_to_the_bit_and_load(model_type, tmp_path):
    model = small(model_type)
    found = find_token_positions(model)
    assert found is not None and found.first == TYPES[model_type][1] and found.longest in (62, 64)
    assert longest_input(model.config) == found.longest
    inputs = sample_inputs(model, 24)
    before = outputs_of(model, inputs)
    compress(model, PositionsConfig(length=24))
    after = outputs_of(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert longest_input(model.config) == 24
    loaded = load_model(save_checkpoint(model, tmp_path), TYPES[model_type][0])
    again = outputs_of(loaded, inputs)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, again, strict=True))
    assert all(loaded.get_submodule(path).num_embeddings == found.first + 24 for path in found.paths)
    with pytest.raises((IndexError, RuntimeError)):
        outputs_of(loaded, sample_inputs(loaded, 40))


def test_a_key_that_sizes_more_than_positions_is_told_so():
    relative = small("deberta", relative_attention=True, position_biased_input=True, pos_att_type=["c2p", "p2c"])
    before = {name: tensor.clone() for name, tensor in relative.state_dict().items()}
    compress(relative, PositionsConfig(length=24))  # its relative table keeps its size, and its config says so
    assert relative.config.max_position_embeddings == 24 and relative.config.max_relative_positions == 64
    kept = {name: tensor for name, tensor in relative.state_dict().items() if "position_embeddings" not in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items() if "position_ids" not in name)


def test_a_cut_that_does_not_hold_is_taken_back(monkeypatch):
    model = small("albert")
    answers = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr("hfcompress.modules.token_positions._answers", lambda *_: [next(answers)])
    with pytest.raises(TargetError, match="answers a text of 24 tokens otherwise"):
        compress(model, PositionsConfig(length=24))
    assert model.config.max_position_embeddings == 64
    assert model.albert.embeddings.position_embeddings.weight.shape[0] == 64
    assert model.albert.embeddings.position_ids.shape == (1, 64)


def test_the_first_row_is_proven_not_guessed(monkeypatch):
    """A table whose padding row says one thing while the model does another."""
    model = small("albert")
    model.albert.embeddings.position_embeddings.padding_idx = 7
    assert find_token_positions(model).first == 0
    monkeypatch.setattr("hfcompress.modules.token_positions._is_first", lambda *_: False)
    with pytest.raises(TargetError, match="can't be told"):
        find_token_positions(model)


def test_what_has_no_table_is_told_why():
    for name, reason in (("llama", "it computes them"), ("t5", "it computes them"), ("vit", "only image size")):
        with pytest.raises(TargetError, match=reason):
            compress(make(name), PositionsConfig(length=16, image_size=8))
    bart = transformers.BartForConditionalGeneration(small("bart").config)
    with pytest.raises(LifecycleError, match="that this model writes"):
        compress(bart, PositionsConfig(), calibration=[{"input_ids": torch.ones(1, 5, dtype=torch.long)}])

"""What methods leave out by default is told with its share; what is wrong in itself is told before a model is read."""

from __future__ import annotations

import logging

import pytest
import torch
from pydantic import ValidationError
from test_trainer import trainer
from tiny import calibration, make
from transformers import BertConfig, BertForMultipleChoice

from hfcompress import QATConfig, QuantizeWeightsConfig, SmoothQuantConfig, compress
from hfcompress.core.errors import RecipeError, TargetError
from hfcompress.core.registry import create
from hfcompress.recipe import load_recipe


def test_smooth_quant_leaves_a_table_that_gives_the_logits_too(caplog):
    model = make("gpt2-lm")
    with caplog.at_level(logging.WARNING):
        compress(model, SmoothQuantConfig(), calibration=calibration("gpt2-lm"))
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.weight.dtype == torch.float32
    assert "in transformer.wte (Embedding: its weight is shared with lm_head)" in caplog.text
    with pytest.raises(TargetError, match="its weight is shared with lm_head; add both to `ignore`"):
        named = SmoothQuantConfig(targets=["transformer.wte"])
        compress(make("gpt2-lm"), named, calibration=calibration("gpt2-lm"))


def test_qat_leaves_it_too(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trained = trainer("gpt2-lm", tmp_path, [QATConfig()], args={"max_steps": 1, "eval_strategy": "no"})
        trained.train()
    assert "its weight is shared with" in caplog.text
    assert trained.model.lm_head.weight is trained.model.transformer.wte.weight


def test_a_model_that_chooses_between_texts_is_checked(caplog):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMultipleChoice(BertConfig(vocab_size=50, **sizes))
    with caplog.at_level(logging.WARNING):
        compress(model, QuantizeWeightsConfig())
    assert "not checked" not in caplog.text


@pytest.mark.parametrize("key", ["targets", "ignore"])
def test_a_pattern_that_is_none_is_refused_as_it_is_read(key, tmp_path):
    words = rf"{key}: 're:\(' is not a valid regular expression"
    with pytest.raises(RecipeError, match=f"methods.quantize_weights.{words}"):
        create("quantize_weights", {key: ["re:("]})
    with pytest.raises(ValidationError, match="not a valid regular expression"):
        QuantizeWeightsConfig.model_validate({key: ["re:("]})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: none\ntask: text-classification\ndata: {path: none}\n"
        f"stages: [{{methods: {{quantize_weights: {{{key}: ['re:(']}}}}}}]\n"
    )
    with pytest.raises(RecipeError, match=f"quantize_weights.{words}"):
        load_recipe(recipe)

"""Position pruning: what inputs reach stays to the bit, the rest leaves the file, and the config says so."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from project import text_project
from tiny import Examples, auto_class, make
from torch import nn
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    TrainingArguments,
)

from hfcompress import HFCompressTrainer, PositionsConfig, QuantizeWeightsConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, RecipeError, TargetError
from hfcompress.core.position_tables import PositionTable, register_position_table
from hfcompress.export.inputs import spec_of
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import open_onnx
from hfcompress.recipe.load import load_recipe
from hfcompress.run.setup import open_recipe

TEXT = ("bert", "distilbert", "roberta")
SIZES: dict[str, Any] = {"vocab_size": 99, "num_labels": 3, "initializer_range": 0.2, "pad_token_id": 1}
MORE = {
    "electra": lambda: ElectraForSequenceClassification(
        ElectraConfig(
            **SIZES,
            hidden_size=16,
            embedding_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
        )
    ),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=40)),
    "mpnet": lambda: MPNetForSequenceClassification(
        MPNetConfig(**SIZES, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40)
    ),
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MORE[name]().eval() if name in MORE else make(name)


def inputs(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 99, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, length - 3 :], mask[1, length - 3 :] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("name", [*TEXT, *MORE])
def test_a_text_model_keeps_the_first_positions(name, tmp_path):
    model = model_of(name)
    before, rows = logits(model, inputs(24)), spec_of(model).max_length
    assert rows in (38, 40)
    compress(model, PositionsConfig(length=24))
    assert spec_of(model).max_length == 24  # the offset of RoBERTa's kind is not counted
    assert torch.equal(logits(model, inputs(24)), before)
    with pytest.raises((IndexError, RuntimeError)):
        logits(model, inputs(25))
    folder = save_checkpoint(model, tmp_path / "m")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_model(folder, "AutoModelForSequenceClassification")
    assert torch.allclose(logits(loaded, inputs(24)), before, atol=1e-6)
    size = sum(p.numel() for p in model_of(name).parameters()) - sum(p.numel() for p in model.parameters())
    assert size == (rows - 24) * loaded.get_input_embeddings().weight.shape[1]


def test_the_length_is_that_of_the_data_and_the_tokenizer_follows(tmp_path):
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])})
    tokenizer.model_max_length = 40
    batch = dict(tokenizer(["a " * 17, "a"], padding="max_length", max_length=40, return_tensors="pt"))
    model = make("bert")
    compress(model, PositionsConfig(), processor=tokenizer, calibration=[batch])
    assert model.config.max_position_embeddings == 24  # 17 words and two special tokens, to a multiple of 8
    assert tokenizer.model_max_length == 24
    again = AutoTokenizer.from_pretrained(save_checkpoint(model, tmp_path / "m", tokenizer))
    assert len(again("a " * 50, truncation=True)["input_ids"]) == 24
    short = make("bert")
    compress(short, PositionsConfig(), calibration=[{"input_ids": torch.ones(2, 3, dtype=torch.long)}])
    assert short.config.max_position_embeddings == 16  # no exporter or example meets less


def test_a_length_below_that_of_the_examples_is_taken():
    model = make("bert")
    compress(model, PositionsConfig(length=16), calibration=[inputs(30)])  # texts will be cut, as was asked
    assert model.config.max_position_embeddings == 16


@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu"])
def test_a_grid_is_interpolated_once(name, tmp_path):
    model, pixels = make(name), {"pixel_values": torch.randn(2, 3, 8, 8)}
    before = logits(model, pixels)
    compress(model, PositionsConfig(), calibration=[pixels])
    table = model.dinov2.embeddings.position_embeddings
    assert table.shape == (1, 1 + 4, 32) and model.config.image_size == 8
    assert torch.allclose(logits(model, pixels), before, atol=1e-5)
    folder = save_checkpoint(model, tmp_path / "m")
    loaded = load_model(folder, auto_class(name))
    assert loaded.dinov2.embeddings.patch_embeddings.num_patches == 4
    assert torch.equal(loaded.dinov2.embeddings.position_embeddings, table)
    assert torch.allclose(logits(loaded, pixels), before, atol=1e-5)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "dinov2"])
def test_the_export_still_works(name, tmp_path):
    model = make(name)
    compress(model, PositionsConfig(length=16, image_size=8))
    files = export_onnx(model, tmp_path)
    batch = {"pixel_values": torch.randn(1, 3, 8, 8)} if name == "dinov2" else inputs(16)
    got = open_onnx(files["onnxruntime"], 1)({k: v.numpy() for k, v in batch.items()})
    assert np.allclose(got, logits(model, batch).numpy(), atol=1e-4)


def test_it_shares_a_stage_with_quantization(tmp_path):
    model = make("bert")
    compress(model, [PositionsConfig(length=16), QuantizeWeightsConfig()])
    loaded = load_model(save_checkpoint(model, tmp_path / "m"), "AutoModelForSequenceClassification")
    assert torch.allclose(logits(loaded, inputs(16)), logits(model, inputs(16)), atol=1e-6)
    assert loaded.bert.embeddings.position_embeddings.num_embeddings == 16


def test_a_trainer_takes_the_length_from_its_data(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no")
    tokenizer = BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1}, model_max_length=40)
    recipe = PositionsConfig(round_to=4)
    data = Examples("bert")
    common: dict[str, Any] = {"args": args, "train_dataset": data, "processing_class": tokenizer}
    data.inputs = torch.cat([data.inputs, data.inputs], 1)  # 18 tokens
    trainer = HFCompressTrainer(make("bert"), recipe=recipe, data_collator=None, **common)
    trainer.train()
    assert trainer.model.config.max_position_embeddings == tokenizer.model_max_length == 20
    assert trainer.compression_report["positions"] == {"positions_before": 40, "positions_after": 20}


def test_what_cannot_be_is_refused():
    with pytest.raises(LifecycleError, match="set length"):
        compress(make("bert"), PositionsConfig())
    with pytest.raises(LifecycleError, match="set image_size"):
        compress(make("dinov2"), PositionsConfig())
    with pytest.raises(TargetError, match="need all 40 positions"):
        compress(make("bert"), PositionsConfig(length=40))
    with pytest.raises(TargetError, match="multiple of the model's patch, 4x4"):
        compress(make("dinov2"), PositionsConfig(image_size=10))
    with pytest.raises(TargetError, match="not square"):
        compress(make("dinov2"), PositionsConfig(), calibration=[{"pixel_values": torch.zeros(1, 3, 8, 12)}])
    packed = compress(make("bert"), QuantizeWeightsConfig())
    with pytest.raises(TargetError, match="PackedEmbedding"):
        compress(packed, PositionsConfig(length=16))
    for model in (make("vit"), LlamaForSequenceClassification(_llama())):
        with pytest.raises(TargetError, match="no table of learned positions"):
            compress(model, PositionsConfig(length=16, image_size=8))
    with pytest.raises(ValueError, match="already registered"):
        register_position_table("bert", PositionTable("x"))


def _llama() -> LlamaConfig:
    return LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)


def test_a_recipe_times_within_what_is_left(tmp_path):
    path = text_project(tmp_path, stages=[{"methods": {"positions": {}}}], benchmark={"engines": ["pytorch"]})
    setup = open_recipe(load_recipe(path))
    assert setup.plan.max_length == 16 and {shape.length for shape in setup.shapes} == {16}
    with pytest.raises(RecipeError, match="the compressed model takes 16 tokens"):
        open_recipe(load_recipe(path, ["benchmark.shapes=[{length: 32}]"]))

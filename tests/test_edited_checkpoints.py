"""A compressed checkpoint of which a key, a name or a shape was changed by hand: refused in words that name it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import auto_class, batch, make
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from hfcompress import ClusterWeightsConfig, HashEmbeddingsConfig, QuantizeWeightsConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.checkpoint.verify import damaged_parts
from hfcompress.core.errors import CheckpointError

Q = "quantization_config"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(compress(make("bert"), QuantizeWeightsConfig()), tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[Q].pop("structure_sha256"), "has no structure_sha256"),
        (lambda c: c[Q].pop("weights_sha256"), "changed after the checkpoint was saved|no digest"),
        (lambda c: c[Q].pop("quant_method"), "quantization_config.quant_method is missing, but .* hfcompress"),
        (lambda c: c[Q].update(quant_method="gptq"), "quant_method is 'gptq', but"),
        (lambda c: c[Q].update(quant_method="own"), "quant_method is 'own', but"),
        (lambda c: c.pop(Q), "quantization_config is missing, but"),
        (lambda c: c.update({Q: [1]}), r"quantization_config is \[1\], but"),
    ],
)
def test_a_changed_config_is_refused_and_the_key_named(saved, change, words):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    for read in (lambda: load_model(saved, auto_class("bert")), lambda: damaged_parts(saved)):
        with pytest.raises(CheckpointError, match=words):
            read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"extra": torch.ones(3)}), "extra is in .*, but the model has no such tensor"),
        (lambda t: t.update({"classifier.scale": torch.ones(3)}), "classifier.scale is in"),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.weight": torch.ones(32, 1)}),
            r"LayerNorm.weight has the shape \[32, 1\] in the file, but \[32\] in the structure",
        ),
    ],
)
@pytest.mark.parametrize("mismatched", [False, True])
def test_a_tensor_too_many_or_of_another_shape_is_refused(saved, change, words, mismatched):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        AutoModelForSequenceClassification.from_pretrained(saved, ignore_mismatched_sizes=mismatched)
    with pytest.raises(CheckpointError, match=words):
        damaged_parts(saved)


def test_a_model_in_memory_is_built_anew_from_its_config():
    model = compress(make("bert"), QuantizeWeightsConfig())
    inputs = batch("bert")
    for other in (type(model)(model.config), AutoModelForSequenceClassification.from_config(model.config)):
        assert other(**inputs).logits.shape == model(**inputs).logits.shape
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)


def test_a_config_that_is_brackets_alone_is_a_typed_error(saved):
    (saved / "config.json").write_text("[" * 5000)
    for read in (lambda: load_model(saved, auto_class("bert")), lambda: damaged_parts(saved)):
        with pytest.raises(CheckpointError):
            read()


@pytest.mark.parametrize("method", [QuantizeWeightsConfig(), ClusterWeightsConfig(rows=None), HashEmbeddingsConfig()])
def test_a_head_that_would_share_a_compressed_table_is_refused(tmp_path, method):
    saved = save_checkpoint(compress(make("bert"), method), tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"decoder of a BertForMaskedLM shares its weight with .*: load it as Bert"
    ):
        BertForMaskedLM.from_pretrained(saved)


def test_a_config_may_be_handed_over(saved):
    model = load_model(saved, auto_class("bert"))
    again = AutoModelForSequenceClassification.from_pretrained(saved, config=model.config)
    with torch.inference_mode():
        assert torch.equal(again.eval()(**batch("bert")).logits, model(**batch("bert")).logits)

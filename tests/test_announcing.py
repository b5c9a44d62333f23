"""Loading a compressed checkpoint without this package: transformers refuses, in the words that mend it."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from tiny import auto_class, logits, make
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.quantizers import auto

from hfcompress import EntropyCodingConfig, QuantizeWeightsConfig, ShareLayersConfig, SVDConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint

ADVICE = "pip install hfcompress; import hfcompress"
FORMS = {
    "packed": QuantizeWeightsConfig(),
    "shared": ShareLayersConfig(),
    "split": SVDConfig(rank=4),
    "coded": EntropyCodingConfig(),
}


@contextlib.contextmanager
def without_the_import():
    """Let transformers know of this package what it knows before the import."""
    tables = (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    kept = [table.pop("hfcompress") for table in tables]
    try:
        yield
    finally:
        for table, value in zip(tables, kept, strict=True):
            table["hfcompress"] = value


@pytest.mark.parametrize("form", FORMS)
def test_the_error_says_what_to_do_whatever_is_ignored(form, tmp_path):
    model = compress(make("bert"), FORMS[form])
    folder = save_checkpoint(model, tmp_path / "first")
    with without_the_import():
        for loader in (AutoModelForSequenceClassification, BertForSequenceClassification, AutoModel):
            for more in ({}, {"dtype": torch.bfloat16}, {"attn_implementation": "eager"}):
                for ignoring in (False, True):
                    with pytest.raises(ValueError, match=ADVICE):
                        loader.from_pretrained(folder, ignore_mismatched_sizes=ignoring, **more)
        both = {"attn_implementation": "eager", "experts_implementation": "eager"}
        with pytest.raises(RuntimeError):  # who names both sees the report of sizes
            AutoModelForSequenceClassification.from_pretrained(folder, **both)


@pytest.mark.parametrize("form", FORMS)
def test_with_the_import_nothing_is_left_of_it(form, tmp_path):
    model = compress(make("bert"), FORMS[form])
    folder = save_checkpoint(model, tmp_path / "first")
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert plain.config._attn_implementation == make("bert").config._attn_implementation == "sdpa"
    assert torch.allclose(logits(plain, "bert"), logits(model, "bert"), atol=1e-5)
    given = AutoModelForSequenceClassification.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
    eager = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    for loaded in (given, eager):
        assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-5)
    plain.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert AutoModel.from_pretrained(folder).config._attn_implementation == "sdpa"


def test_a_config_that_asks_for_attention_maps_loads_too(tmp_path):
    model = make("bert")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    folder = save_checkpoint(compress(model, QuantizeWeightsConfig()), tmp_path)
    with without_the_import(), pytest.raises(ValueError, match=ADVICE):
        AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    assert load_model(folder, auto_class("bert")).config.output_attentions


def test_a_stock_checkpoint_says_nothing(tmp_path):
    stock = save_checkpoint(make("bert"), tmp_path / "a")
    assert ADVICE not in (stock / "config.json").read_text()
    packed = save_checkpoint(compress(make("bert"), QuantizeWeightsConfig()), tmp_path / "b")
    model = load_model(packed, auto_class("bert"))
    model.dequantize()
    config = json.loads((save_checkpoint(model, tmp_path / "c") / "config.json").read_text())
    assert not {"attn_implementation", "experts_implementation", "quantization_config"} & config.keys()
    with without_the_import():
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")

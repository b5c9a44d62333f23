"""Embedding tables: tied, hashed, product-quantized; trained, saved, loaded, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import load_in_fresh_process
from tiny import Examples, auto_class, logits, make
from torch import nn
from transformers import AutoModel, LlamaForCausalLM, TrainingArguments

from hfcompress import DistillConfig, HFCompressTrainer, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, TargetError
from hfcompress.methods.hash_embeddings import HashEmbeddingsConfig
from hfcompress.methods.product_quantization import ProductQuantizationConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.tie_embeddings import TieEmbeddingsConfig
from hfcompress.modules.hashed import HashedEmbedding
from hfcompress.modules.spec import build, spec_of
from hfcompress.modules.storage import Packed
from hfcompress.ops.hashing import fit_tables


def train(name: str, *methods, folder, steps: int = 4):
    args = TrainingArguments(
        str(folder), max_steps=steps, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no", per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = HFCompressTrainer(model=make(name), args=args, recipe=list(methods), train_dataset=Examples(name))
    trainer.train()
    return trainer.model.eval()


@pytest.mark.parametrize("init", ["mean", "input"])
def test_input_and_output_become_one_stock_table(init, tmp_path):
    base, model = make("llama-lm"), make("llama-lm")
    assert base.lm_head.weight is not base.model.embed_tokens.weight
    compress(model, TieEmbeddingsConfig(init=init))
    ours, theirs = base.model.embed_tokens.weight, base.lm_head.weight
    assert torch.equal(model.lm_head.weight, ours if init == "input" else 0.5 * ours + 0.5 * theirs)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    file = save_checkpoint(model, tmp_path / "tied") / "model.safetensors"
    assert "lm_head.weight" not in load_file(file)
    config = json.loads((file.parent / "config.json").read_text())
    assert config["tie_word_embeddings"] is True and "quantization_config" not in config
    stock = LlamaForCausalLM.from_pretrained(file.parent).eval()
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert torch.allclose(logits(stock, "llama-lm"), logits(model, "llama-lm"), atol=1e-5)


def test_a_tied_table_trains_and_is_quantized_as_one(tmp_path):
    model = train("llama-lm", TieEmbeddingsConfig(), folder=tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    start = 0.5 * (make("llama-lm").lm_head.weight + make("llama-lm").model.embed_tokens.weight)
    assert not torch.allclose(model.lm_head.weight, start, atol=1e-4)
    compress(model, QuantizeWeightsConfig(bits=4))
    assert model.lm_head.weight_codes is model.model.embed_tokens.weight_codes
    loaded = load_model(save_checkpoint(model, tmp_path / "saved"), auto_class("llama-lm"))
    assert loaded.lm_head.weight_codes is loaded.model.embed_tokens.weight_codes
    assert torch.allclose(logits(loaded, "llama-lm"), logits(model, "llama-lm"), atol=1e-5)


def test_a_teachers_table_is_kept_and_frozen(tmp_path):
    teacher = make("bert", seed=1)
    args = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = HFCompressTrainer(
        model=make("bert"), args=args, recipe=[TieEmbeddingsConfig(tie="teacher"), DistillConfig()], teacher=teacher,
        train_dataset=Examples("bert"),
    )  # fmt: skip
    trainer.train()
    table = trainer.model.bert.embeddings.word_embeddings.weight
    assert torch.equal(table, teacher.bert.embeddings.word_embeddings.weight) and table.requires_grad


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gpt2-lm", {}, "one table already"),
        ("t5", {"tie": "decoder"}, "one table already"),
        ("bert", {}, "no layer that gives logits per token"),
        ("bert", {"tie": "decoder"}, "no encoder and decoder"),
    ],
)
def test_what_cannot_be_tied_is_refused(name, settings, reason):
    with pytest.raises(TargetError, match=reason):
        compress(make(name), TieEmbeddingsConfig(**settings))


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_small_tables_of_least_squares(combine):
    torch.manual_seed(0)
    first, second = torch.randn(5, 1, 6), torch.randn(1, 4, 6)
    table = (first * second if combine == "multiply" else first + second).flatten(0, 1)[:18]
    quotients, remainders = fit_tables(table, 4, combine)
    at = torch.arange(18)
    found = (
        quotients[at // 4] * remainders[at % 4] if combine == "multiply" else quotients[at // 4] + remainders[at % 4]
    )
    assert torch.allclose(found, table, atol=1e-3)
    noise = torch.randn(18, 6)
    quotients, remainders = fit_tables(noise, 4, combine)
    both = (quotients[at // 4], remainders[at % 4])
    found = both[0] * both[1] if combine == "multiply" else both[0] + both[1]
    assert (found - noise).square().mean() < noise.square().mean()  # better than nothing


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_hashed_tables_train_save_and_load(combine, tmp_path):
    model = train("bert", HashEmbeddingsConfig(combine=combine), folder=tmp_path)
    table = model.bert.embeddings.word_embeddings
    assert isinstance(table, HashedEmbedding) and table.buckets == 10
    fitted = fit_tables(make("bert").bert.embeddings.word_embeddings.weight, 10, combine)[0]
    assert not torch.allclose(table.quotients, fitted, atol=1e-4)
    folder = save_checkpoint(compress(model, QuantizeWeightsConfig()), tmp_path / "saved")
    loaded = load_model(folder, auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-5)
    assert isinstance(AutoModel.from_pretrained(folder).embeddings.word_embeddings, HashedEmbedding)
    status, stderr, _ = load_in_fresh_process(folder, "bert", tmp_path, with_import=False)
    assert status != 0 and "pip install hfcompress; import hfcompress" in stderr


def test_what_cannot_be_hashed_is_refused():
    with pytest.raises(TargetError, match="shared with lm_head; two small tables can't stand in for both"):
        compress(make("gpt2-lm"), HashEmbeddingsConfig())
    with pytest.raises(TargetError, match="no smaller; leave out `buckets`"):
        compress(make("bert"), HashEmbeddingsConfig(buckets=98))
    with pytest.raises(TargetError, match="no plain table"):
        compress(compress(make("bert"), QuantizeWeightsConfig()), HashEmbeddingsConfig())


def test_a_hostile_pair_of_tables_is_refused():
    old = nn.Embedding(99, 8)
    good = {"kind": "hashed_embedding", "num_embeddings": 99, "embedding_dim": 8, "padding_idx": None,
            "buckets": 10, "combine": "add"}  # fmt: skip
    with torch.device("meta"):
        assert spec_of(build(good, old, "x")) == good
    for bad in ({"buckets": 0}, {"buckets": 100}, {"buckets": "3"}, {"combine": "pow"}, {"num_embeddings": 10**9}):
        with pytest.raises(CheckpointError):
            build({**good, **bad}, old, "x")


def test_product_quantization_trains_its_codewords(tmp_path):
    settings = ProductQuantizationConfig(dim=4, codewords=16)
    model = train("bert", settings, folder=tmp_path)
    one_shot = compress(make("bert"), settings)
    path = "bert.embeddings.word_embeddings"
    ours, theirs = model.get_submodule(path), one_shot.get_submodule(path)
    assert isinstance(ours, Packed) and ours.weight_codes.numel() == 99 * 8 // 2
    assert not torch.equal(ours.weight_words, theirs.weight_words)
    loaded = load_model(save_checkpoint(model, tmp_path / "saved"), auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-5)


def test_a_table_tied_to_the_output_is_quantized_with_it(tmp_path):
    model = compress(make("gpt2-lm"), ProductQuantizationConfig(dim=4, codewords=16))
    assert model.lm_head.weight_codes is model.transformer.wte.weight_codes
    loaded = load_model(save_checkpoint(model, tmp_path), auto_class("gpt2-lm"))
    assert torch.allclose(logits(loaded, "gpt2-lm"), logits(model, "gpt2-lm"), atol=1e-5)


def test_what_cannot_be_product_quantized_is_refused():
    with pytest.raises(TargetError, match="set `dim` to a divisor"):
        compress(make("bert"), ProductQuantizationConfig(dim=5, codewords=16))
    with pytest.raises(TargetError, match="no table gets smaller"):
        compress(make("bert"), ProductQuantizationConfig())
    with pytest.raises(TargetError, match="more bytes than the table"):
        compress(make("bert"), ProductQuantizationConfig(targets=["re:.*token_type_embeddings"], dim=4))

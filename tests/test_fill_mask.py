"""Masked language models: what is masked, that it is the same for every model measured, and a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from project import WORDS
from test_run import hfcompress
from tiny import Examples
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from hfcompress.checkpoint import load_model
from hfcompress.core.errors import RecipeError
from hfcompress.export.agreement import errors
from hfcompress.export.inputs import spec_of
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import open_onnx
from hfcompress.measure.result import read_result
from hfcompress.ops.reductions import IGNORED, masked_token
from hfcompress.recipe.data import Data
from hfcompress.recipe.load import load_recipe
from hfcompress.run.families_table import smallest
from hfcompress.run.setup import open_recipe
from hfcompress.train.tasks import auto_class_for, get_task

TASK, AUTO = get_task("fill-mask"), "AutoModelForMaskedLM"
MASK = WORDS.index("[MASK]")


def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: i for i, word in enumerate([*WORDS, "##ly"])})


def sentences(size: int) -> list[str]:
    """Return learnable sentences of four to six words: a very good film, a bad film …"""
    return [f"a {['very ', 'not very ', ''][i % 3]}{['good', 'bad', 'fair'][i % 3]} film" for i in range(size)]


def encoded(size: int = 30, **data: Any) -> Dataset:
    return TASK.encode(Dataset.from_dict({"text": sentences(size)}), tokenizer(), settings(**data))


def settings(**data: Any) -> Data:
    return Data(path="x", **{"join": False, **data})


def make(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return smallest("bert", AUTO, vocab_size=len(WORDS) + 1, initializer_range=0.2).eval()


# --- data -----------------------------------------------------------------------------------------------------------


def test_texts_by_themselves_or_joined():
    lines = encoded(6)
    assert [len(e["input_ids"]) for e in lines] == [6, 7, 5] * 2
    blocks = encoded(30, join=True, max_length=8)
    whole = np.concatenate([e["input_ids"] for e in encoded(30)])
    assert len(blocks) == len(whole) // 8
    assert np.concatenate([b["input_ids"] for b in blocks]).tolist() == whole[: len(blocks) * 8].tolist()
    assert max(len(e["input_ids"]) for e in encoded(6, max_length=4)) == 4
    with pytest.raises(RecipeError, match=r"data\.max_length: the model takes 16 tokens at most"):
        short = tokenizer()
        short.model_max_length = 16
        TASK.encode(Dataset.from_dict({"text": ["a"]}), short, settings(max_length=17))


def test_of_the_chosen_tokens_most_are_masked_and_special_ones_never():
    blocks = encoded(3000, join=True, max_length=50)
    batch = TASK.collator(tokenizer(), settings(), 3)(list(blocks))
    ids, chosen = torch.from_numpy(np.stack([b["input_ids"] for b in blocks])), batch["labels"] != IGNORED
    special = (ids == WORDS.index("[CLS]")) | (ids == WORDS.index("[SEP]"))
    assert not (chosen & special).any() and torch.equal(batch["labels"][chosen], ids[chosen])
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert chosen[~special].float().mean() == pytest.approx(0.15, abs=0.015)
    assert (batch["input_ids"][chosen] == MASK).float().mean() == pytest.approx(0.8 + 0.1 / 13, abs=0.05)
    kept = (batch["input_ids"][chosen] == ids[chosen]).float().mean()
    assert kept == pytest.approx(0.1 + 0.1 / 13, abs=0.04)
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_the_share_of_tokens_is_the_recipes():
    blocks = encoded(3000, join=True, max_length=50)
    batch = TASK.collator(tokenizer(), settings(masking={"share": 0.4}), 3)(list(blocks))
    special = batch["labels"] == IGNORED
    ids = torch.from_numpy(np.stack([b["input_ids"] for b in blocks]))
    special = (ids == WORDS.index("[CLS]")) | (ids == WORDS.index("[SEP]"))
    assert (batch["labels"] != IGNORED)[~special].float().mean() == pytest.approx(0.4, abs=0.02)


def test_whole_words_are_masked_whole():
    words = Dataset.from_dict({"text": ["a badly good film", "badly"] * 200})
    data = settings(masking={"whole_words": True, "share": 0.3})
    examples = list(TASK.encode(words, tokenizer(), data))
    batch = TASK.collator(tokenizer(), data)(examples)
    ids = batch["labels"].where(batch["labels"] != IGNORED, batch["input_ids"])
    first, second = ids == WORDS.index("bad"), ids == len(WORDS)
    chosen = batch["labels"] != IGNORED
    assert first.any() and torch.equal(first[:, :-1], second[:, 1:])
    assert torch.equal(chosen[:, :-1][first[:, :-1]], chosen[:, 1:][second[:, 1:]]) and chosen[first].any()
    assert (batch["input_ids"][chosen] == MASK).all()
    fixed = TASK.for_evaluation(TASK.encode(words, tokenizer(), data), tokenizer(), data)
    assert set(fixed.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_masks_follow_from_seed_and_batch_alone():
    examples = list(encoded(24))
    first, again, other = (TASK.collator(tokenizer(), settings(), seed) for seed in (1, 1, 2))
    one = first(examples[:8])
    first(examples[8:16])  # what was drawn in between changes nothing: a resumed run need not repeat it
    torch.rand(3)
    assert torch.equal(first(examples[:8])["labels"], one["labels"])
    assert torch.equal(again(examples[:8])["labels"], one["labels"])
    assert not torch.equal(other(examples[:8])["labels"], one["labels"])
    shuffled = first(examples[7::-1])["labels"]  # another epoch: the same texts in another batch
    words = slice(1, 4)  # of every text: what is chosen there does not hang on its length
    assert not torch.equal(shuffled[:, words] != IGNORED, one["labels"][:, words] != IGNORED)
    assert first.random_inputs


def test_the_evaluation_mask_is_fixed_and_an_examples_own():
    data = encoded(30)
    fixed, again = (TASK.for_evaluation(data, tokenizer(), settings()) for _ in range(2))
    few = TASK.for_evaluation(data.select([4, 1]), tokenizer(), settings())
    assert {len(e["labels"]) for e in fixed} == {7}
    for name in fixed.column_names:
        assert np.array_equal(np.stack(list(fixed[name])), np.stack(list(again[name])))
        assert np.array_equal(fixed[4][name], few[0][name]) and np.array_equal(fixed[1][name], few[1][name])
    short = fixed[2]
    assert short["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0, 0] and (short["labels"][5:] == IGNORED).all()
    for seed in (1, 2):  # the seed of a run is for training
        batch = TASK.collator(tokenizer(), settings(), seed)([fixed[0], fixed[2]])
        assert torch.equal(batch["labels"], torch.from_numpy(np.stack([fixed[0]["labels"], fixed[2]["labels"]])))


def test_a_tokenizer_without_mask_token_is_refused(tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, pad_token="[PAD]")
    bare.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"processor: the tokenizer of .* has no mask token"):
        TASK.load_processor(str(tmp_path), make().config, settings())


def test_a_method_that_changes_the_tokens_is_refused_where_they_are_counted(tmp_path):
    recipe = {
        "model": "x",
        "task": "fill-mask",
        "data": {"path": str(tmp_path)},
        "stages": [{"methods": {"vocabulary": {}}}],
    }
    for task in ("fill-mask", "text-generation"):
        with pytest.raises(
            RecipeError, match=rf"^stages.0.methods.vocabulary: .* and {task} is measured token by token"
        ):
            open_recipe(load_recipe(recipe | {"task": task}))


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_models_own_loss():
    model, fixed = make(), TASK.for_evaluation(encoded(30), tokenizer(), settings())
    batch = TASK.collator(tokenizer(), settings())(list(fixed))
    with torch.no_grad():
        loss, logits = model(**batch)[:2]
    found = masked_token(logits.numpy(), {"labels": batch["labels"].numpy()})
    labels = batch["labels"].numpy()
    assert TASK.metric("cross_entropy")(found, labels) == pytest.approx(float(loss), rel=1e-5)
    assert TASK.metric("perplexity")(found, labels) == pytest.approx(math.exp(loss), rel=1e-5)
    chosen = batch["labels"] != IGNORED
    hits = (logits.argmax(-1) == batch["labels"])[chosen].float().mean()
    assert TASK.metric("accuracy")(found, labels) == pytest.approx(float(hits))
    assert len(TASK.answers(found)) == int(chosen.sum()) > 10
    kept = TASK.reduce_logits()(logits, batch["labels"])
    np.testing.assert_array_equal(kept.numpy(), found)
    lower = {name: not TASK.metric(name).higher_is_better for name in TASK.metrics}
    assert lower == {"perplexity": True, "cross_entropy": True, "accuracy": False}


def test_architectures_find_their_auto_class():
    assert auto_class_for("BertForMaskedLM") == auto_class_for("RobertaForMaskedLM") == AUTO
    assert auto_class_for("BertForSequenceClassification") == "AutoModelForSequenceClassification"


# --- export and a whole run -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "distilbert", pytest.param("roberta")])
def test_onnx_gives_the_logits_of_every_token(model_type, tmp_path):
    model = smallest(model_type, AUTO, initializer_range=0.2).eval()
    files = export_onnx(model, tmp_path)  # raises when the logits differ

    class Logits(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return model(**dict(zip(spec_of(model).names, tensors, strict=True))).logits

    assert errors(Logits(), spec_of(model), open_onnx(files["onnxruntime"], 1)).max() < 1e-4


def project(folder: Path, **recipe: Any) -> Path:
    """Write a tokenizer, text and a recipe from scratch under `folder`; `recipe` replaces top-level keys."""
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "data").mkdir(exist_ok=True)
    for split, size in (("train", 180), ("validation", 60)):
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text", *sentences(size)]) + "\n")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    train = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    values = {
        "model": {"model_type": "bert", "max_position_embeddings": 48, **shape},
        "processor": str(folder / "tokenizer"),
        "task": "fill-mask",
        "data": {"path": str(folder / "data"), "join": False},
        "finetune": {"train": train},
        "stages": [
            {"methods": {"layers": {"keep": 1}}},
            {"methods": {"distill": {"hidden": 0.5}}, "train": {**train, "num_train_epochs": 1}},
            {"methods": {"quantize_weights": {}}},
        ],
        "benchmark": None,
        "evaluate": {"allow_trivial": True},  # some of the models know nothing
        **recipe,
    }
    values["data"] = {"allow_leakage": True, **values["data"]}  # few examples, many times
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.mark.slow
@pytest.mark.card_code
def test_a_run_from_scratch_to_card(monkeypatch, capsys, tmp_path):
    select = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "perplexity"}
    train = {"num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 0.01, **select}
    engines = {
        "engines": ["pytorch", "onnxruntime"],
        "shapes": [{"batch": 1, "length": 8}],
        "rounds": 1,
        "seconds": 0.1,
    }
    recipe = project(tmp_path, finetune={"train": train}, require={"perplexity_drop": "<=9"}, benchmark=engines)
    status, _, errors = hfcompress(monkeypatch, capsys, "run", recipe, "--output", tmp_path / "out")
    assert status == 0, errors
    found = read_result(tmp_path / "out")
    before, after = (m.quality_in("pytorch") for m in (found.baseline, found.compressed))
    assert 1 < before.value < 6 < len(WORDS) and not before.higher_is_better  # it learnt something
    assert found.headline().value == pytest.approx(after.value - before.value)
    assert found.headline().counted == "tokens"
    assert found.compressed.quality_in("onnxruntime").value == pytest.approx(after.value, rel=1e-3)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "Perplexity (lower is better), PyTorch" in card and "AutoModelForMaskedLM" in card
    assert "tokenizer.mask_token" in card and "pipeline_tag: fill-mask" in card
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [e for e in log if "eval_perplexity" in e]
    small = load_model(tmp_path / "out" / "model", AUTO)
    assert small.config.num_hidden_layers == 1


def test_examples_of_another_task_are_untouched():
    fixed = get_task("text-classification")
    examples = Examples("bert")
    assert fixed.for_evaluation(examples, None, settings()) is examples

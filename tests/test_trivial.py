"""What would be measured without meaning is refused: a baseline below a guess, text that a model cannot read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from project import NAMES, text_project
from tiny import make, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import DataError, RecipeError
from hfcompress.recipe import Data
from hfcompress.recipe.load import load_recipe
from hfcompress.run import execute, trivial
from hfcompress.run.setup import open_recipe
from hfcompress.train.tasks import get_task
from hfcompress.train.teacher import require_same_processor

TEXT = get_task("text-classification")


def _guess(task: str, metric: str, labels: Any, config: Any = None) -> float | None:
    one, labels = get_task(task), np.asarray(labels)
    return trivial.trivial_score(one, one.metric(metric), labels, config)


def test_what_a_guess_that_looks_at_no_example_gets():
    labels = [0, 0, 0, 1]
    found = {name: _guess("text-classification", name, labels) for name in TEXT.metrics}
    assert found == pytest.approx({"accuracy": 0.75, "f1": 0.4, "macro-f1": 3 / 7, "matthews": 0.0})
    config = AutoConfig.for_model("gpt2", vocab_size=50)
    blocks = [[1, 2, 3, 3], [4, 3, 3, 2]]  # the first token of a block is predicted from nothing
    assert _guess("text-generation", "perplexity", blocks, config) == pytest.approx(50)
    assert _guess("text-generation", "cross_entropy", blocks, config) == pytest.approx(math.log(50))
    assert _guess("text-generation", "accuracy", blocks, config) == pytest.approx(4 / 6)
    masked = [[-100, 7, -100], [7, -100, 8]]
    assert _guess("fill-mask", "accuracy", masked, config) == pytest.approx(2 / 3)
    assert _guess("fill-mask", "perplexity", masked, config) == pytest.approx(50)


def _answers(monkeypatch, answer: Any) -> None:
    """Let the baseline answer with the logits that `answer` makes of the labels, where it would be run."""

    def outputs(source, engine, label, data, *rest: Any) -> np.ndarray:
        return np.eye(len(NAMES))[answer(data.labels)]

    monkeypatch.setattr(trivial, "outputs", outputs)


@pytest.mark.parametrize(("metric", "bound"), [("accuracy", "33.33%"), ("macro-f1", "16.67%"), ("matthews", "0.00%")])
def test_a_baseline_no_better_than_a_guess_is_refused_before_anything_is_done(monkeypatch, tmp_path, metric, bound):
    _answers(monkeypatch, lambda labels: (labels + 1) % len(NAMES))
    recipe = load_recipe(text_project(tmp_path, evaluate={"allow_trivial": False, "metric": metric}))
    with pytest.raises(DataError) as refused:
        execute.run_recipe(recipe, tmp_path / "out")
    said = str(refused.value)
    assert f"no better than always the same class ({bound})" in said and "evaluate.allow_trivial: true" in said
    assert "negative (0), neutral (1), positive (2)" in said
    assert not (tmp_path / "out").exists()


def test_a_baseline_that_answers_goes_on_and_the_labels_are_told(monkeypatch, tmp_path):
    _answers(monkeypatch, lambda labels: labels)
    told: list[str] = []
    monkeypatch.setattr("hfcompress.run.reporter.Reporter.say", lambda self, text, style="": told.append(str(text)))
    monkeypatch.setattr(execute, "run_stages", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute.run_recipe(load_recipe(text_project(tmp_path, evaluate={"allow_trivial": False})), tmp_path / "out")
    assert any("negative (0), neutral (1), positive (2)" in line for line in told)
    assert any("does not know: 0.00%" in line for line in told) and "Baseline: accuracy 100.00%, a guess 33.33%" in told


def test_a_model_in_another_order_than_the_alphabet_is_read_by_name(tmp_path):
    recipe = text_project(tmp_path)
    path = tmp_path / "base" / "config.json"
    order = ["positive", "negative", "neutral"]
    values = {"id2label": dict(enumerate(order)), "label2id": {name: i for i, name in enumerate(order)}}
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    setup = open_recipe(load_recipe(recipe))
    word = {0: "good", 1: "bad", 2: "fair"}
    rows = zip(setup.splits.train["text"], setup.train["labels"], strict=True)
    assert all(word[label] in text for text, label in rows) and setup.splits.label_names == order
    new = open_recipe(load_recipe(recipe, ["finetune={}"]))  # its head is kept, so are its classes
    assert new.splits.label_names == order and new.model.config.id2label == dict(enumerate(order))
    with pytest.raises(RecipeError, match="student: its classes stand in another order than the model's"):
        shutil.copytree(tmp_path / "base", tmp_path / "student")
        path = tmp_path / "student" / "config.json"
        values = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        open_recipe(load_recipe(recipe, [f"student={tmp_path / 'student'}"]))


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path):
    recipe = text_project(tmp_path)
    for file in (tmp_path / "base").glob("*token*"):
        file.unlink()
    (tmp_path / "base" / "vocab.txt").unlink(missing_ok=True)
    for kind in ("bert", "roberta", "gpt2", "t5", "mpnet"):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(RecipeError, match=r"no tokenizer can be loaded .*Set 'processor'"):
            TEXT.load_processor(str(tmp_path / kind), AutoConfig.for_model(kind), Data(path="x"))
    with pytest.raises(RecipeError, match="transformers made up one that knows no word"):
        open_recipe(load_recipe(recipe))
    tokenizer("bert").save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Words"}}')
    with pytest.raises(RecipeError, match=r"no tokenizer can be loaded from .*Set 'processor'"):
        TEXT.load_processor(str(tmp_path / "bert"), AutoConfig.for_model("bert"), Data(path="x"))
    require_same_processor(tmp_path / "bert", tokenizer("bert"))
    require_same_processor(tmp_path / "base", tokenizer("bert"))  # a teacher without one reads what the model reads


def test_text_of_unknown_words_is_refused_and_its_share_is_told(tmp_path):
    recipe = text_project(tmp_path)
    assert open_recipe(load_recipe(recipe)).unknown_tokens == 0.0
    for split in ("train", "validation"):
        path = tmp_path / "data" / f"{split}.csv"
        path.write_text(path.read_text().replace("film", "Buch"))
    with pytest.raises(
        DataError, match=r"split 'train': 33% of the tokens are unknown .*data.allow_unknown_tokens: true"
    ):
        open_recipe(load_recipe(recipe))
    setup = open_recipe(load_recipe(recipe, ["data.allow_unknown_tokens=true"]))
    assert setup.unknown_tokens == pytest.approx(1 / 3) and any("33.33%" in note for note in setup.plan.notes)


def test_a_tokenizer_that_falls_back_to_bytes_has_no_unknown_tokens():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), unk_token="<e>", eos_token="<e>")
    assert TEXT.unknown_share(Dataset.from_dict({"input_ids": [[0, 0]]}), words) is None


def _gpt2(folder: Path, *, pad: bool, pad_token_id: int | None) -> Path:
    """Write a GPT-2 classifier of three classes, and a tokenizer with a padding token or without."""
    words = {word: i for i, word in enumerate(["<end>", "<pad>", "[UNK]", "a", "good", "bad", "fair", "film"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    more = {"pad_token": "<pad>"} if pad else {}
    reader = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="<end>", **more)
    shape = {"vocab_size": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.5}
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = GPT2Config(**shape, **names, num_labels=3, pad_token_id=pad_token_id, bos_token_id=0, eos_token_id=0)
    save_checkpoint(GPT2ForSequenceClassification(config).eval(), folder / "gpt2", reader)
    return folder / "gpt2"


@pytest.mark.parametrize(
    ("pad", "own", "message"),
    [
        (False, None, r'processor: .* no padding token.*"pad_token": "<end>" into.*"pad_token_id": 0 into'),
        (True, None, r'model: pad_token_id .* is not set, .*pads with token 1 .*write "pad_token_id": 1 into'),
        (True, 0, r"model: pad_token_id in its config.json is 0, the tokenizer pads with token 1"),
    ],
)
def test_a_classifier_that_would_look_for_another_padding_is_found_by_plan(tmp_path, pad, own, message):
    stages = [{"methods": {"quantize_weights": {}}}]
    recipe = text_project(tmp_path, stages=stages, model=str(_gpt2(tmp_path, pad=pad, pad_token_id=own)))
    with pytest.raises(RecipeError, match=message):
        open_recipe(load_recipe(recipe))
    if pad:  # a model that is trained first is saved anew, with the token it is trained with
        setup = open_recipe(load_recipe(recipe, ["finetune={}"]))
        assert setup.model.config.pad_token_id == 1
        assert any(f"its config was {own} and is now 1" in note for note in setup.plan.notes)


def test_a_model_that_does_not_look_for_padding_is_left_alone():
    model, reader = make("bert"), tokenizer("bert")
    encoded = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "attention_mask": [[1, 1, 1], [1, 1]]})
    model.config.pad_token_id = 3
    assert TEXT.fit_padding_(model, encoded, reader, "model", trains=False) == [] and model.config.pad_token_id == 3

"""Inputs without labels: mixed in where a teacher labels them, and left out of every loss against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from project import text_project
from test_data import ROWS, _png, _tokenizer, _write
from test_text_generation import StopRunError, _stop
from test_trainer import arguments
from tiny import Examples, make
from transformers import TrainerCallback

from hfcompress import DistillConfig, HFCompressTrainer
from hfcompress.core.errors import DataError, RecipeError
from hfcompress.ops.reductions import IGNORED
from hfcompress.recipe import Data, load_recipe
from hfcompress.run import execute, training
from hfcompress.run.setup import open_recipe
from hfcompress.train.data import Splits, load_data
from hfcompress.train.tasks import get_task, image_classification

TEXT, IMAGE = get_task("text-classification"), get_task("image-classification")


def load(folder: Path, task: Any = TEXT, data: dict[str, Any] | None = None, **unlabelled: Any) -> Splits:
    given = {"path": str(folder), **(data or {}), "unlabelled": {"path": str(folder), "split": "more", **unlabelled}}
    return load_data(Data(**given), task, 0)


def write(folder: Path) -> Path:
    more = {"sentence": [f"word{i} more" for i in range(9)]}
    return _write(folder, train=ROWS, validation={"text": ["a"], "label": [1]}, more=more)


# --- data -----------------------------------------------------------------------------------------------------------


def test_unlabelled_texts_follow_the_labelled_ones(tmp_path):
    splits = load(write(tmp_path))
    assert splits.unlabelled is not None and splits.unlabelled.column_names == ["text"]
    assert len(splits.train) == 20 and splits.label_count == 2
    encoded = TEXT.encode(splits.mixed(), _tokenizer(), Data(path="x"))
    assert encoded["labels"][:] == ROWS["label"] + [IGNORED] * 9
    assert len(load(tmp_path, max_examples=4).unlabelled or ()) == 4
    assert list(TEXT.texts(splits.mixed()))[-1] == "word8 more"


@pytest.mark.parametrize("eager", [True, False])
def test_unlabelled_images(tmp_path, monkeypatch, eager):
    if not eager:
        monkeypatch.setattr(image_classification, "EAGER_BYTES", 0)
    images = [{"bytes": _png(i)} for i in range(6)]
    _write(
        tmp_path,
        train={"img": images, "label": [0, 1] * 3},
        test={"img": images[:1], "label": [1]},
        more={"img": images},
    )
    splits = load(tmp_path, IMAGE)
    from transformers import ViTConfig

    processor = IMAGE.load_processor(None, ViTConfig(image_size=8), Data(path="x"))
    encoded = IMAGE.encode(splits.mixed(), processor, Data(path="x"))
    batch = IMAGE.collator(processor)([encoded[i] for i in (1, 5, 6, 11)])
    assert batch["labels"].tolist() == [1, 1, IGNORED, IGNORED]
    assert torch.equal(batch["pixel_values"][1], batch["pixel_values"][3])


def test_mistakes_name_the_key(tmp_path):
    write(tmp_path)
    for error, found in (
        (r"data\.unlabelled\.split: .* has no split 'mor'\. Did you mean 'more'", {"split": "mor"}),
        (r"data\.unlabelled\.path: there is no file or folder", {"path": str(tmp_path / "no")}),
        (r"data\.unlabelled\.columns\.text: the data has no column 'tex'", {"columns": {"text": "tex"}}),
        (r"data\.unlabelled: 'validation' and 'evaluate' share 1 examples", {"split": "validation"}),
    ):
        with pytest.raises(DataError, match=error):
            load(tmp_path, **found)
    with pytest.raises(RecipeError, match=r"data\.unlabelled: the data of fill-mask needs no labels"):
        load(tmp_path, get_task("fill-mask"))
    with pytest.raises(DataError, match=r"data\.unlabelled\.columns\.text_pair: give it for both"):
        load(tmp_path, columns={"text_pair": "sentence"})
    held_out = _write(tmp_path / "two", train=ROWS) if (tmp_path / "two").mkdir() is None else None
    with pytest.raises(DataError, match=r"data\.unlabelled: 'train' and 'train' share 20 examples"):
        load(held_out, split="train")


def test_without_a_teacher_nothing_would_label_them(tmp_path):
    stage = {"methods": {"movement": {"ffn": 0.5}}, "train": {"max_steps": 2}}
    data = {"path": str(tmp_path), "unlabelled": {"path": str(tmp_path), "split": "more"}}
    with pytest.raises(RecipeError, match=r"data\.unlabelled: no stage that trains has a method with a teacher"):
        load_recipe({"model": "x", "task": "text-classification", "data": data, "stages": [stage]})


# --- training -------------------------------------------------------------------------------------------------------


class Mixed(Examples):
    """The tiny data set with labels on some examples only."""

    def __init__(self, name: str, labelled: int) -> None:
        super().__init__(name)
        self.labels[labelled:] = IGNORED


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("labelled", [0, 2])
def test_only_labelled_examples_count_in_the_task_loss(name, labelled, tmp_path):
    teacher, data = make(name, seed=1), Mixed(name, labelled)
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=8, train_sampling_strategy="sequential")
    config = DistillConfig(logits=0.5, task=0.5, temperature=1.0)
    run = HFCompressTrainer(model=make(name), args=args, recipe=[config], teacher=teacher, train_dataset=data)
    inputs = {data.key: data.inputs[:8], "labels": data.labels[:8]}
    ours, theirs = (m(**{data.key: inputs[data.key]}).logits for m in (run.model.train(), teacher.eval()))
    task = F.cross_entropy(ours[:labelled], inputs["labels"][:labelled]) if labelled else torch.zeros(())
    soft = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
    loss = run.compute_loss(run.model, inputs)
    assert loss.item() == pytest.approx(0.5 * task.item() + 0.5 * soft.item(), rel=1e-4)
    seen: list[bool] = []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.extend(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)

    run.add_callback(Spy())
    run.train()
    assert seen and all(seen)


def test_who_trains_on_what(tmp_path, monkeypatch):
    """Fine-tuning and stages without a teacher see the labelled examples, the others and the control all of them."""
    train = {"num_train_epochs": 1, "per_device_train_batch_size": 16}
    (tmp_path / "more.csv").write_text("\n".join(["text", *["very good film", "not a film"] * 20]) + "\n")
    stages = [
        {"methods": {"distill": {}}, "train": {**train, "eval_strategy": "epoch"}},
        {"methods": {"movement": {"ffn": 0.5, "round_to": 4}}, "train": train},
    ]
    data = {"path": str(tmp_path / "data"), "unlabelled": {"path": str(tmp_path / "more.csv")}}
    recipe = load_recipe(
        text_project(tmp_path, data=data, finetune={"train": train}, stages=stages, evaluate={"control": True})
    )
    plan = open_recipe(recipe).plan
    assert (plan.train_examples, plan.unlabelled_examples) == (48, 40)
    assert [stage.steps for stage in plan.stages] == [6, 3]
    seen: list[tuple[int, int, bool]] = []
    original = training._train

    def spy(trainer: Any, *args: Any) -> None:
        labels = [e["labels"] for e in trainer.train_dataset]
        selection = trainer.eval_dataset
        clean = selection is None or IGNORED not in [e["labels"] for e in selection]
        seen.append((len(labels), labels.count(IGNORED), clean))
        original(trainer, *args)

    monkeypatch.setattr(training, "_train", spy)
    monkeypatch.setattr(execute, "measure", _stop)
    with pytest.raises(StopRunError):
        execute.run_recipe(recipe, tmp_path / "out")
    labelled = 48 - 5  # a tenth is held out to select on
    assert seen == [(48, 0, True), (labelled + 40, 40, True), (48, 0, True), (labelled + 40, 40, True), (48, 0, True)]

"""Labels of a data set and classes of a model: matched by name, by what the recipe says, or by number, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from PIL import Image

from hfcompress.core.errors import DataError, LifecycleError, RecipeError
from hfcompress.recipe import Data
from hfcompress.recipe.yaml12 import parse_yaml
from hfcompress.run.classes import require_same_classes
from hfcompress.train.data import Splits, load_data
from hfcompress.train.tasks import get_task
from hfcompress.train.tasks.label_map import LabelMap, match, new_classes, same_classes
from hfcompress.train.tasks.labels import DataLabels, read_labels
from hfcompress.train.teacher import require_same_order

MOOD, STARS = ["negative", "positive"], ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
UNNAMED = ["LABEL_0", "LABEL_1"]


def split(labels: Any, names: list[str] | None = None) -> Dataset:
    """Return a split with these labels, of the type of numbered names if there are `names`."""
    labels = list(labels) if names is None else labels
    if names is None:
        return Dataset(pa.table({"text": ["x"] * len(labels), "label": pa.array(labels)}))
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    return Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)


def read(labels: Any, names: list[str] | None = None, evaluate: Any = None, given: Any = ()) -> DataLabels:
    splits = {"train": split(labels, names), "evaluate": split(labels if evaluate is None else evaluate, names)}
    found = read_labels(splits, None, given)[1]
    assert found is not None
    return found


def classes_of(labels: Any, classes: list[str], given: Any = None, **more: Any) -> list[int]:
    """Return the ids of a model's classes of labels as they are stored."""
    splits, found = read_labels({"train": split(labels, **more)}, None, given or ())
    return match(found, classes, given).apply(np.asarray(splits["train"]["label"][:])).tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        (["positive", "negative"], ["positive", "negative"], [0, 1]),  # sorted, they would be upside down
        (["positive", "negative"], ["NEGATIVE", "POSITIVE"], [1, 0]),
        ([" Positive", "NEGATIVE ", "positive"], MOOD, [1, 0, 1]),
        (["positive", "positive"], ["neutral", "positive", "negative"], [1, 1]),
        ([0, 1], MOOD, [0, 1]),
        ([1.0, 0.0], MOOD, [1, 0]),
        (["1", "0"], MOOD, [1, 0]),
        ([" 1.0", "0"], UNNAMED, [1, 0]),
        ([True, False], MOOD, [1, 0]),
        ([True, False], ["TRUE", "FALSE"], [0, 1]),
        (["LABEL_1", "LABEL_0"], UNNAMED, [1, 0]),
        ([5, 7], ["7", "5"], [1, 0]),
        (["a", "A"], ["A", "a"], None),
    ],
)
def test_what_class_a_label_is(labels, classes, ids):
    if ids is None:
        with pytest.raises(DataError, match=r"(?s)differ in case alone.*\n  labels: \{A: A, a: a\}"):
            classes_of(labels, classes)
        assert classes_of(labels, classes, {"A": "A", "a": "a"}) == [1, 0]
    else:
        assert classes_of(labels, classes) == ids


@pytest.mark.parametrize(
    ("labels", "given", "classes", "ids"),
    [
        (["good", "bad"], {"good": "positive", "bad": "negative"}, MOOD, [1, 0]),
        (["good", "negative"], {"Good": "Positive"}, MOOD, [1, 0]),
        (["good", "bad"], {"good": 0, "bad": "LABEL_1"}, UNNAMED, [0, 1]),
        ([1, 2, 3, 4, 5], {str(i + 1): name for i, name in enumerate(STARS)}, STARS, [0, 1, 2, 3, 4]),
        ([1, 2, 3, 4, 5], {"1": 0, "2": 0, "3": 0, "4": 1, "5": 1}, MOOD, [0, 0, 0, 1, 1]),
        ([-1, 1], {"-1": "negative", "1": "positive"}, MOOD, [0, 1]),
        ([1.0, 2.0], {"1": "positive", "2": "negative"}, MOOD, [1, 0]),
        ([True, False], {"true": "negative", "false": "positive"}, MOOD, [0, 1]),
    ],
)
def test_what_the_recipe_says_of_labels_holds(labels, given, classes, ids):
    assert classes_of(labels, classes, given) == ids


def test_labels_in_a_recipe_are_called_as_yaml_reads_them():
    values = parse_yaml("path: x\nlabels: {1: good, true: bad, 2.0: 0, no: '1'}", "r.yaml")
    assert Data(**values).labels == {"1": "good", "true": "bad", "2.0": 0, "no": "1"}
    assert Data(path="x", labels={1: "good", False: True}).labels == {"1": "good", "false": "true"}


@pytest.mark.parametrize(
    ("labels", "given", "classes", "message"),
    [
        (["good", "bad"], None, MOOD, r"'bad', 'good'.*the model 2 .*\n  labels: \{bad: negative, good: positive\}"),
        (["good", "bad"], None, UNNAMED, r"whose names say nothing.*\n  labels: \{bad: LABEL_0, good: LABEL_1\}"),
        (["intents"] * 3, None, MOOD, "or add 'finetune' to train a new head"),
        ([1, 2, 3, 4, 5], None, STARS, r"start at 1 and go to 5.*numbered 0 to 4.*labels: \{1: 1 star, 2: 2 stars, 3:"),
        ([0, 2, 4], None, ["a", "b", "c"], r"labels are '0', '2', '4'.*\n  labels: \{0: a, 2: b, 4: c\}"),
        ([0, 1, 2], None, MOOD, "the data has 3 labels .*, the model has 2 classes, numbered 0 to 1"),
        ([0, 1], None, ["1", "0"], r"classes of these names in another order.*\n  labels: \{0: 1, 1: 0\}"),
        (["good", "bad"], {"god": "positive"}, MOOD, "data.labels: the data has no label 'god'. Did you mean 'good'"),
        (
            ["good", "bad"],
            {"good": "positiv"},
            MOOD,
            "data.labels.good: .* no class 'positiv'. Did you mean 'positive'",
        ),
        (["good", "bad"], {"good": 2}, MOOD, "data.labels.good: the model has no class 2"),
        ([1, 2], {"1": "negative"}, MOOD, "mapped all or none: say which class '2' is too"),
    ],
)
def test_labels_of_which_the_class_is_not_known_are_refused_with_the_lines_to_write(labels, given, classes, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        classes_of(labels, classes, given)


def test_names_in_another_order_are_matched_and_numbers_follow_them():
    assert classes_of([0, 1, 1], ["positive", "negative"], names=["negative", "positive"]) == [1, 0, 0]
    assert classes_of([0, 1, 1], UNNAMED, names=["negative", "positive"]) == [0, 1, 1], "who made the data numbered it"
    with pytest.raises(DataError, match="whose names say nothing"):
        classes_of([0, 1], ["LABEL_0", "LABEL_1", "LABEL_2"], names=["negative", "positive"])


def test_splits_that_number_their_names_differently_are_one_data_set():
    train, other = split([0, 1], ["no", "yes"]), split([0, 1], ["yes", "no"])
    found, labels = read_labels({"train": train, "evaluate": other}, None)
    assert labels.names == ["no", "yes"] and found["evaluate"]["label"][:] == [1, 0]


def test_folders_of_images_are_names_in_alphabetical_order(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / "train" / name / "1.png")
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    dataset = found["train"].select_columns(["image", "label"])
    labels = read_labels({"train": dataset}, None)[1]
    assert match(labels, ["Dog", "Cat"]).apply(np.array([0, 1])).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"(?s)whose names say nothing.*labels: \{cat: LABEL_0, dog: LABEL_1\}"):
        match(labels, UNNAMED)


def test_a_new_head_has_the_classes_of_the_data():
    assert new_classes(read(["b", "a"])).classes == ("a", "b")
    assert new_classes(read([0, 1], ["z", "a"])).classes == ("z", "a")
    assert new_classes(read([0, 1])).classes == ("LABEL_0", "LABEL_1")
    from_one = new_classes(read([3, 1, 2]))
    assert from_one.classes == ("1", "2", "3") and from_one.apply(np.array([1, 3])).tolist() == [0, 2]
    merged = new_classes(read([1, 2, 3]), {"1": "bad", "2": "bad", "3": "good"})
    assert merged.classes == ("bad", "good") and merged.apply(np.array([1, 2, 3])).tolist() == [0, 0, 1]
    assert new_classes(read(["x", "y"]), {"x": "cat"}).classes == ("cat", "y")
    assert new_classes(read([1, 2]), {"1": 1, "2": 0}).apply(np.array([1, 2])).tolist() == [1, 0]
    with pytest.raises(DataError, match="labels 'c' do not occur among the labels 'a', 'b'"):
        new_classes(read(["a", "b"], evaluate=["c"]))
    assert same_classes(read(["a", "b"]), ["B", "A"]) and not same_classes(read(["a", "b"]), ["a", "b", "c"])


def test_what_is_said_of_labels():
    found = match(read(["good", "bad"], given=["good"]), [*MOOD, "mixed"], {"good": "positive", "bad": "negative"})
    assert "bad → negative (0), good → positive (1)" in found.lines()[0]
    assert found.lines()[1] == "Of 3 classes these have no example: 'mixed'."
    assert "'Yes', 'yes' are taken for one" in match(read(["Yes", "yes", "Yes", "no"]), ["no", "yes"]).lines()[1]
    many = match(read([f"i{n}" for n in range(77)]), [f"I{n}" for n in range(77)])
    assert len(str(many)) < 300 and "and 69 more" in str(many)


def _splits(folder: Path, stored: Any, task: str = "text-classification", **data: Any) -> Splits:
    for name in ("train", "validation"):
        Dataset.from_dict({"text": ["x"] * len(stored), "label": stored}).to_parquet(folder / f"{name}.parquet")
    return load_data(Data(path=str(folder), **data), get_task(task), 0)


def test_splits_are_given_the_ids_of_a_models_classes_once(tmp_path: Path):
    data = Data(path=str(tmp_path), labels={"good": "positive", "bad": "negative"})
    splits = _splits(tmp_path, ["good", "bad", "good"], labels=data.labels)
    found = splits.for_classes(["positive", "negative"], data)
    assert found.train["label"][:] == found.evaluate["label"][:] == [0, 1, 0]
    assert (found.label_names, found.label_count) == (["positive", "negative"], 2)
    assert found.for_classes(["negative", "positive"], data).label_names == ["negative", "positive"]
    with pytest.raises(RecipeError, match=r"data\.labels: the data of text-generation has no labels"):
        _splits(tmp_path, ["good"], "text-generation", labels=data.labels)


class _Head:
    """Stands for a classifier of which only the names of its classes are asked."""

    def __init__(self, names: list[str]) -> None:
        self.config = type("Config", (), {"id2label": dict(enumerate(names))})()


class OfClassification(_Head):
    pass


def test_a_teacher_whose_classes_stand_in_another_order_is_refused():
    mapped = LabelMap(tuple(MOOD), {0: 0, 1: 1}, read([0, 1], ["bad", "good"]))
    splits = Splits(split([0]), split([0]), MOOD, 2, "test", label_map=mapped)
    assert require_same_classes(["Negative", "Positive"], MOOD, splits) == []
    assert require_same_classes(["bad", "good"], MOOD, splits) == [], "the data's own names are known too"
    assert "no names" in require_same_classes(UNNAMED, MOOD, splits)[0]
    for theirs in (["positive", "negative"], ["good", "bad"]):
        with pytest.raises(
            RecipeError, match=f"teacher: .* another order .*'{theirs[0]}', '{theirs[1]}' and 'negative'"
        ):
            require_same_classes(theirs, MOOD, splits)
    with pytest.raises(RecipeError, match=r"teacher: its classes 'cat', 'dog' are none of the model's"):
        require_same_classes(["cat", "dog"], MOOD, splits)
    require_same_order("t", OfClassification(["NEGATIVE", "POSITIVE"]), OfClassification(MOOD))
    require_same_order("t", OfClassification(UNNAMED), OfClassification(MOOD))
    with pytest.raises(LifecycleError, match="'positive' is 0 and 1"):
        require_same_order("t", OfClassification(["positive", "negative"]), OfClassification(MOOD))


def test_names_beside_the_data_number_its_labels():
    texts = {"train": split(["yes", "No"])}
    found, labels = read_labels(texts, ["yes", "no"])
    assert found["train"]["label"][:] == [0, 1] and match(labels, UNNAMED).is_identity
    with pytest.raises(DataError, match="same name: 'yes'"):
        read_labels(texts, ["yes", "yes"])

"""Rows as people count them, what repeats in a split, and labels that a model has no class for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from project import text_project

from hfcompress.core.errors import DataError, RowError
from hfcompress.recipe import Data, load_recipe
from hfcompress.recipe.data_report import DataReport
from hfcompress.run.setup import open_recipe
from hfcompress.train.data import Splits, load_data
from hfcompress.train.example_keys import text_keys
from hfcompress.train.repeats import repeats
from hfcompress.train.rows import Rows
from hfcompress.train.tasks import get_task
from hfcompress.train.tasks.label_map import match, new_classes
from hfcompress.train.tasks.labels import read_labels

TEXT = get_task("text-classification")
MOOD = ["negative", "positive"]


def _load(path: Path, **settings: Any) -> Splits:
    return load_data(Data(path=str(path), **settings), TEXT, 0)


def test_every_column_and_split_with_holes_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\n,y\nb,\n,x\n")
    (tmp_path / "test.csv").write_text("text,label\na,x\nc,\n")
    with pytest.raises(DataError) as refused:
        _load(tmp_path)
    said = str(refused.value)
    assert "split 'train': column 'text' has 2 missing values, the first in row 2, then 4; column 'label' has" in said
    assert "column 'label' has 1 missing value, the first in row 3; split 'evaluate': column 'label' has 1" in said
    assert said.count("rows count from 1, without a header") == 1


def test_a_column_without_any_value_is_missing_and_not_of_a_wrong_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [None, None], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'text' has 2 missing values, the first in row 1, then 2"):
        _load(tmp_path)


def test_a_row_is_called_as_in_the_file_whatever_was_cut_left_out_and_drawn(tmp_path: Path) -> None:
    """The text of every row is its number in the file, counted by hand."""
    lines = [f"{'' if i % 10 == 3 else f't{i}'},{i % 2}\n" for i in range(1, 101)]
    (tmp_path / "train.csv").write_text("".join(["text,label\n", *lines]))
    (tmp_path / "more.csv").write_text("text,label\n" + "".join(f"t{1000 + i},0\n" for i in range(1, 6)))
    settings: dict[str, Any] = {"drop_missing": True}
    splits = _load(tmp_path, **settings, splits={"train": "train[20:]"}, max_train=30, max_evaluate=9)
    assert len(splits.train) == 30 and len(splits.evaluate) == 9
    for name, split in (("train", splits.train), ("evaluate", splits.evaluate)):
        assert [splits.called(name, i) for i in range(len(split))] == [f"row {t[1:]} of 'train'" for t in split["text"]]
    summed = _load(tmp_path, **settings, splits={"train": "train[90:]+more"}, validation_fraction=0.3)
    for row, word in enumerate(summed.train["text"]):
        number, split = (int(word[1:]) - 1000, "more") if len(word) > 4 else (int(word[1:]), "train")
        assert summed.called("train", row) == f"row {number} of '{split}'"
    extra = {"path": str(tmp_path / "more.csv"), "max_examples": 3}  # one file is the split 'train'
    mixed = _load(tmp_path, **settings, unlabelled=extra)
    assert mixed.unlabelled is not None
    called = [mixed.called("train", len(mixed.train) + i) for i in range(3)]
    assert called == [f"row {int(t[1:]) - 1000} of 'train'" for t in mixed.unlabelled["text"]]


def test_missing_rows_of_several_splits_name_the_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\n,y\n")
    (tmp_path / "more.csv").write_text("text,label\n,x\nb,y\n")
    with pytest.raises(DataError, match="missing values, the first in row 2 of 'train', row 1 of 'more'"):
        _load(tmp_path, splits={"train": "train+more"})


def test_an_input_that_cannot_be_encoded_names_its_row_in_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = load_recipe(text_project(tmp_path), ["data.splits.evaluate='train[10:20]'", "data.splits.train=train[:9]"])

    def encode(self: Any, dataset: Dataset, *rest: Any) -> Dataset:
        if len(dataset) == 10:
            raise RowError("it is broken", 4)
        return old(self, dataset, *rest)

    old = type(TEXT).encode
    monkeypatch.setattr(type(TEXT), "encode", encode)
    with pytest.raises(DataError, match=r"split 'evaluate', row 15 of 'train' \(rows count from 1.*\): it is broken"):
        open_recipe(recipe)


# ------------------------------------------------------------------ what repeats


def _split(texts: list[str], labels: list[int] | None = None) -> Dataset:
    rows: dict[str, Any] = {"text": texts} | ({} if labels is None else {"label": labels})
    return Dataset.from_dict(rows)


def _repeats(texts: list[str], labels: list[int] | None = None, split: str = "train") -> list[str]:
    dataset = _split(texts, labels)
    found = repeats(text_keys(dataset), dataset, Rows([("train", range(10, 99))]))
    return DataReport(repeats={} if found is None else {split: found}).sentences()


def test_texts_that_repeat_are_told_and_above_all_those_with_other_labels() -> None:
    texts = ["a", "b", "A ", "c", "b", "a", "d", "c", "", " "]
    assert _repeats(texts, [0, 1, 1, 0, 1, 0, 0, 0, 0, 1]) == [
        "3 training texts occur more than once (7 rows), 1 of them with different labels (such as row 11 of 'train' "
        "and row 13 of 'train'; rows count from 1, without a header)."
    ]
    assert _repeats(texts) == ["3 training texts occur more than once (7 rows)."]
    assert _repeats(["a", "b"], [0, 1]) == [] and _repeats(["", " "], [0, 1]) == []
    assert _repeats(["a", "a"], [0, 1])[0].startswith(
        "1 training text occurs more than once (2 rows), with different labels (such as"
    )


def test_of_what_is_measured_on_only_contradictions_are_told_here() -> None:
    assert _repeats(["a", "a", "b"], [0, 0, 1], "evaluate") == []
    assert _repeats(["a", "a", "b"], [0, 1, 1], "evaluate") == [
        "1 evaluation text stands in the split with different labels (such as row 11 of 'train' and row 12 of 'train'; "
        "rows count from 1, without a header): no model gets all of them right."
    ]


def test_the_count_of_repeats_is_that_of_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    texts = [f"t{i}" for i in random.integers(0, 300, 500)]
    labels = random.integers(0, 2, 500).tolist()
    kinds: dict[str, list[int]] = {}
    for text, label in zip(texts, labels, strict=True):
        kinds.setdefault(text, []).append(label)
    found = repeats(text_keys(_split(texts)), _split(texts, labels), Rows())
    many = [rows for rows in kinds.values() if len(rows) > 1]
    assert found is not None
    wanted = len(many), sum(map(len, many)), sum(len(set(rows)) > 1 for rows in many)
    assert (found.examples, found.rows, found.contradictory) == wanted


def test_repeats_are_in_the_notes_of_the_plan(tmp_path: Path) -> None:
    path = text_project(tmp_path)
    with (tmp_path / "data" / "train.csv").open("a") as file:
        file.write("very good film,positive\nVery  good film,negative\n")
    notes = open_recipe(load_recipe(path)).plan.notes
    expected = "4 training texts occur more than once (50 rows), 1 of them with different labels (such as row 49 of"
    assert any(note.startswith(expected) for note in notes), notes


# ------------------------------------------------------------------ labels without a class


def _refused(train: list[Any], evaluate: list[Any], classes: list[str], given: Any = None) -> str:
    table = {name: Dataset.from_dict({"text": ["x"] * len(rows), "label": rows})
             for name, rows in (("train", train), ("evaluate", evaluate))}  # fmt: skip
    found = read_labels(table, None, given or ())[1]
    assert found is not None
    with pytest.raises(DataError) as refused:
        match(found, classes, given)
    return str(refused.value)


def test_a_label_beyond_the_classes_is_counted_and_mapped_to_none() -> None:
    said = _refused(["negative", "positive", "neutral", "neutral"], ["neutral", "positive"], MOOD)
    assert "No class is left for 'neutral' ('neutral' in 2 rows of split 'train' and 1 row of split 'evaluate')" in said
    assert "Remove these rows" in said and "'finetune' to train a new head for all 3 labels" in said
    assert "labels: {" not in said, "nothing says that neutral is negative"
    assert "labels: {" not in _refused(["good", "bad", "fair"], ["good"], MOOD)
    numbers = _refused([0, 1, 2, 2], [1], MOOD)
    assert "numbered 0 to 1" in numbers and "No class is left for '2' ('2' in 2 rows of split 'train')" in numbers


def test_a_mapping_is_suggested_only_to_classes_that_are_free() -> None:
    said = _refused(["negative", "positive", "so-so"], ["so-so"], ["negative", "neutral", "positive"])
    assert "labels: {so-so: neutral}" in said
    assert "labels: {good: positive}" in _refused(["good", "bad"], ["good"], MOOD, {"bad": "negative"})


def test_a_label_that_training_never_shows_says_where_it_is() -> None:
    table = {name: Dataset.from_dict({"text": ["x"] * len(rows), "label": rows})
             for name, rows in (("train", ["a", "b"]), ("evaluate", ["a", "c", "c"]))}  # fmt: skip
    found = read_labels(table, None)[1]
    assert found is not None
    with pytest.raises(DataError, match=r"'c' in 2 rows of split 'evaluate'\)\. Remove these rows, or train"):
        new_classes(found)
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    named = {
        "train": Dataset.from_dict({"text": ["x"] * 2, "label": [0, 1]}, features=features),
        "evaluate": table["evaluate"],
    }
    with pytest.raises(DataError, match=r"split 'evaluate': labels 'c' \(2 rows\) do not occur among .* Remove these"):
        read_labels(named, None)

"""Rows without a label, a text or an image: refused with their number, or left out and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from hfcompress.core.errors import DataError, RowError
from hfcompress.recipe import Data
from hfcompress.train.data import Splits, load_data
from hfcompress.train.tasks import get_task

TEXT, IMAGE = get_task("text-classification"), get_task("image-classification")
CELLS = ["good", "", "NA", "nan", "None", "null", " ", "n/a", "bad", "none", "Null!"]
MISSING = 7  # of these, as pandas reads them, and blanks


def _load(path: Path, task: Any = TEXT, **settings: Any) -> Splits:
    return load_data(Data(path=str(path), **settings), task, 0)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_missing_cells_are_those_of_the_datasets_library(
    tmp_path: Path, kind: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = "\t" if kind == "tsv" else ","
    rows = [(cell, "x") if column == "text" else (f"t{i}", cell) for i, cell in enumerate(CELLS)]
    path = tmp_path / f"rows.{kind}"
    path.write_text("\n".join([f"text{mark}label", *(mark.join(row) for row in rows)]) + "\n")
    expected = rf"split 'train': column '{column}' has {MISSING} missing values, the first in row 2, then 3, 4, 5, 6 \("
    with pytest.raises(DataError, match=expected + r".*NA, NaN, null and None.*data\.drop_missing: true"):
        _load(path)
    splits = _load(path, drop_missing=True, validation_fraction=0.25)
    assert splits.dropped == {"train": MISSING}
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    theirs = load_dataset("csv", data_files=str(path), sep=mark, cache_dir=str(tmp_path / "cache"))["train"]
    kept = [i for i, value in enumerate(theirs[column]) if value is not None and value.strip()]
    texts = sorted([*splits.train["text"], *splits.evaluate["text"]])
    assert texts == sorted(rows[i][0] for i in kept)


def test_whole_numbers_stay_whole_where_some_are_missing(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a{i},{i % 2 if i > 1 else ''}\n" for i in range(12)))
    (tmp_path / "test.csv").write_text("text,label\nb,0\nc,\n")
    splits = _load(tmp_path, drop_missing=True)
    assert splits.dropped == {"train": 2, "evaluate": 1}
    assert splits.label_names is None and splits.train["label"][:] == [0, 1] * 5 and splits.evaluate["label"][:] == [0]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json"])
def test_blank_texts_and_labels_in_other_files(tmp_path: Path, form: str) -> None:
    texts = ["a", "", " \t\n", "\u00a0\u2003", None, "b", "NA", "c"]
    labels = ["x", "y", "x", "y", "x", "  ", "x", None]
    rows = [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)]
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows))
    with pytest.raises(DataError, match="column 'text' has 4 missing values, the first in row 2, then 3, 4, 5"):
        _load(path)
    splits = _load(path, drop_missing=True, validation_fraction=0.5)
    assert splits.dropped == {"train": 6}
    assert sorted([*splits.train["text"], *splits.evaluate["text"]]) == ["NA", "a"]


def test_pairs_and_unlabelled_inputs(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,other,label\n" + "".join(f"a{i},b{i},{i % 2}\n" for i in range(8)) + "c,,1\n"
    )
    (tmp_path / "more.csv").write_text("text,other\nx,y\n,z\nNone,z\nu,v\n")
    settings: dict[str, Any] = {
        "columns": {"text_pair": "other"},
        "unlabelled": {"path": str(tmp_path / "more.csv"), "columns": {"text_pair": "other"}},
    }
    with pytest.raises(DataError, match="split 'unlabelled': column 'text' has 2 missing values"):
        _load(tmp_path / "train.csv", **settings)
    splits = _load(tmp_path / "train.csv", **settings, drop_missing=True)
    assert splits.dropped == {"unlabelled": 2, "train": 1}
    assert splits.unlabelled is not None and splits.unlabelled["text"][:] == ["x", "u"]


def test_columns_that_are_not_read_may_have_holes(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,text,label\n" + "".join(f",a{i},{i % 2}\n" for i in range(10)))
    assert len(_load(tmp_path).train) == 8


def test_none_left(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,\nb,\n")
    with pytest.raises(DataError, match="split 'train': every row lacks a value"):
        _load(tmp_path, drop_missing=True)


def test_blank_lines_belong_to_running_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "", " \n", "b"] * 3}), tmp_path / "train.parquet")
    splits = _load(tmp_path, get_task("text-generation"), validation_fraction=0.25)
    assert len(splits.train) == 9 and not splits.dropped
    with pytest.raises(DataError, match="column 'text' has 6 missing values"):
        _load(tmp_path, get_task("fill-mask"), join=False)
    pq.write_table(pa.table({"text": ["a", None] * 3}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'text' has 3 missing values"):
        _load(tmp_path, get_task("text-generation"))


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _images(folder: Path, form: str) -> Path:
    good = [_png(i) for i in range(6)]
    if form == "bytes":
        column: list[Any] = [*good, None, b"", good[0][:40], b"no image"]
    elif form == "struct":
        column = [{"bytes": b, "path": None} for b in good]
        column += [
            None,
            {"bytes": None, "path": None},
            {"bytes": good[0][:40], "path": None},
            {"bytes": b"x", "path": ""},
        ]
    else:
        for i, data in enumerate([*good, good[0][:40]]):
            (folder / f"{i}.png").write_bytes(data)
        column = [*(str(folder / f"{i}.png") for i in range(6)), None, "", str(folder / "6.png"), str(folder / "7.png")]
    pq.write_table(pa.table({"image": column, "label": [i % 2 for i in range(10)]}), folder / "train.parquet")
    return folder


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_images_that_are_missing_or_broken(tmp_path: Path, form: str) -> None:
    folder = _images(tmp_path, form)
    with pytest.raises(DataError, match="column 'image' has 2 missing values, the first in row 7, then 8"):
        _load(folder / "train.parquet", IMAGE)
    splits = _load(folder / "train.parquet", IMAGE, drop_missing=True, validation_fraction=0.34)
    assert splits.dropped == {"train": 4} and len(splits.train) + len(splits.evaluate) == 6


def test_a_broken_image_names_the_way_out(tmp_path: Path) -> None:
    from transformers import ViTConfig

    column = [_png(0), _png(1), _png(2)[:40], _png(3)]
    pq.write_table(pa.table({"image": column, "label": [0, 1, 0, 1]}), tmp_path / "train.parquet")
    data = Data(path=str(tmp_path / "train.parquet"), splits={"evaluate": "train[:1]", "train": "train[1:]"})
    splits = load_data(data, IMAGE, 0)
    processor = IMAGE.load_processor(None, ViTConfig(image_size=8), data)
    with pytest.raises(RowError, match=r"cannot be decoded: .*data\.drop_missing: true") as refused:
        IMAGE.encode(splits.train, processor, data)
    assert splits.called("train", refused.value.row) == "row 3 of 'train'"

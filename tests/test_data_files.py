"""Local files as people have them: separators, encodings, packed files, quotes, and what `save_to_disk` writes."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from hfcompress.core.errors import DataError
from hfcompress.recipe import Data
from hfcompress.recipe.data import Unlabelled
from hfcompress.train.data import Splits, load_data
from hfcompress.train.tasks import get_task

TEXT, LM = get_task("text-classification"), get_task("text-generation")
TEXTS = [f"ein früher Film, Nummer {i} über „Käse“" for i in range(20)]
ROWS = {"text": TEXTS, "label": [i % 2 for i in range(20)]}


def _load(path: Path, task: Any = TEXT, **settings: Any) -> Splits:
    return load_data(Data(path=str(path), **settings), task, 0)


def _all_texts(splits: Splits) -> list[str]:
    return sorted([*splits.train["text"], *splits.evaluate["text"]])


def _csv(mark: str = ",", rows: dict[str, list[Any]] = ROWS) -> str:
    lines = [f'"{text}"{mark}{label}' for text, label in zip(rows["text"], rows["label"], strict=True)]
    return "\n".join([f"text{mark}label", *lines]) + "\n"


@pytest.mark.parametrize("name", ["rows.csv", "rows.CSV", "rows.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_any_usual_separator_is_recognized(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(_csv(mark), encoding="utf-8")
    splits = _load(tmp_path / name)
    assert _all_texts(splits) == sorted(TEXTS)
    assert len(splits.evaluate) == 4 and sum(splits.evaluate["label"]) == 2


def test_another_separator_is_named_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(_csv("^"), encoding="utf-8")
    assert _all_texts(_load(tmp_path, delimiter="^")) == sorted(TEXTS)
    with pytest.raises(DataError, match=r"say which column holds the text, .*\. Known: text\^label"):
        _load(tmp_path)
    (tmp_path / "train.csv").write_text("text;label|x\na;b|1\nc;d|2\n")
    with pytest.raises(DataError, match=r"may be separated by ';' or '\|': say which in data\.delimiter"):
        _load(tmp_path)
    with pytest.raises(ValidationError):
        Data(path="x", delimiter=", ")
    with pytest.raises(ValidationError, match="belong to local files"):
        Data(dataset="x", encoding="cp1252")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_marked_encodings_are_recognized(tmp_path: Path, kind: str, encoding: str) -> None:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    text = {
        "csv": _csv(),
        "tsv": _csv("\t"),
        "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[kind]
    (tmp_path / f"rows.{kind}").write_text(text, encoding=encoding)
    assert _all_texts(_load(tmp_path / f"rows.{kind}")) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_an_encoding_without_a_mark_is_told_from_the_first_byte(tmp_path: Path, kind: str) -> None:
    text = {
        "csv": "text,label\nfilm,0\ncafé,1\n" * 1,
        "jsonl": '{"text": "film", "label": 0}\n{"text": "né café", "label": 1}\n',
        "txt": "film\ncafé\n",
    }[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(text.encode("cp1252"))
    task = LM if kind == "txt" else TEXT
    position = text.index("é")
    expected = rf"is not utf-8 \(byte 0xe9 at position {position}, line \d\)\. Read as cp1252 .* 'n?.*café.*encoding to"
    with pytest.raises(DataError, match=expected):
        _load(path, task)
    splits = _load(path, task, encoding="cp1252", validation_fraction=0.5)
    assert any("café" in text for text in _all_texts(splits))
    with pytest.raises(DataError, match=r"is not ascii \(byte 0xe9 .*Set data\.encoding to what it was written in"):
        _load(path, task, encoding="ascii")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_csv().encode("utf-16-le"))
    with pytest.raises(DataError, match=r"UTF-16 without its mark: set data\.encoding to utf-16-le"):
        _load(path)
    assert _all_texts(_load(path, encoding="utf-16-le")) == sorted(TEXTS)
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError, match="not a file of text: it holds zero bytes"):
        _load(path)
    with pytest.raises(ValidationError, match="Python knows no text encoding 'cp9999'"):
        Data(path="x", encoding="cp9999")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_packed_files(tmp_path: Path, kind: str, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    lines = "\n".join(json.dumps({"text": t, "label": i % 2}) for i, t in enumerate(TEXTS))
    data = pack((_csv() if kind == "csv" else lines).encode())
    (tmp_path / f"train.{kind}{suffix}").write_bytes(data)
    assert _all_texts(_load(tmp_path)) == sorted(TEXTS)
    (tmp_path / f"train.{kind}{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,1\nb,2,3\n", r"line 3: it has 3 cells, the lines before 2 .*commas.*data\.delimiter"),
        ("text,label\na,1,2\nb,2,3\n", "rows have more cells than the first line has names"),
        ("text\nI came, saw\nand left\n", r"more cells than the first line has names|has 2 cells"),
        ("text,label,text\na,1,b\n", "two columns are called 'text'"),
        ("text,label\n", "no rows|is empty"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('text,label\n"a,1\nb,0\n"c,1\nd,0\n', "line 2: a quote opens a cell there and none closes it"),
        ('text,label\na,1\n"b,0\nc,1\n', "line 3: a quote opens a cell there and none closes it"),
        ("great film,1\nbad film,0\n", "Known: great film, 1. If that is an example, the file lacks a first line"),
        ("text,label\na,1\nb\n", "column 'label' has 1 missing value, the first in row 2"),
    ],
)
def test_what_is_wrong_in_a_csv_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_quotes_within_a_tsv_file_are_text(tmp_path: Path) -> None:
    rows = ['"a" is quoted\t1', 'it said "b\t0', '"c opens\t1', 'and "d" goes on\t0', '"e opens too\t1', "f\t0"]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    splits = _load(tmp_path / "rows.tsv", validation_fraction=0.34)
    assert _all_texts(splits) == sorted(row.split("\t")[0] for row in rows)


def test_types_are_found_over_all_shards(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.csv").write_text("text, label\n" + "".join(f"a{i},{i % 2}\n" for i in range(9)))
    (tmp_path / "train-00001-of-00002.csv").write_text("label ,text\n" + "".join(f"x,b{i}\n" for i in range(9)))
    splits = _load(tmp_path)
    assert splits.label_names == ["0", "1", "x"] and len(_all_texts(splits)) == 18
    (tmp_path / "train-00001-of-00002.csv").write_text("sentence,label\nb,1\n")
    with pytest.raises(DataError, match="do not have the same columns"):
        _load(tmp_path)


def test_true_and_false_and_numbers_keep_their_type(tmp_path: Path) -> None:
    rows = "".join(f"a{i},{i % 2 == 0}\n" for i in range(8))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    splits = _load(tmp_path)
    assert sorted(splits.train["label"][:] + splits.evaluate["label"][:]) == [0] * 4 + [1] * 4


def test_json_objects_may_lack_keys(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([{"text": "a"}, {"text": "b", "label": 1}]))
    with pytest.raises(DataError, match="column 'label' has 1 missing value, the first in row 1"):
        _load(tmp_path)
    for text, message in (("[1, 2]", "array of something else than objects"), ("[" * 100_000, "nested too deeply")):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(DataError, match=message):
            _load(tmp_path)


def test_a_json_line_may_be_long(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "long " * 5_000_000, "label": i} for i in range(2)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(_all_texts(_load(tmp_path, validation_fraction=0.5))) == 2


def test_plain_text_is_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"one\r\n\r\ntwo\r\n")
    (tmp_path / "validation.txt").write_text("three\n")
    (tmp_path / "LICENSE.txt").write_text("no data")
    splits = _load(tmp_path, LM)
    assert (splits.train["text"][:], splits.evaluate["text"][:]) == (["one", "", "two"], ["three"])
    (tmp_path / "train.csv").write_text("text\nfour\nfive\n")
    assert set(_all_texts(_load(tmp_path, LM, validation_fraction=0.5))) == {"four", "five"}  # lists beside tables


def test_lists_of_images_are_no_texts(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("cat/0.png\n")
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / label / "0.png")
    splits = _load(tmp_path, get_task("image-classification"))
    assert splits.label_names == ["cat", "dog"]


@pytest.mark.parametrize("form", ["one split", "several", "a folder each"])
def test_what_save_to_disk_wrote(tmp_path: Path, form: str) -> None:
    rows = Dataset.from_dict(ROWS)
    place = tmp_path / "saved"
    if form == "one split":
        rows.with_format("torch", columns=["label"]).save_to_disk(place)
    elif form == "several":
        DatasetDict(train=rows.select(range(12)), test=rows.select(range(12, 20))).save_to_disk(place)
    else:
        rows.select(range(12)).save_to_disk(place / "train")
        rows.select(range(12, 20)).save_to_disk(place / "test")
    splits = _load(place)
    assert _all_texts(splits) == sorted(TEXTS)
    assert len(splits.evaluate) == (4 if form == "one split" else 8)
    for file in sorted(place.rglob("*.arrow")):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"data\.path: .* was made by save_to_disk, and cannot be read"):
        _load(place)


def test_one_parquet_file_is_cut_by_label(tmp_path: Path) -> None:
    rows = {"text": [str(i) for i in range(100)], "label": ["b"] * 80 + ["a"] * 20}
    pq.write_table(pa.table(rows), tmp_path / "all.parquet")
    splits = _load(tmp_path / "all.parquet", validation_fraction=0.2)
    assert len(splits.evaluate) == 20 and sum(splits.evaluate["label"]) == 16


def test_text_that_is_not_what_a_parquet_file_says(tmp_path: Path) -> None:
    column = pa.array([b"caf\xe9", b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": column, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read: .*UTF8"):
        _load(tmp_path)


def test_files_of_two_kinds_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(_csv())
    (tmp_path / "extra.jsonl").write_text(json.dumps({"text": "a", "label": "x"}))
    with pytest.raises(DataError, match=r"data\.splits\.train: .*same columns of the same types"):
        _load(tmp_path, splits={"train": "train+extra"})


def test_unlabelled_inputs_come_from_such_files_too(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(_csv())
    (tmp_path / "more.csv").write_bytes("text;x\ncafé;1\nthé;2\n".encode("cp1252"))
    extra = {"path": str(tmp_path / "more.csv")}
    with pytest.raises(DataError, match=r"data\.unlabelled\.encoding to cp1252"):
        _load(tmp_path / "train.csv", unlabelled=extra)
    splits = _load(tmp_path / "train.csv", unlabelled=Unlabelled(**extra, encoding="cp1252", delimiter=";"))
    assert splits.unlabelled is not None and splits.unlabelled["text"][:] == ["café", "thé"]

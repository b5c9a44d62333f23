"""What is measured on and trained on too, and what is cut: counted, said, and above 1% refused."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from project import text_project
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTConfig

from hfcompress.core.errors import DataError
from hfcompress.recipe import Data, load_recipe
from hfcompress.recipe.data_report import Cut, DataReport, Overlap
from hfcompress.run.execute import run_recipe
from hfcompress.train.data import load_data
from hfcompress.train.overlap import data_report
from hfcompress.train.tasks import get_task, image_classification

TEXT, IMAGE, LM = (get_task(name) for name in ("text-classification", "image-classification", "text-generation"))


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[MASK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _write(folder: Path, **splits: dict[str, Any]) -> Path:
    for name, rows in splits.items():
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return folder


def _texts(*texts: str) -> dict[str, Any]:
    return {"text": list(texts), "label": [i % 2 for i in range(len(texts))]}


def _report(folder: Path, task: Any = TEXT, processor: Any = None, **settings: Any) -> DataReport:
    data = Data(path=str(folder), **settings)
    splits = load_data(data, task, 0)
    processor = processor or _tokenizer()
    encoded = {"train": splits.mixed(), "evaluate": splits.evaluate}
    encoded = {name: task.encode(split, processor, data) for name, split in encoded.items()}
    return data_report(data, task, splits, encoded, processor)


def _overlap(folder: Path, task: Any = TEXT, processor: Any = None, **settings: Any) -> Overlap:
    found = _report(folder, task, processor, **settings).overlap
    assert found is not None
    return found


@pytest.mark.parametrize(
    "form",
    [
        "Ein CAFÉ  im Süden",
        " ein café im süden\n",
        unicodedata.normalize("NFD", "Ein Café im Süden"),
        "EIN CAFÉ\tIM SÜDEN",
    ],
)
def test_a_text_is_found_again_however_it_is_written(tmp_path: Path, form: str) -> None:
    _write(tmp_path, train=_texts("a", "b", "Ein Café im Süden"), test=_texts("c", form))
    share = r"data: 1 of 2 evaluation examples \(50%\) are also trained on, such as row 2 of 'test'"
    with pytest.raises(DataError, match=share + r" \('.*\(compared: texts, .*data.allow_leakage: true"):
        _report(tmp_path)
    found = _overlap(tmp_path, allow_leakage=True)
    assert (found.of, found.trained, found.unlabelled, found.repeated, found.share) == (2, 1, 0, 0, 0.5)


def test_other_texts_are_no_copies(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts("a b", "cafe", "x."), test=_texts("ab", "café", "x"))
    found = _report(tmp_path)
    assert found.overlap is not None and found.overlap.trained == 0
    assert found.sentences() == [
        "None of the 3 evaluation examples is also trained on (compared: texts, without regard to case and blanks)."
    ]


def test_one_in_a_hundred_is_said_and_more_is_refused(tmp_path: Path) -> None:
    evaluate = [f"text {i}" for i in range(200)]
    _write(tmp_path, train=_texts("new", *evaluate[:2]), test=_texts(*evaluate))
    assert "2 of 200 evaluation examples (1%) are also trained on" in _report(tmp_path).sentences()[0]
    _write(tmp_path, train=_texts("new", *evaluate[:3]))
    with pytest.raises(DataError, match=r"3 of 200 evaluation examples \(1.5%\)"):
        _report(tmp_path)


def test_only_what_is_used_counts(tmp_path: Path) -> None:
    rows = [f"text {i}" for i in range(100)]
    _write(tmp_path, train=_texts(*rows, *map(str, range(100))), test=_texts(*rows))
    assert _overlap(tmp_path, splits={"train": "train[100:]"}).trained == 0
    few = _overlap(tmp_path, max_train=50, max_evaluate=20, allow_leakage=True)
    assert few.of == 20 and few.trained < 20


def test_a_pair_is_a_copy_where_both_texts_are(tmp_path: Path) -> None:
    def pairs(*rows: tuple[str, str]) -> dict[str, Any]:
        return {**_texts(*(first for first, _ in rows)), "other": [second for _, second in rows]}

    _write(tmp_path, train=pairs(("a", "b"), ("c", "d")), test=pairs(("a", "d"), ("C", "D "), ("ab", "")))
    settings: dict[str, Any] = {"columns": {"text_pair": "other"}, "drop_missing": True, "allow_leakage": True}
    found = _report(tmp_path, **settings)
    assert found.overlap is not None and (found.overlap.of, found.overlap.trained) == (2, 1)
    assert found.sentences()[0] == (
        "1 row of the evaluation split was left out: a value is missing, or an image cannot be read "
        "(data.drop_missing)."
    )


def test_inputs_without_labels_are_trained_on_too(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts("a", "b"), test=_texts("a", "c", "d"), more={"text": ["c", "a", "e"]})
    extra = {"path": str(tmp_path), "split": "more"}
    with pytest.raises(DataError, match=r"2 of 3 .* are also trained on, 1 of them as inputs without labels, such as"):
        _report(tmp_path, unlabelled=extra)
    found = _overlap(tmp_path, unlabelled=extra, allow_leakage=True)
    assert (found.trained, found.unlabelled) == (1, 1)


def test_a_held_out_part_may_repeat_the_rest(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts(*[f"text {i % 10}" for i in range(40)]))
    with pytest.raises(DataError, match=r"8 of 8 evaluation examples \(100%\) are also trained on"):
        _report(tmp_path)


def test_examples_that_repeat_within_the_split_are_a_note(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts("a", "b"), test=_texts("c", "C", "d", "c ", "d"))
    found = _report(tmp_path)
    assert found.overlap is not None and found.overlap.repeated == 3
    assert "3 evaluation examples repeat an earlier one of the split" in found.sentences()[-1]


def test_measuring_on_what_is_trained_on_takes_saying_so(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts(*map(str, range(10))))
    settings: dict[str, Any] = {"splits": {"evaluate": "train[:5]"}}
    with pytest.raises(DataError, match=r"must not be trained on\..*data\.allow_leakage: true"):
        _report(tmp_path, **settings)
    assert _overlap(tmp_path, **settings, allow_leakage=True).trained == 5


def test_running_text_counts_by_its_letters(tmp_path: Path) -> None:
    long = [" ".join(f"word{i}{j}" for j in range(300)) for i in range(4)]
    _write(tmp_path, train={"text": ["= Plot =", "", *long[:2]]}, test={"text": ["= Plot =", "", " ", *long[2:], ""]})
    found = _overlap(tmp_path, LM, max_length=8)
    assert (found.of, found.trained, found.repeated) == (3, 1, 0) and 0 < found.share < 0.01
    _write(tmp_path, test={"text": ["= Plot =", *long[1:3]]})
    with pytest.raises(DataError, match=r"2 of 3 evaluation examples"):
        _report(tmp_path, LM, max_length=8)


def _image(value: int, **options: Any) -> bytes:
    buffer, pixels = io.BytesIO(), np.random.default_rng(value).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("eager", [1 << 30, 0, 2000])
def test_images_are_compared_as_the_model_reads_them_or_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: int
) -> None:
    """In memory by their pixels, whatever the file; beyond by the files, also where only one split is kept there."""
    monkeypatch.setattr(image_classification, "EAGER_BYTES", eager)
    (tmp_path / "file.png").write_bytes(_image(0))
    train = [{"bytes": _image(i, compress_level=1), "path": None} for i in range(1, 20)]
    train.append({"bytes": None, "path": str(tmp_path / "file.png")})
    test = [{"bytes": _image(i, compress_level=c), "path": None} for i, c in ((1, 1), (2, 9), (30, 1), (0, 6))]
    _write(tmp_path, train={"image": train, "label": [0, 1] * 10}, test={"image": test, "label": [0, 1] * 2})
    processor = IMAGE.load_processor(None, ViTConfig(image_size=8), Data(path="x"))
    with pytest.raises(DataError, match=r"of 4 evaluation examples .* such as row 1 of 'test' \(compared: .*images"):
        _report(tmp_path, IMAGE, processor)
    found = _overlap(tmp_path, IMAGE, processor, allow_leakage=True)
    assert len(train) * 8 * 8 * 3 > 2000 > len(test) * 8 * 8 * 3
    assert found.trained == (3 if eager > 2000 else 2)  # one was written anew


def test_large_files_are_told_apart_by_their_middle_and_end(tmp_path: Path) -> None:
    from datasets import Dataset

    from hfcompress.train.example_keys import file_keys

    data = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8)
    changed = [data.copy() for _ in range(4)]
    for place, other in zip((0, 150_000, 299_999), changed[1:], strict=True):
        other[place] ^= 1
    rows = [{"bytes": d.tobytes(), "path": None} for d in changed]
    for i, d in enumerate(changed):
        (tmp_path / str(i)).write_bytes(d.tobytes())
        rows.append({"bytes": None, "path": str(tmp_path / str(i))})
    keys = file_keys(Dataset.from_dict({"image": rows}))
    assert keys[:4].tolist() == keys[4:].tolist() and len(set(keys.tolist())) == 4
    with pytest.raises(DataError, match=r"cannot be read \(file .*gone\.png\): .*data\.drop_missing: true"):
        file_keys(Dataset.from_dict({"image": [{"bytes": None, "path": str(tmp_path / "gone.png")}]}))


def test_texts_that_were_cut_are_counted(tmp_path: Path) -> None:
    _write(tmp_path, train=_texts("a b c d", "a b c", "a", "a b c d e"), test=_texts("x y z", "x y z q"))
    found = _report(tmp_path, max_length=3)
    assert found.cut == {"train": Cut(texts=2, of=4, tokens=3), "evaluate": Cut(texts=1, of=2, tokens=3)}
    assert found.sentences()[:2] == [
        "50% of the training texts (2 of 4) are longer than 3 tokens and were cut.",
        "50% of the evaluation texts (1 of 2) are longer than 3 tokens and were cut.",
    ]
    assert not any("cut" in line for line in _report(tmp_path, max_length=5).sentences())


def test_cut_pairs_masked_texts_and_blocks(tmp_path: Path) -> None:
    _write(tmp_path, train={**_texts("a b", "c", "d"), "other": ["q r", "s", "t"]})
    split = {"splits": {"train": "train[:2]", "evaluate": "train[2:]"}}
    pairs = _report(tmp_path, max_length=3, columns={"text_pair": "other"}, **split)
    assert {name: cut.texts for name, cut in pairs.cut.items()} == {"train": 1, "evaluate": 0}
    masked = _report(tmp_path, get_task("fill-mask"), max_length=2, join=False, **split)
    assert {name: cut.texts for name, cut in masked.cut.items()} == {"train": 0, "evaluate": 0}
    _write(tmp_path, train={"text": ["a b c", "d", "e f g h"]})
    masked = _report(tmp_path, get_task("fill-mask"), max_length=2, join=False, **split)
    assert {name: cut.texts for name, cut in masked.cut.items()} == {"train": 1, "evaluate": 1}
    assert _report(tmp_path, LM, max_length=2, **split).cut == {}


def test_shares_are_never_rounded_to_none_or_all() -> None:
    def said(texts: int, of: int) -> str:
        return DataReport(cut={"train": Cut(texts=texts, of=of, tokens=9)}).sentences()[0].partition(" of")[0]

    assert [said(*pair) for pair in ((1, 1_000_000), (999_999, 1_000_000), (1, 1), (12, 100), (3, 200))] == [
        "less than 0.1%",
        "more than 99.9%",
        "100%",
        "12%",
        "1.5%",
    ]


def test_plan_run_result_and_card_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from hfcompress.run.reporter import Reporter
    from hfcompress.run.show_plan import plan_table

    path = text_project(tmp_path, stages=[{"methods": {"quantize_weights": {}}}])
    with (tmp_path / "data" / "train.csv").open("a") as file:
        file.write("very very very good film,\n")
    more = ["data.drop_missing=true", "data.max_length=4"]
    with pytest.raises(DataError, match=r"24 of 24 evaluation examples \(100%\)"):
        run_recipe(load_recipe(path, [*more, "data.allow_leakage=false"]), tmp_path / "out")
    assert not (tmp_path / "out" / "plan.json").exists()
    result = run_recipe(load_recipe(path, more), tmp_path / "out", reporter=Reporter(Console(width=300)))
    printed = capsys.readouterr().out
    assert result.data is not None and result.data.overlap is not None
    assert result.data.dropped == {"train": 1} and result.data.cut["evaluate"].texts == 24
    assert result.data.overlap.trained == 24 and result.data.overlap.repeated == 21
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    lines = result.data.sentences()
    assert len(lines) == 6 and "3 training texts occur more than once (48 rows)." in lines
    for line in lines:
        assert line in printed and f"- {line}" in card
    Console(width=300).print(plan_table_of(tmp_path / "out", plan_table))
    assert lines[0] in capsys.readouterr().out


def plan_table_of(folder: Path, table: Any) -> Any:
    """Return the table of the plan that a run left."""
    from hfcompress.recipe.plan import Plan

    return table(Plan.model_validate_json((folder / "plan.json").read_text()))

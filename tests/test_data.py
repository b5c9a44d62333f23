"""Data and tasks: what a task gets from each kind of source, and what each bad input is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BitImageProcessorPil,
    PreTrainedTokenizerFast,
    RobertaConfig,
    ViTConfig,
)

from hfcompress.core.errors import DataError, RecipeError
from hfcompress.recipe import Data
from hfcompress.train.data import Splits, calibration_batches, load_data
from hfcompress.train.tasks import get_task, image_classification, tasks
from hfcompress.train.tasks.label_map import new_classes

TEXT, IMAGE = get_task("text-classification"), get_task("image-classification")
ROWS = {"text": [f"word{i % 3} and {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}


def _write(folder: Path, **splits: dict[str, list[Any]]) -> Path:
    for name, rows in splits.items():
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return folder


def _load(folder: Path, task: Any = TEXT, seed: int = 0, **settings: Any) -> Splits:
    return load_data(Data(path=str(folder), **settings), task, seed)


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "word0", "word1", "word2", "and"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def test_local_splits_and_label_names(tmp_path: Path) -> None:
    _write(tmp_path, train=ROWS, validation={"text": ["a"], "label": [1]}, test={"text": ["b"], "label": [-1]})
    (tmp_path / "labels.json").write_text(json.dumps(["no", "yes"]))
    splits = _load(tmp_path)
    assert (len(splits.train), len(splits.evaluate), splits.evaluate_split) == (20, 1, "validation")
    assert splits.label_names == ["no", "yes"] and splits.label_count == 2
    assert splits.train.column_names == ["text", "label"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "labels.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_text_formats_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = [{"text": 'NA, "quoted"\nline', "label": "b"}, {"text": "nil", "label": "a"}] * 5
    text = {
        "csv": "text,label\n" + '"NA, ""quoted""\nline",b\nnil,a\n' * 5,
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
    }[kind]
    (tmp_path / f"train.{kind}").write_text(text)
    splits = _load(tmp_path, validation_fraction=0.4)
    assert set(splits.train["text"]) == {'NA, "quoted"\nline', "nil"}
    assert splits.label_names == ["a", "b"]
    assert dict(zip(splits.train["text"], splits.train["label"], strict=True))["nil"] == 0


def test_a_long_csv_keeps_lines_within_quotes(tmp_path: Path) -> None:
    row = '"' + "a\n" * 30_000 + 'b",0\n'
    (tmp_path / "train.csv").write_text("text,label\n" + row * 60)
    splits = _load(tmp_path, validation_fraction=0.5)
    assert {*splits.train["text"], *splits.evaluate["text"]} == {"a\n" * 30_000 + "b"}


def test_shards_are_one_split(tmp_path: Path) -> None:
    half = {k: v[:10] for k, v in ROWS.items()}
    splits = _load(_write(tmp_path, **{"train-00000-of-00002": half, "train-00001-of-00002": half}))
    assert len(splits.train) + len(splits.evaluate) == 20


def test_held_out_split_is_stratified_seeded_and_disjoint(tmp_path: Path) -> None:
    rows = {"text": [str(i) for i in range(100)], "label": [0] * 80 + [1] * 20}
    first, again = (_load(_write(tmp_path, train=rows), validation_fraction=0.2) for _ in range(2))
    other = _load(tmp_path, validation_fraction=0.2, seed=1)
    assert first.evaluate["text"][:] == again.evaluate["text"][:] != other.evaluate["text"][:]
    assert sum(first.evaluate["label"]) == 4 and len(first.evaluate) == 20
    assert {*first.train["text"], *first.evaluate["text"]} == set(rows["text"])


def test_slices_and_subsets(tmp_path: Path) -> None:
    _write(tmp_path, train=ROWS)
    splits = _load(tmp_path, splits={"train": "train[:60%]", "evaluate": "train[-4:]"}, max_train=6)
    assert splits.evaluate["text"][:] == ROWS["text"][-4:]
    assert (
        len(splits.train) == 6
        and sum(splits.train["label"]) == 3
        and set(splits.train["text"]) <= set(ROWS["text"][:12])
    )


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "trian"}, r"data\.splits\.train: .* has no split 'trian'.*'train'"),
        ({"evaluate": "dev"}, r"data\.splits\.evaluate: .* has no split 'dev'"),
        ({"train": "train[:x]"}, r"data\.splits\.train: 'train\[:x\]' is not a slice"),
        ({"train": "train[5:5]"}, "data.splits.train: this split .* is empty"),
        ({"train": "train[:80%]", "evaluate": "train[50%:]"}, "share 6 examples of 'train'"),
        ({"evaluate": "train"}, "must not be trained on"),
    ],
)
def test_bad_splits(tmp_path: Path, splits: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(_write(tmp_path, train=ROWS), splits=splits)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS, {"columns": {"text": "txt"}}, r"data\.columns\.text: the data has no column 'txt'.*'text'"),
        ({"review": ["a"] * 9, "label": [0] * 9}, {}, r"data\.columns\.text: say which column .* review"),
        ({"text": ["a"] * 9}, {}, r"data\.columns\.label: say which column"),
        ({"text": ["a"] * 9, "label": [0.5] * 9}, {}, "column 'label' holds .*double.* must be whole numbers or text"),
        ({"text": ["a"] * 9, "label": [[0]] * 9}, {}, "labels must be whole numbers or text"),
        ({"text": ["a"] * 9, "label": [0, 1, None] * 3}, {}, "column 'label' has 3 missing values, the first in row 3"),
        ({"text": ["a"] * 9, "label": [0.0, float("nan"), 1.0] * 3}, {}, "'label' has 3 missing values"),
        (
            {"text": ["a", None, "b"] * 3, "label": [0] * 9},
            {},
            "column 'text' has 3 missing values, the first in row 2",
        ),
        ({"text": list(range(9)), "label": [0] * 9}, {}, "column 'text' holds .*; expected text"),
        ({"text": ["a"] * 9, "label": [-1] * 9}, {}, "label -1 is negative"),
        ({"text": ["a"], "label": [0]}, {}, "validation_fraction: .* leaves a split empty"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, {}, "this split .* is empty"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("double", "float64")):
        _load(_write(tmp_path, train=rows), **settings)


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    train = {"text": ["x", "y"], "label": ["neg", "pos"]}
    _write(tmp_path, train=train, validation={"text": ["z"], "label": ["mixed"]})
    with pytest.raises(DataError, match="split 'evaluate': labels 'mixed' do not occur among the labels 'neg', 'pos'"):
        new_classes(_load(tmp_path).labels)


def test_labels_beyond_their_names(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["only"]')
    with pytest.raises(DataError, match="label 1 has no name; there are 1: 'only'"):
        _load(_write(tmp_path, train=ROWS))


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*nowhere"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither <split>\.parquet"):
        _load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        _load(tmp_path)
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match=r"notes\.doc is none of \.parquet"):
        _load(tmp_path / "notes.doc")


def test_one_file_is_a_source(tmp_path: Path) -> None:
    _write(tmp_path, rows=ROWS)
    assert len(_load(tmp_path / "rows.parquet", validation_fraction=0.5).train) == 10


def test_unknown_hub_data_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'no/such' on the Hub")

    monkeypatch.setattr("hfcompress.train.sources.load_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot load 'no/such': Couldn't reach .* set 'data.path'"):
        load_data(Data(dataset="no/such"), TEXT, 0)


def test_digits_come_with_scikit_learn() -> None:
    splits = load_data(Data(dataset="sklearn:digits", max_train=50, max_evaluate=20), IMAGE, 0)
    assert splits.label_names == [str(i) for i in range(10)]
    pixels = np.asarray(splits.train[0]["image"])
    assert pixels.shape == (8, 8) and pixels.max() > 200
    for name in ("digitz", "iris", "files"):
        with pytest.raises(DataError, match="ships no labelled images called"):
            load_data(Data(dataset=f"sklearn:{name}"), IMAGE, 0)


def _image_columns(folder: Path) -> dict[str, list[Any]]:
    encoded = [_png(i) for i in (0, 80, 160, 240)]
    for index, data in enumerate(encoded):
        (folder / f"{index}.png").write_bytes(data)
    return {
        "bytes": encoded,
        "struct": [{"bytes": data, "path": None} for data in encoded],
        "path": [str(folder / f"{i}.png") for i in range(4)],
    }


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_images_in_every_form_are_the_same(tmp_path: Path, kind: str) -> None:
    column = _image_columns(tmp_path)[kind]
    _write(tmp_path, train={"img": column, "label": [0, 1, 0, 1]})
    splits = _load(tmp_path, IMAGE, validation_fraction=0.5)
    colours = {image.getpixel((0, 0)) for image in [*splits.train["image"], *splits.evaluate["image"]]}
    assert colours == {(v, 0, 255 - v) for v in (0, 80, 160, 240)}


def test_image_folder(tmp_path: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for split, count in (("train", 3), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / label / f"{i}.png").write_bytes(_png(i))
    splits = _load(tmp_path, IMAGE)
    assert splits.label_names == ["cat", "dog"] and splits.evaluate_split == "test"
    assert (len(splits.train), len(splits.evaluate)) == (6, 4)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.parent == tmp_path) == ["test", "train"]


def test_what_is_not_an_image(tmp_path: Path) -> None:
    _write(tmp_path, train={"image": [1.5] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"column 'image' holds .*expected images"):
        _load(tmp_path, IMAGE)
    _write(tmp_path, train={"image": [b"no image"] * 4, "label": [0, 1, 0, 1]})
    splits = _load(tmp_path, IMAGE)
    processor = IMAGE.load_processor(None, ViTConfig(image_size=8), Data(path="x"))
    with pytest.raises(DataError, match="image of the data set cannot be decoded"):
        IMAGE.encode(splits.train, processor, Data(path="x"))


@pytest.mark.parametrize("eager", [True, False])
def test_encoded_images_equal_the_processors_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    monkeypatch.setattr(image_classification, "EAGER_BYTES", 1 << 30 if eager else 0)
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)) for i in range(5)]
    processor = BitImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 12, "width": 12},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    dataset = IMAGE.check_inputs(Dataset.from_dict({"image": images, "label": [0, 1, 2, 3, 4]}), "train")
    encoded = IMAGE.encode(dataset, processor, Data(path="x"))
    batch = IMAGE.collator(processor)([encoded[i] for i in range(5)])
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert set(batch) == {"pixel_values", "labels"} and batch["labels"].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(batch["pixel_values"], expected, atol=2e-6, rtol=0)


def test_image_processor_from_a_config_and_another_size(tmp_path: Path) -> None:
    grey = IMAGE.load_processor(None, ViTConfig(image_size=16, num_channels=1), Data(path="x"))
    dataset = Dataset.from_dict({"image": [Image.new("RGB", (8, 8), (255, 255, 255))], "label": [0]})
    batch = IMAGE.collator(grey)(list(IMAGE.encode(dataset, grey, Data(path="x"))))
    assert batch["pixel_values"].shape == (1, 1, 16, 16) and batch["pixel_values"].eq(1.0).all()
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(tmp_path)
    small = IMAGE.load_processor(str(tmp_path), None, Data(path="x", image_size=56))
    assert (small.size["shortest_edge"], small.crop_size["height"]) == (64, 56)
    assert [(s.batch, s.image_size) for s in IMAGE.shapes(small)] == [(1, 56), (16, 56)]


def test_encoded_text_is_cut_and_padded_per_batch() -> None:
    dataset = Dataset.from_dict({"text": ["word0", "word1 and word2"], "text_pair": ["and", "and"], "label": [1, 0]})
    tokenizer = _tokenizer()
    encoded = TEXT.encode(dataset, tokenizer, Data(path="x", max_length=3))
    assert [len(ids) for ids in encoded["input_ids"]] == [2, 3]
    batch = TEXT.collator(tokenizer)([encoded[i] for i in range(2)])
    assert batch["input_ids"].shape == (2, 3) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 0]


def test_texts_are_cut_to_the_positions_the_model_has(tmp_path: Path) -> None:
    _tokenizer().save_pretrained(tmp_path)
    few = TEXT.load_processor(str(tmp_path), BertConfig(max_position_embeddings=4), Data(path="x"))
    dataset = Dataset.from_dict({"text": ["word0 and " * 20], "label": [1]})
    assert len(TEXT.encode(dataset, few, Data(path="x"))["input_ids"][0]) == 4
    more = TEXT.load_processor(str(tmp_path), RobertaConfig(max_position_embeddings=12, pad_token_id=1), Data(path="x"))
    assert len(TEXT.encode(dataset, more, Data(path="x"))["input_ids"][0]) == 10  # the first two rows are no positions


def test_missing_processors_say_which_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="processor: a text model from scratch needs a tokenizer"):
        TEXT.load_processor(None, BertConfig(), Data(path="x"))
    for task, what in ((TEXT, "tokenizer"), (IMAGE, "image processor")):
        with pytest.raises(RecipeError, match=f"no {what} can be loaded from .*Set 'processor'"):
            task.load_processor(str(tmp_path), BertConfig(), Data(path="x"))


def test_tasks_are_those_of_optimum_with_its_auto_classes_and_its_synonyms():
    from optimum.exporters.tasks import TasksManager

    for name, task in tasks().items():
        assert task.model_class is TasksManager.get_model_class_for_task(name)
    for synonym, name in (("sequence-classification", "text-classification"), ("causal-lm", "text-generation")):
        assert get_task(synonym) is get_task(name)


def test_tasks_and_metrics() -> None:
    assert list(tasks()) == ["fill-mask", "image-classification", "text-classification", "text-generation"]
    with pytest.raises(RecipeError, match=r"no task is called 'text-clasification'.*'text-classification'"):
        get_task("text-clasification")
    with pytest.raises(RecipeError, match=r"evaluate\.metric: text-classification has no metric 'acuracy'.*'accuracy'"):
        TEXT.metric("acuracy")
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = {name: TEXT.metric(name)(predictions, labels) for name in TEXT.metrics}
    expected = {"accuracy": 0.75, "f1": 0.8, "macro-f1": (2 / 3 + 0.8) / 2, "matthews": 1 / 3**0.5}
    assert found == pytest.approx(expected)


def test_compute_metrics_reads_logits() -> None:
    class Output:
        predictions = (np.array([[2.0, 1.0], [0.0, 1.0]]), "hidden states")
        label_ids = np.array([0, 0])

    assert TEXT.compute_metrics("accuracy")(Output()) == {"accuracy": 0.5}


def test_a_local_evaluate_script_is_a_metric(tmp_path: Path) -> None:
    (tmp_path / "hits.py").write_text(
        "import datasets\nimport evaluate\n\n\nclass Hits(evaluate.Metric):\n    def _info(self):\n"
        "        f = datasets.Features({k: datasets.Value('int64') for k in ('predictions', 'references')})\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='', features=f)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'hits': sum(p == r for p, r in zip(predictions, references))}\n"
    )
    script = str(tmp_path / "hits.py")
    metric = TEXT.metric(script)
    assert metric([1, 0, 1], [1, 1, 1]) == 2 and metric.higher_is_better
    text = (tmp_path / "hits.py").read_text().replace("p == r", "p != r")
    (tmp_path / "misses.py").write_text(text.replace("    def _info", "    higher_is_better = False\n\n    def _info"))
    metric = TEXT.metric(str(tmp_path / "misses.py"))
    assert metric([1, 0, 1], [1, 1, 1]) == 1 and not metric.higher_is_better
    with pytest.raises(RecipeError, match="cannot load the script"):
        TEXT.metric(str(tmp_path / "missing.py"))


def test_class_labels_bring_their_names(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["bad", "good"]))
    Dataset.from_dict(ROWS, features=features).to_parquet(tmp_path / "train.parquet")
    assert _load(tmp_path).label_names == ["bad", "good"]


def test_calibration_batches_are_seeded() -> None:
    encoded = TEXT.encode(Dataset.from_dict(ROWS), _tokenizer(), Data(path="x"))
    collator = TEXT.collator(_tokenizer())
    first, again, other = (list(calibration_batches(encoded, collator, 7, 4, seed)) for seed in (0, 0, 1))
    assert [len(b["labels"]) for b in first] == [4, 3]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat([b["labels"] for b in first]), torch.cat([b["labels"] for b in other]))


def test_calibration_batches_hold_texts_of_like_length_and_come_in_no_order_of_length() -> None:
    """Half of the padding, the same examples; the first few batches stand for all."""
    texts = [" ".join(["good"] * (1 + 7 * i % 60)) for i in range(60)]
    encoded = TEXT.encode(Dataset.from_dict({"text": texts, "label": [0] * 60}), _tokenizer(), Data(path="x"))
    collator = TEXT.collator(_tokenizer())
    batches, alone = (
        [batch["attention_mask"].sum(1).tolist() for batch in calibration_batches(encoded, collator, 42, size, 0)]
        for size in (8, 1)
    )
    assert sorted(n for batch in batches for n in batch) == sorted(n for batch in alone for n in batch)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 2]
    assert sum(max(batch) * len(batch) for batch in batches) < 1.2 * sum(n for batch in batches for n in batch)
    assert [max(batch) for batch in batches[:-1]] != sorted(max(batch) for batch in batches[:-1])

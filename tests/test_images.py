"""Images: augmentation of training batches, and folders of images of every kind."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from tiny import LABELS, make
from transformers import BitImageProcessorPil, TrainingArguments, ViTConfig, ViTImageProcessorPil

from hfcompress import DistillConfig, HFCompressTrainer
from hfcompress.core.errors import DataError, MeasureError, RecipeError
from hfcompress.measure.batches import read_batches
from hfcompress.measure.examples import EXAMPLES, Examples, read_examples, write_examples
from hfcompress.ops.images import blended, flip, pasted, resized_boxes, shift
from hfcompress.ops.losses import soft_label_cross_entropy
from hfcompress.ops.reductions import IGNORED
from hfcompress.publish.examples import GRID, caption, draw, write_grid
from hfcompress.recipe import Data
from hfcompress.recipe.data import Augment
from hfcompress.run.folder import RunFolder
from hfcompress.run.reporter import Reporter
from hfcompress.run.training import _tell_waiting, _workers
from hfcompress.run.verify import write_split
from hfcompress.train import data
from hfcompress.train.augmentation import Augmenter
from hfcompress.train.batches import SOFT_LABELS, Waiting
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.data import load_data
from hfcompress.train.tasks import get_task, image_classification

IMAGE = get_task("image-classification")
PIXELS = torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8).remainder(251).to(torch.uint8)
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def examples(size: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 3, 16, 16), dtype=np.uint8)
    return [{"pixel_values": image, "labels": i % LABELS} for i, image in enumerate(images)]


def augmenter(seed: int = 0, **settings: Any) -> Augmenter:
    return IMAGE.training_collator(PROCESSOR, Data(path="x", augment=settings), seed, LABELS)  # type: ignore[return-value]


def test_flip_mirrors_the_chosen_ones() -> None:
    found = flip(PIXELS, torch.tensor([True, False, False, True]))
    assert torch.equal(found[0], PIXELS[0].flip(-1)) and torch.equal(found[1], PIXELS[1])


def test_shift_moves_over_black() -> None:
    down, right = torch.tensor([2, 0, 4, 2]), torch.tensor([2, 2, 2, 3])
    found = shift(PIXELS, down, right, 2)
    assert torch.equal(found[0], PIXELS[0])
    assert torch.equal(found[1, :, 2:], PIXELS[1, :, :-2]) and not found[1, :, :2].any()
    assert torch.equal(found[2, :, :-2], PIXELS[2, :, 2:]) and not found[2, :, -2:].any()
    assert torch.equal(found[3, ..., :-1], PIXELS[3, ..., 1:]) and not found[3, ..., -1].any()


def test_a_box_is_what_is_cut_and_enlarged() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(2, 1, 8, 8)  # the value is the column
    found = resized_boxes(ramp, torch.tensor([[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.5]]))
    assert torch.allclose(found[0], ramp[0], atol=1e-5)
    columns = (4 + (torch.arange(8) + 0.5) / 2 - 0.5).clamp(max=7)  # pixel centres of the right half
    assert torch.allclose(found[1], columns.expand(1, 8, 8), atol=1e-5)


def test_mixing_keeps_the_shares() -> None:
    images = PIXELS.float()
    assert torch.allclose(blended(images, 0.25)[0], 0.25 * images[0] + 0.75 * images[3])
    mixed, share = pasted(images, 0.75, 0.0, 0.0)  # the box's centre is the corner: a quarter of it lies inside
    assert share == 1 - 4 / 64
    assert torch.equal(mixed[0, :, :2, :2], images[3, :, :2, :2]) and torch.equal(mixed[0, :, 2:], images[0, :, 2:])


def test_soft_labels_of_one_class_are_labels() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    shares = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.isclose(soft_label_cross_entropy(logits, shares), torch.nn.functional.cross_entropy(logits, labels))
    shares[1:] = 0  # a row without a label does not count
    expected = torch.nn.functional.cross_entropy(logits[:1], labels[:1])
    assert torch.isclose(soft_label_cross_entropy(logits, shares), expected)


@pytest.mark.parametrize(
    "settings", [{"flip": 0.5}, {"crop": {"padding": 2}}, {"crop": {"area": [0.3, 1]}}, {"mixup": 0.5}, {"cutmix": 1.0}]
)
def test_draws_follow_from_seed_and_batch(settings: dict[str, Any]) -> None:
    batch, plain = examples(), IMAGE.collator(PROCESSOR)(examples())
    first, again, other = (augmenter(seed, **settings)(batch)["pixel_values"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, plain["pixel_values"])
    sent = pickle.loads(pickle.dumps(augmenter(1, **settings)))  # as a spawned worker gets it
    assert torch.equal(sent(batch)["pixel_values"], first)


def test_views_are_few_and_follow_from_the_image_alone() -> None:
    rows = examples()
    made = [augmenter(seed, views=3, flip=0.5, crop={"padding": 2}) for seed in (1, 2)]
    found = [a([rows[0], rows[n]])["pixel_values"][0] for a in made for n in range(1, 24)]  # 46 batches with image 0
    distinct = {tuple(image.flatten().tolist()) for image in found}
    asked = {tuple(a([{**rows[0], "view": v}])["pixel_values"].flatten().tolist()) for a in made for v in range(3)}
    assert distinct == asked and len(distinct) == 3
    assert made[0].draw(rows) != made[1].draw(rows) and set(made[0].draw(rows)) == {0, 1, 2}
    for other in ("mixup", "cutmix"):
        with pytest.raises(ValidationError, match="'views' cannot go with mixup or cutmix"):
            Augment(flip=0.5, views=2, **{other: 1.0})


def test_mixed_labels_are_shares_and_those_without_stay_without() -> None:
    batch = examples(4)
    batch[0]["labels"] = IGNORED
    found = augmenter(mixup=1.0)(batch)
    shares = found[SOFT_LABELS]
    assert "labels" not in found and shares.shape == (4, LABELS)
    assert torch.allclose(shares[1:3].sum(1), torch.ones(2)) and torch.isclose(shares[[0, 3]].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("teacher", [False, True])
def test_only_training_batches_change(tmp_path: Path, teacher: bool) -> None:
    rows, seen = examples(12), []
    args = TrainingArguments(
        str(tmp_path), max_steps=2, remove_unused_columns=False, report_to="none", save_strategy="no"
    )
    model = make("vit")
    common: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "eval_dataset": rows}
    common |= {"data_collator": IMAGE.collator(PROCESSOR), "train_collator": augmenter(flip=0.5, mixup=0.5)}
    made = HFCompressTrainer(**common, recipe=[DistillConfig()]) if teacher else PlainTrainer(**common)
    model.register_forward_pre_hook(lambda m, a, k: seen.append((m.training, k["pixel_values"], k)), with_kwargs=True)
    before = copy.deepcopy(model.state_dict())
    made.train()
    plain = IMAGE.collator(PROCESSOR)(rows)["pixel_values"]
    trained, probed = [x for training, x, _ in seen if training], len(seen)  # distillation tries both models first
    made.evaluate()
    evaluated = [x for _, x, _ in seen[probed:]]
    assert len(trained) == 2 and not any((x == y).all() for batch in trained for x in batch for y in plain)
    assert torch.equal(torch.cat(evaluated), plain)
    assert not any(SOFT_LABELS in kwargs for _, _, kwargs in seen)
    assert model.config.problem_type in (None, "single_label_classification")
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "set one of flip, crop, mixup, cutmix"),
        ({"flip": 1.5}, "flip"),
        ({"crop": {}}, "give one of 'padding'"),
        ({"crop": {"padding": 2, "area": [0.5, 1]}}, "give one of 'padding'"),
        ({"crop": {"area": [1, 0.5]}}, "range of shares"),
        ({"crop": {"area": [0.5, 1], "ratio": [2, 1]}}, "'ratio' is a range"),
    ],
)
def test_mistakes_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Augment(**settings)


def test_text_has_no_images_to_change() -> None:
    with pytest.raises(RecipeError, match=r"data\.augment"):
        get_task("text-classification").training_collator(None, Data(path="x", augment={"flip": 0.5}), 0, 2)


def test_images_decoded_as_they_are_read_get_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_data(Data(path=str(folder_of_images(tmp_path))), IMAGE, 0)
    assert _workers(IMAGE.encode(splits.train, PROCESSOR, Data(path="x"))) == {}
    monkeypatch.setattr(image_classification, "EAGER_BYTES", 0)
    lazy = IMAGE.encode(splits.train, PROCESSOR, Data(path="x"))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert _workers(lazy) == {"dataloader_num_workers": 3, "dataloader_persistent_workers": True}
    assert pickle.loads(pickle.dumps(lazy))[0]["pixel_values"].shape == (3, 16, 16)
    asked = []

    def loader(*given: Any, **named: Any) -> Any:
        asked.append(named["num_workers"])
        return torch.utils.data.DataLoader(*given, **{**named, "num_workers": 0})

    monkeypatch.setattr(data, "DataLoader", loader)
    collate = IMAGE.collator(PROCESSOR)
    assert len(list(data.calibration_batches(lazy, collate, 4, 2, 0))) == 2
    assert write_split(tmp_path / "b", lazy, collate, 5).tolist() == [0, 0, 0, 1, 1, 1]
    assert asked == [3, 3]


def test_many_images_are_read_by_several_processes_to_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def png(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20), (value, 0, 99)).save(buffer, "PNG")
        return buffer.getvalue()

    def encode(images: list[bytes]) -> Dataset:  # in memory, so that no result of before is found in a cache
        rows = {"image": [{"bytes": image, "path": None} for image in images], "label": list(range(len(images)))}
        return IMAGE.encode(IMAGE.check_inputs(Dataset.from_dict(rows), "train"), PROCESSOR, Data(path="x"))

    images = [png(20 * i) for i in range(6)]
    plain, asked, mapped = encode(images), [], Dataset.map
    monkeypatch.setattr(Dataset, "map", lambda *a, **named: asked.append(named.get("num_proc")) or mapped(*a, **named))
    monkeypatch.setattr(image_classification, "PARALLEL", 6)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    several = encode(images)
    assert asked == [2] and several["labels"][:].tolist() == plain["labels"][:].tolist() == list(range(6))
    assert np.array_equal(several["pixel_values"][:], plain["pixel_values"][:])
    with pytest.raises(DataError, match="cannot be decoded"):
        encode([*images[:4], images[4][:-30], images[5]])


def test_the_time_that_training_waits_for_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = examples(12)
    args = TrainingArguments(str(tmp_path), max_steps=3, remove_unused_columns=False, save_strategy="no")
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # in and out of each batch: 1 s of every 2
    waiting = Waiting()
    monkeypatch.setattr("hfcompress.train.batches.time.perf_counter", lambda: next(clock))
    assert waiting.share == 0
    for _ in range(3):
        with waiting:
            pass
    assert waiting.share == 0.5
    monkeypatch.undo()
    trainer = PlainTrainer(make("vit"), args, data_collator=IMAGE.collator(PROCESSOR), train_dataset=rows)
    trainer.train()
    assert 0 < trainer.waiting.share < 1
    said = io.StringIO()
    for share in (0.04, 0.31):
        _tell_waiting(share, "fine-tuning", RunFolder(tmp_path), Reporter(Console(file=said, width=200)))
    assert "waited for its data 31% of the time" in said.getvalue() and "4%" not in said.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["waited_for_data"] for line in lines] == [0.04, 0.31]


# ------------------------------------------------------------------ kinds of data


def picture(mode: str, size: tuple[int, int] = (10, 6)) -> Image.Image:
    return Image.new("RGB", size, (200, 40, 90)).convert(mode)


def folder_of_images(root: Path, splits: tuple[str, ...] = ("train", "test"), mode: str = "RGB") -> Path:
    suffix = "jpg" if mode == "CMYK" else "png"
    for place in splits or ("",):
        for label in ("cat", "dog"):
            (root / place / label).mkdir(parents=True)
            for i in range(3):
                picture(mode).save(root / place / label / f"{i}.{suffix}")
    return root


@pytest.mark.parametrize("splits", [("train", "test"), ()])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA", "1"])
def test_a_folder_of_images(tmp_path: Path, mode: str, splits: tuple[str, ...]) -> None:
    found = load_data(Data(path=str(folder_of_images(tmp_path, splits, mode)), validation_fraction=0.34), IMAGE, 0)
    assert found.label_names == ["cat", "dog"]
    assert len(found.train) + len(found.evaluate) == (12 if splits else 6)
    pixels = IMAGE.encode(found.train, PROCESSOR, Data(path="x"))[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    if mode not in ("L", "LA", "1", "P"):
        assert np.abs(pixels.mean((1, 2)) - (200, 40, 90)).max() < 4


@pytest.mark.parametrize("processor", [PROCESSOR, ViTImageProcessorPil(do_normalize=False)])
def test_stored_batches_are_the_models_bit_by_bit(tmp_path: Path, processor: Any) -> None:
    rows = [{"pixel_values": np.arange(768).reshape(3, 16, 16) % 256, "labels": 1}] * 3
    collate = IMAGE.collator(processor)
    assert write_split(tmp_path / "b", rows, collate, 2).tolist() == [1, 1, 1]  # type: ignore[arg-type]
    read = list(read_batches(tmp_path / "b"))
    for found, examples in zip(read, (rows[:2], rows[2:]), strict=True):
        wanted = collate(examples)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(torch.from_numpy(found[name]), wanted[name]) for name in wanted)
    pixels = torch.tensor(rows[0]["pixel_values"], dtype=torch.float64) / 255
    mean, std = (0.5, 0.5) if processor.do_normalize else (0.0, 1.0)
    assert torch.allclose(torch.from_numpy(read[0]["pixel_values"][0]).double(), (pixels - mean) / std, atol=1e-6)
    assert (tmp_path / "b").stat().st_size < 4 * 768


def encoded(image: Image.Image, processor: Any = PROCESSOR, suffix: str = "PNG") -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    small = io.BytesIO()
    Image.new("L", (30, 20)).save(small, "PNG")
    rows = {"image": [{"bytes": b.getvalue(), "path": None} for b in (buffer, small)], "label": [0, 0]}
    dataset = IMAGE.check_inputs(Dataset.from_dict(rows), "train")
    return np.asarray(IMAGE.encode(dataset, processor, Data(path="x"))[0]["pixel_values"])


def test_grey_of_16_bits_is_not_white() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.array_equal(encoded(Image.fromarray(ramp))[0].ravel(), np.arange(256))
    for mode in ("I", "F"):
        with pytest.raises(DataError, match=rf"32 bits \(mode {mode}\)"):
            encoded(Image.new(mode, (16, 16)), suffix="TIFF")


@pytest.mark.parametrize(
    "changed", [{"do_resize": False}, {"size": {"shortest_edge": 16}, "do_center_crop": False}, {}], ids=str
)
def test_images_of_different_sizes_are_told_and_data_image_size_mends_it(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    kind = BitImageProcessorPil if "do_center_crop" in changed else ViTImageProcessorPil
    nothing = {} if changed else {"do_normalize": False, "size": {"height": 16, "width": 16}}
    kind(**changed, **nothing).save_pretrained(tmp_path)
    if nothing:  # as some checkpoints have it
        said = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | {"image_mean": None, "image_std": None}))
    for channels, config in ((3, make("vit").config), (1, ViTConfig(num_channels=1))):
        processor = IMAGE.load_processor(str(tmp_path), config, Data(path="x"))
        if not nothing:
            with pytest.raises(DataError, match=r"different sizes, such as .* set data\.image_size"):
                encoded(picture("RGB", (64, 20)), processor)
            processor = IMAGE.load_processor(str(tmp_path), config, Data(path="x", image_size=16))
        wanted = channels if nothing else 3
        assert encoded(picture("RGB", (64, 20)), processor).shape == (wanted, 16, 16)


def test_layouts_of_a_folder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture("RGB").save(buffer, "PNG")
    rows = pa.table({"image": [{"bytes": buffer.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]})

    def found(name: str, **settings: Any) -> tuple[list[str] | None, str, int]:
        splits = load_data(Data(path=str(tmp_path / name), validation_fraction=0.34, **settings), IMAGE, 0)
        return splits.label_names, splits.evaluate_split, len(splits.train)

    def tables(place: str, *names: str) -> Path:
        (tmp_path / place).mkdir(parents=True)
        for name in names:
            pq.write_table(rows, tmp_path / place / f"{name}.parquet")
        return tmp_path / place

    tables("snapshot/plain_text", "train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    assert found("snapshot") == (None, "test", 8)
    tables("two/a", "train"), tables("two/b", "train")
    with pytest.raises(DataError, match=r"several data sets \(a, b\): name one"):
        found("two")
    model = tables("model", "train", "validation", "more")
    for name in ("config", "tokenizer", "train"):
        (model / f"{name}.json").write_text('{"a": {"b": [1]}}')
    assert found("model") == (None, "validation", 4)
    assert found("model", splits={"train": "train+more", "evaluate": "validation"})[2] == 8
    stray = folder_of_images(tmp_path / "stray", ())
    (stray / "annotations.csv").write_text("file,x\na,1\n")
    held = "train (held-out 34%)"
    assert found("stray") == (["cat", "dog"], held, 4)
    food = folder_of_images(tmp_path / "food" / "images", ()).parent
    (food / "meta").mkdir()
    for name in ("train.json", "train.txt", "classes.txt"):
        (food / "meta" / name).write_text('{"cat": ["cat/0"]}')
    assert found("food") == (["cat", "dog"], held, 4)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"nor folders of images, nor was it made by save_to_disk, but notes\.txt"):
        found("none")


def test_parquet_with_encoded_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture("RGB").save(buffer, "PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    for split in ("train", "test"):
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    found = load_data(Data(path=str(tmp_path)), IMAGE, 0)
    assert IMAGE.encode(found.train, PROCESSOR, Data(path="x"))[0]["pixel_values"][0, 0, 0] == 200


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white on top as stored
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    for path in tmp_path.glob("train/*/*.png"):
        image.save(path, exif=exif)
    found = load_data(Data(path=str(tmp_path)), IMAGE, 0)
    pixels = IMAGE.encode(found.train, PROCESSOR, Data(path="x"))[0]["pixel_values"]
    assert pixels[0, 0, 0] == 0 and pixels[0, -1, 0] == 255


@pytest.mark.parametrize("lazy", [False, True])
def test_a_broken_image_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: bool) -> None:
    folder_of_images(tmp_path)
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    found = load_data(Data(path=str(tmp_path)), IMAGE, 0)
    if lazy:
        monkeypatch.setattr(image_classification, "EAGER_BYTES", 0)
    where = re.escape(f"file {broken}")
    with pytest.raises(DataError, match=rf"cannot be decoded \({where}\): .*Remove it, or set data\.drop_missing"):
        encoded = IMAGE.encode(found.train, PROCESSOR, Data(path="x"))
        _ = [encoded[i] for i in range(len(encoded))]


# ------------------------------------------------------------------ the card's grid


def shown(folder: Path, compressed: list[int], size: int = 30) -> Examples:
    write_examples(
        folder / EXAMPLES,
        (np.zeros(size, dtype=int), np.array(compressed)),
        np.zeros(size, dtype=int),
        lambda index: f"a very long name of class {index}",
        lambda row: np.full((6, 10 + row % 2, 3), row, dtype=np.uint8),
        seed=3,
    )
    found = read_examples(folder)
    assert found is not None
    for example, tile in zip(found[0].examples, found[1], strict=True):
        assert np.asarray(tile)[tile.height // 2, tile.width // 2].tolist() == [example.row] * 3
    return found[0]


def test_the_grid_is_a_random_sample_and_then_disagreements(tmp_path: Path) -> None:
    found = shown(tmp_path, [int(i >= 10) for i in range(30)])
    assert (len(found.examples), found.disagreements, found.total) == (12, 20, 30)
    assert [e.chosen for e in found.examples] == [False] * 8 + [True] * 4
    assert all(e.baseline != e.compressed for e in found.examples[8:])
    assert len({e.row for e in found.examples}) == 12
    assert caption(found) == (
        "8 of 30 test images, drawn at random, and, framed, 4 of the 20 on which the two models disagree."
    )
    alike = shown(tmp_path, [0] * 30)
    assert len(alike.examples) == 12 and not any(e.chosen for e in alike.examples)
    assert caption(alike) == "12 of 30 test images, drawn at random; the two models disagree on none."
    assert len(shown(tmp_path, [0, 1, 0, 0, 0], 5).examples) == 5


def test_the_grid_is_drawn_alike_and_marks_right_and_wrong_by_sign(tmp_path: Path) -> None:
    shown(tmp_path, [int(i >= 10) for i in range(30)])
    assert write_grid(tmp_path, tmp_path) is not None
    first = (tmp_path / GRID).read_bytes()
    write_grid(tmp_path, tmp_path)
    assert (tmp_path / GRID).read_bytes() == first
    texts = [t.get_text() for axis in draw(*read_examples(tmp_path)).axes for t in axis.texts]  # type: ignore[misc]
    assert len(texts) == 24 and any("✓" in t for t in texts) and any("✗" in t for t in texts)
    assert max(map(len, texts)) <= len("compressed ✗ ") + 16


def test_no_grid_without_examples_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert write_grid(tmp_path, tmp_path) is None and not (tmp_path / GRID).exists()
    (tmp_path / EXAMPLES).write_text("{}")
    with pytest.raises(MeasureError, match="cannot be read"):
        read_examples(tmp_path)

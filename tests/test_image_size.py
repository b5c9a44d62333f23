"""Smaller images: the model answers as it would at that size, and everything after it reads images of that size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from PIL import Image
from test_run import command  # noqa: F401 - a fixture
from tiny import auto_class, logits, make, processor
from transformers import AutoImageProcessor, AutoModelForImageClassification, BitImageProcessorPil

from hfcompress import DistillConfig, HFCompressTrainer, ImageSizeConfig, TokenMergingConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, RecipeError, TargetError
from hfcompress.measure.workloads import Shape
from hfcompress.modules.pixels import as_read, enlarges_to, follow_pixels_, pixels_of
from hfcompress.recipe.load import load_recipe
from hfcompress.run.execute import run_recipe
from hfcompress.run.setup import open_recipe
from hfcompress.train.teacher import Teacher

GRIDS = ("vit", "deit", "dinov2", "dinov2-swiglu")


def pixels(size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("name", GRIDS)
@torch.no_grad()
def test_the_model_answers_as_the_stock_one_at_that_size(name: str, size: int, tmp_path: Path) -> None:
    model, reader = make(name), processor(name)
    asked = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    before = model(pixel_values=pixels(size), **asked).logits
    compress(model, ImageSizeConfig(pixels=size), processor=reader)
    assert torch.allclose(model(pixel_values=pixels(size)).logits, before, atol=1e-6)
    assert reader.size["height"] == reader.size["width"] == size == model.config.image_size
    assert not torch.allclose(logits(model, name, reader), logits(make(name), name), atol=1e-3)
    save_checkpoint(model, tmp_path, reader)
    stock = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert "quantization_config" not in stock.config.to_dict()
    assert torch.allclose(stock(pixel_values=pixels(size)).logits, before, atol=1e-6)
    assert pixels_of(AutoImageProcessor.from_pretrained(tmp_path)) == size


def test_of_a_convolutional_network_only_the_processor_changes(tmp_path: Path) -> None:
    reader = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    for name in ("resnet", "convnext"):
        model, mine = make(name), copy.deepcopy(reader)
        before = copy.deepcopy(model.state_dict())
        compress(model, ImageSizeConfig(pixels=16), processor=mine)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert (mine.size["shortest_edge"], mine.crop_size["height"]) == (20, 16)
    assert model.config.image_size == 16
    with pytest.raises(TargetError, match="too small for a ConvNextForImageClassification"):
        compress(make("convnext"), ImageSizeConfig(pixels=2), processor=copy.deepcopy(reader))


def test_what_cannot_be_fitted_is_refused_with_the_reason() -> None:
    reader = processor("vit")
    for name in ("beit", "swin"):
        with pytest.raises(TargetError, match="table of the places two patches can lie apart"):
            compress(make(name), ImageSizeConfig(pixels=8), processor=reader)
    with pytest.raises(TargetError, match="not a multiple of the model's patch, 4x4"):
        compress(make("vit"), ImageSizeConfig(pixels=10), processor=reader)
    with pytest.raises(TargetError, match="16 pixels per side already"):
        compress(make("vit"), ImageSizeConfig(pixels=16), processor=reader)
    for missing in (None, processor("bert")):
        with pytest.raises(LifecycleError, match="pass processor="):
            compress(make("vit"), ImageSizeConfig(pixels=8), processor=missing)
    with pytest.raises(LifecycleError, match="stage of its own"):
        compress(make("vit"), [ImageSizeConfig(pixels=8), TokenMergingConfig(remove=1)], processor=reader)
    with pytest.raises(LifecycleError, match="changes the tokenizer or image processor"):
        HFCompressTrainer(make("vit"), recipe=[ImageSizeConfig(pixels=8), DistillConfig()], processing_class=reader)
    assert pixels_of(reader) == 16


@torch.no_grad()
def test_a_teacher_sees_them_enlarged() -> None:
    model, before, after = make("vit"), processor("vit"), processor("vit")
    after.size = {"height": 8, "width": 8}
    last = copy.deepcopy(after)
    last.size = {"height": 4, "width": 4}
    assert not follow_pixels_(model, before, before) and enlarges_to(model) is None
    assert follow_pixels_(model, before, after) and follow_pixels_(model, after, last)
    assert enlarges_to(copy.deepcopy(model)) == 16  # its own, not that of the stage before
    seen = as_read(model, {"pixel_values": pixels(4)})["pixel_values"]
    assert seen.shape == (2, 3, 16, 16)
    assert torch.allclose(Teacher(model)({"pixel_values": pixels(4)}).logits, model(pixel_values=seen).logits)
    flat = torch.full((1, 3, 4, 4), 0.7)
    assert torch.allclose(as_read(model, {"pixel_values": flat})["pixel_values"], torch.tensor(0.7))
    assert not follow_pixels_(make("bert"), processor("bert"), processor("bert"))


def image_project(folder: Path, **recipe: Any) -> Path:
    """Write a tiny ViT, images in two colours, and a recipe whose second stage distils what the first made smaller."""
    save_checkpoint(make("vit"), folder / "base", processor("vit"))
    for split, count in (("train", 8), ("test", 4)):
        for index, label in enumerate(("blue", "green", "red")):
            (folder / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                colour = [20 * i, 20 * i, 20 * i]
                colour[2 - index] = 230
                Image.new("RGB", (20, 20), tuple(colour)).save(folder / "data" / split / label / f"{i}.png")
    values = {
        "model": str(folder / "base"),
        "task": "image-classification",
        "data": {"path": str(folder / "data"), "image_size": 16, "labels": {"blue": 0, "green": 1, "red": 2}},
        "evaluate": {"allow_trivial": True},  # the model knows nothing
        "stages": [
            {"methods": {"image_size": {"pixels": 8}}},
            {"methods": {"distill": {}}, "train": {"max_steps": 3, "per_device_train_batch_size": 8}},
        ],
        "teacher_cache": True,
        "benchmark": {"engines": ["pytorch"], "shapes": [{"batch": 2}], "seconds": 0.05, "rounds": 1},
        **recipe,
    }
    values["data"] = {"allow_leakage": True, **values["data"]}  # few examples, many times
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_run_reads_measures_and_times_each_model_at_its_own_size(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "cache"))
    result = run_recipe(load_recipe(image_project(tmp_path)), tmp_path / "out")
    small, large = result.compressed, result.baseline
    assert (large.image_size, small.image_size) == (16, 8)
    assert small.flops["1ximage"] < 0.5 * large.flops["1ximage"]
    assert [(row.batch, row.image_size) for row in small.latency] == [(2, None)] and result.speedup
    assert result.stages[0].report["image_size"] == {"pixels_before": 16, "pixels_after": 8}
    assert result.loads_with == "transformers"
    model = load_model(tmp_path / "out" / "model", auto_class("vit"))
    assert model(pixel_values=pixels(8)).logits.shape == (2, 3)
    assert "Pixels per side of an image | 16 | 8" in (tmp_path / "out" / "model" / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_shape_that_only_one_of_the_models_takes_is_refused(tmp_path: Path) -> None:
    benchmark = {"engines": ["pytorch"], "shapes": [{"batch": 1, "image_size": 16}]}
    with pytest.raises(RecipeError, match="reads 16 pixels per side, the compressed one 8: leave it out"):
        open_recipe(load_recipe(image_project(tmp_path, benchmark=benchmark)))
    recipe = load_recipe(tmp_path / "recipe.yaml", ["benchmark.shapes=null"])
    assert open_recipe(recipe).shapes == [Shape(1), Shape(16)]


@pytest.mark.slow
def test_export_takes_the_processors_size_unless_told(command: Any, tmp_path: Path) -> None:  # noqa: F811
    save_checkpoint(make("dinov2"), tmp_path / "model", processor("dinov2"))
    reader = AutoImageProcessor.from_pretrained(tmp_path / "model")
    reader.size = {"height": 12, "width": 12}
    reader.save_pretrained(tmp_path / "model")
    for sizes, wanted in ((), 12), (("--image-size", 8), 8):
        out = tmp_path / str(wanted)
        status, _, errors = command("export", tmp_path / "model", "--format", "onnxruntime", "--output", out, *sizes)
        assert status == 0, errors
        (pixels_in,) = onnx.load(out / "onnx" / "model.onnx").graph.input
        assert [d.dim_value for d in pixels_in.type.tensor_type.shape.dim[1:]] == [3, wanted, wanted]
    save_checkpoint(make("bert"), tmp_path / "text")
    status, _, errors = command("export", tmp_path / "text", "--format", "onnxruntime", "--image-size", 8)
    assert status == 2 and "--image-size 8" in errors and "takes no images" in errors


@pytest.mark.slow
def test_a_model_of_one_image_size_is_fitted_to_the_recipes_before_it_is_fine_tuned(tmp_path: Path) -> None:
    train = {"max_steps": 1, "per_device_train_batch_size": 8}
    data = {"path": str(tmp_path / "data"), "image_size": 8, "labels": {"blue": 0, "green": 1, "red": 2}}
    given = {"data": data, "finetune": {"train": train}, "benchmark": None}
    stages = [{"methods": {"distill": {}}, "train": train}]
    path = image_project(tmp_path, **given, stages=stages, student=str(tmp_path / "base"), teacher_cache=False)
    setup = open_recipe(load_recipe(path))
    with torch.no_grad():
        wanted = make("vit")(pixel_values=pixels(8), interpolate_pos_encoding=True, output_hidden_states=True)
        for model in (setup.model, setup.student):
            found = model(pixel_values=pixels(8), output_hidden_states=True)
            assert torch.allclose(found.hidden_states[-1], wanted.hidden_states[-1], atol=1e-6)
            assert model.config.image_size == 8
    one_shot = ["stages=[{methods: {quantize_weights: {}}}]", "student=null"]
    with pytest.raises(RecipeError, match=r"data\.image_size: .* 16 x 16 pixels only, .* gives 8 x 8"):
        open_recipe(load_recipe(path, [*one_shot, "finetune=null"]))
    with pytest.raises(RecipeError, match=r"data\.image_size: image size 10 is not a multiple"):
        open_recipe(load_recipe(path, ["data.image_size=10"]))
    with pytest.raises(RecipeError, match=r"teacher: .* 16 x 16 pixels only"):
        open_recipe(load_recipe(path, [f"teacher={tmp_path / 'base'}"]))
    scratch = open_recipe(load_recipe(path, ["model={model_type: vit, patch_size: 4}", *one_shot]))
    assert scratch.model.config.image_size == scratch.plan.image_size == 8

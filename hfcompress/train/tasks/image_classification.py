"""Image classification: one label for an image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Array3D, Dataset, Features, Image, Value
from transformers import AutoImageProcessor, ViTImageProcessorPil

from ...core.errors import DataError, RecipeError, TargetError
from ...core.position_tables import only_image_size, usual_image_size
from ...modules.pixels import fit_pixels_, pixels_of, require_pixels, resize_
from ...recipe.data import Data
from ...recipe.schema import Shape
from ..augmentation import Augmenter
from .base import Collator, load_pretrained, missing_values, register_task
from .classification import Classification

_DECODER = Image()
EAGER_BYTES = (
    1 << 30
)  # decoded pixels up to this size are kept in memory; beyond it, images are decoded as they are read


@register_task
class ImageClassification(Classification):
    """Image classification with an image processor.

    Images are decoded and resized once and kept as uint8; rescaling and normalizing happen per batch, in the collator.
    """

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    main_input = "pixel_values"
    columns: ClassVar = {"image": ("image", "img"), "label": ("label", "labels")}

    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the image processor, or build one that maps pixels to [-1, 1] at the size of `config`."""
        if source is None:
            half = [0.5] * int(getattr(config, "num_channels", 3))
            pixels = usual_image_size(config)
            size: Any = {"height": pixels, "width": pixels}
            processor = ViTImageProcessorPil(size=size, image_mean=half, image_std=half)
        else:
            processor = load_pretrained(AutoImageProcessor, source, "image processor", revision)
        if data.image_size is not None:
            resize_(processor, data.image_size)
        return processor

    def fit_config_(self, config: Any, processor: Any, given: Mapping[str, Any]) -> None:
        """Let a config from scratch, where the recipe says nothing, be for images of the size the processor gives."""
        pixels = pixels_of(processor)
        if "image_size" not in given and hasattr(config, "image_size") and pixels is not None:
            config.image_size = pixels

    def fit_model_(self, model: Any, encoded: Dataset, key: str, *, trains: bool) -> None:
        """Interpolate the positions of a model that takes one size of images to those it is to be trained on.

        Raises RecipeError where it is not trained, or its patches do not divide them.
        """
        own = only_image_size(model.config)
        height, width = np.shape(encoded[0]["pixel_values"])[-2:]
        if own is None or own == (height, width):
            return
        if not trains or height != width:
            raise RecipeError(
                f"{key}: this {type(model).__name__} takes images of {own[0]} x {own[1]} pixels only, its image "
                f"processor gives {height} x {width}: set data.image_size to {own[0]}, and for smaller images add a "
                "stage that changes the size of images; or `finetune` the model, which fits it to square ones."
            )
        try:
            require_pixels(model, height)
        except TargetError as error:
            raise RecipeError(f"{key}: {error}") from error
        fit_pixels_(model, height)

    def check_inputs(self, dataset: Dataset, split: str) -> Dataset:
        """Return the dataset with `image` decoded on access from files, bytes or {bytes, path}; else DataError."""
        missing_values(dataset, "image", split)
        if isinstance(dataset.features["image"], Image) and dataset.features["image"].decode:
            return dataset
        try:
            return dataset.cast_column("image", Image())
        except (TypeError, ValueError, NotImplementedError) as error:
            found = dataset.features["image"]
            raise DataError(
                f"split {split!r}: column 'image' holds {found}; expected images, their bytes or paths."
            ) from error

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return uint8 `pixel_values` (channels, height, width) and `labels`."""
        dataset = dataset.rename_column("label", "labels").select_columns(["image", "labels"])
        dataset = dataset.cast_column("image", Image(decode=False))  # decoded in `_pixels`, where errors have a message
        pixels = partial(_pixels, processor=processor)
        shape = pixels(dataset[:1])["pixel_values"].shape[1:]
        if len(dataset) * int(np.prod(shape)) > EAGER_BYTES:
            return dataset.with_transform(pixels)
        features = Features(pixel_values=Array3D(shape, "uint8"), labels=Value("int64"))
        options: dict[str, Any] = {"remove_columns": ["image"], "features": features, "desc": "reading images"}
        return dataset.map(pixels, batched=True, batch_size=256, **options).with_format("numpy")

    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return a collator that stacks images and rescales and normalizes them as the processor says."""
        return partial(_collate, scale=_scale(processor), offset=_offset(processor))

    def training_collator(self, processor: Any, data: Data, seed: int, classes: int) -> Collator:
        """Return the collator behind the recipe's augmentation, if there is any."""
        collate = self.collator(processor, data, seed)
        return collate if data.augment is None else Augmenter(data.augment, collate, seed, classes)

    def picture(self, example: Mapping[str, Any]) -> np.ndarray | None:
        """Return the image as the model reads it, before it is normalized."""
        pixels = np.asarray(example["pixel_values"], dtype=np.uint8).transpose(1, 2, 0)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def shapes(self, processor: Any) -> list[Shape]:
        """Return one image and sixteen, at the processor's size."""
        size = pixels_of(processor)
        return [Shape(batch=1, image_size=size), Shape(batch=16, image_size=size)]


def _pixels(batch: dict[str, Any], processor: Any) -> dict[str, Any]:
    mode = "L" if len(processor.image_mean) == 1 else "RGB"
    try:
        images = [_DECODER.decode_example(image).convert(mode) for image in batch["image"]]
    except (OSError, ValueError) as error:
        raise DataError(f"an image of the data set cannot be decoded: {error}") from error
    encoded = processor(images, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
    return {"pixel_values": np.clip(np.rint(np.asarray(encoded)), 0, 255).astype(np.uint8), "labels": batch["labels"]}


def _scale(processor: Any) -> torch.Tensor:
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    std = torch.tensor(processor.image_std if processor.do_normalize else [1.0], dtype=torch.float64)
    return (factor / std).view(-1, 1, 1).float()


def _offset(processor: Any) -> torch.Tensor:
    if not processor.do_normalize:
        return torch.zeros(1, 1, 1)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_mean, processor.image_std))
    return (mean / std).view(-1, 1, 1).float()


def _collate(examples: list[dict[str, Any]], scale: torch.Tensor, offset: torch.Tensor) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(np.stack([example["pixel_values"] for example in examples]).astype(np.float32))
    return {
        "pixel_values": pixels.mul_(scale).sub_(offset),
        "labels": torch.tensor([int(e["labels"]) for e in examples]),
    }

"""Image classification: one label for an image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Array3D, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoImageProcessor, ViTImageProcessorPil

from ...core.errors import DataError, RecipeError, RowError, TargetError
from ...core.position_tables import only_image_size, usual_image_size
from ...modules.pixels import fit_pixels_, pixels_of, require_pixels, resize_
from ...ops.scaled import Scaled, scaled
from ...recipe.data import Data
from ...recipe.shape import Shape
from ..augmentation import Augmenter
from ..example_keys import file_keys, pixel_keys
from .base import Collator, load_pretrained, register_task
from .classification import Classification

_DECODER = Image()
EAGER_BYTES = (
    1 << 30
)  # decoded pixels up to this size are kept in memory; beyond it, images are decoded as they are read

PARALLEL, MOST_PROCESSES = 4000, 8  # from so many images on, several processes read them: to start one takes a second


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
            _make_square_(processor, data.image_size)
        return _with_channels(processor, config)

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
        if isinstance(dataset.features["image"], Image) and dataset.features["image"].decode:
            return dataset
        try:
            return dataset.cast_column("image", Image())
        except (TypeError, ValueError, NotImplementedError) as error:
            found = dataset.features["image"]
            raise DataError(
                f"split {split!r}: column 'image' holds {found}; expected images, their bytes or paths."
            ) from error

    def unreadable(self, dataset: Dataset) -> np.ndarray:
        """Return which images cannot be decoded, (rows,) of bool."""
        stored = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES)) as pool:
            return np.array([bad for rows in stored.iter(256) for bad in pool.map(_is_unreadable, rows["image"])], bool)

    def keys(self, splits: Sequence[tuple[Dataset, Dataset]]) -> tuple[list[np.ndarray], str]:
        """Return hashes of the images as the model reads them, or of their files where they are not kept decoded."""
        if any(encoded.format["type"] == "custom" for _, encoded in splits):
            return [file_keys(dataset) for dataset, _ in splits], "files of images"
        return [pixel_keys(encoded) for _, encoded in splits], "images, by the pixels a model reads"

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return uint8 `pixel_values` (channels, height, width) and `labels`."""
        dataset = dataset.rename_column("label", "labels").select_columns(["image", "labels"])
        dataset = dataset.cast_column("image", Image(decode=False))  # decoded in `_pixels`, where errors have a message
        pixels = partial(_pixels, processor=processor)
        shape = pixels(dataset[:1])["pixel_values"].shape[1:]
        pixels = partial(pixels, shape=shape)
        if len(dataset) * int(np.prod(shape)) > EAGER_BYTES:
            return dataset.with_transform(pixels)
        features = Features(pixel_values=Array3D(shape, "uint8"), labels=Value("int64"))
        options: dict[str, Any] = {"remove_columns": ["image"], "features": features, "desc": "reading images",
                                   "with_indices": True}  # fmt: skip
        if len(dataset) >= PARALLEL and (cores := os.cpu_count() or 1) > 1:
            options["num_proc"] = min(cores, MOST_PROCESSES)
        return dataset.map(pixels, batched=True, batch_size=256, **options).with_format("numpy")

    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return a collator that stacks images and rescales and normalizes them as the processor says."""
        return PixelCollator(processor)

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


def _pixels(
    batch: dict[str, Any], rows: Sequence[int] = (), *, processor: Any, shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Return images as the processor leaves them before it rescales; DataError when one is not of `shape`.

    `rows`: their places in the split, where they are known; the RowError of one that is broken has it.
    """
    mode = "L" if len(processor.image_mean or "RGB") == 1 else "RGB"
    images = [_decoded(image, row, mode) for image, row in zip_longest(batch["image"], rows)]
    encoded = [np.asarray(i) for i in processor(images, do_rescale=False, do_normalize=False)["pixel_values"]]
    shape = shape or encoded[0].shape
    if other := next((image.shape for image in encoded if image.shape != shape), None):
        sizes = " and ".join(f"{height} x {width}" for _, height, width in (shape, other))
        raise DataError(
            f"the image processor leaves images of different sizes, such as {sizes} pixels: set data.image_size, then "
            "it gives squares of so many pixels per side"
        )
    return {"pixel_values": np.clip(np.rint(np.stack(encoded)), 0, 255).astype(np.uint8), "labels": batch["labels"]}


def _decoded(image: Mapping[str, Any], row: int | None, mode: str) -> PILImage.Image:
    try:
        return _in_8_bits(_DECODER.decode_example(image)).convert(mode)
    except (OSError, ValueError) as error:
        where = f" (file {path})" if (path := image.get("path")) else ""
        message = (
            f"an image of the data set cannot be decoded{where}: {error}. Remove it, or set data.drop_missing: true to "
            "leave out every image that cannot be."
        )
        raise (DataError(message) if row is None else RowError(message, row)) from error


def _is_unreadable(image: Mapping[str, Any]) -> bool:
    try:
        _decoded(image, None, "RGB")
    except DataError:
        return True
    return False


def _make_square_(processor: Any, pixels: int) -> None:
    """Let the processor give images of so many pixels a side, also where it left them as they were or only scaled."""
    processor.do_resize = True
    resize_(processor, pixels)
    crops = getattr(processor, "crop_pct", None) is not None  # to squares, on its own
    if not processor.size.get("height") and not crops and hasattr(processor, "do_center_crop"):
        processor.do_center_crop, processor.crop_size = True, {"height": pixels, "width": pixels}


def _with_channels(processor: Any, config: Any) -> Any:
    """Spell mean and standard deviation out, one for each channel, where a processor that needs none names none."""
    for name, nothing in (("image_mean", 0.0), ("image_std", 1.0)):
        value = getattr(processor, name, None)
        if value is None and processor.do_normalize:
            raise RecipeError(f"processor: it normalizes images (do_normalize) and has no {name}")
        if value is None or isinstance(value, int | float):
            setattr(processor, name, [nothing if value is None else value] * int(getattr(config, "num_channels", 3)))
    return processor


def _in_8_bits(image: PILImage.Image) -> PILImage.Image:
    """Return an image of 16 bits in 8, which `convert` would cut off at white; DataError where the range is unknown."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # a PNG has no more than 16
        return PILImage.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"an image of the data set has pixels of 32 bits (mode {image.mode}), and nothing says which is white: "
            "save it with 8 or 16"
        )
    return image


class PixelCollator:
    """Stacks images and rescales and normalizes them as their processor says."""

    def __init__(self, processor: Any) -> None:
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        mean, std = (np.reshape(np.asarray(v, dtype=np.float64), (-1, 1, 1)) for v in (mean, std))
        self.scale, self.offset = (factor / std).astype(np.float32), (mean / std).astype(np.float32)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch for a model."""
        pixels = np.stack([example["pixel_values"] for example in examples])
        return {
            "pixel_values": torch.from_numpy(scaled(pixels, self.scale, self.offset)),
            "labels": torch.from_numpy(_labels(examples)),
        }

    def stored(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the same batch in a quarter of the bytes."""
        pixels = np.stack([example["pixel_values"] for example in examples]).astype(np.uint8)
        return {"pixel_values": Scaled(pixels, self.scale, self.offset), "labels": _labels(examples)}


def _labels(examples: list[dict[str, Any]]) -> np.ndarray:
    return np.array([int(example["labels"]) for example in examples], dtype=np.int64)

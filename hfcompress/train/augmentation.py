"""Changing training images at random, a batch at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.images import blended, boxes_of, flip, pasted, resized_boxes, shift
from ..ops.reductions import IGNORED
from ..recipe.data import Augment, Crop
from .batches import SOFT_LABELS

VIEW = "view"  # name of the column that says which of its forms an example takes


class Augmenter:
    """A collator of training images: changes the pixels of examples as `augment` says, then hands them to `collate`.

    The draws follow from the seed and the batch's examples alone: new in every epoch, whose batches are others, and yet
    the same in a resumed run, in any process and however far ahead batches are loaded. With `augment.views`, only which
    of its forms an example takes is drawn so; the forms follow from the image, whatever the seed.

    `classes` is how many the model's head has, for labels that are mixed with the images.
    """

    def __init__(self, augment: Augment, collate: Any, seed: int, classes: int) -> None:
        self.augment, self.collate, self.seed, self.classes = augment, collate, seed, classes
        self.views = augment.views or None

    @property
    def random_inputs(self) -> str | None:
        """Why a batch's images are never seen again, in words, or None when there are so many forms of each."""
        return None if self.views else "the images are augmented anew each time (`views` in data.augment would help)"

    @property
    def forms(self) -> dict[str, Any]:
        """What decides the forms of an image beside itself."""
        return self.augment.model_dump(mode="json", exclude={"views"})

    def draw(self, examples: Sequence[Mapping[str, Any]]) -> list[int]:
        """Draw which of its forms each example takes."""
        generator = _generator(self.seed, _images(examples))
        return torch.randint(self.views or 1, (len(examples),), generator=generator).tolist()

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the batch of the examples with their images changed, into the form that their column VIEW says."""
        images = _images(examples)
        generator = _generator(self.seed, images)
        if self.views:
            views = [e[VIEW] for e in examples] if VIEW in examples[0] else self.draw(examples)
            pairs = zip(images.split(1), views, strict=True)
            images = torch.cat([changed(image, self.augment, _generator(VIEW, view, image)) for image, view in pairs])
        else:
            images = changed(images, self.augment, generator)
        plain = ({k: v for k, v in e.items() if k != VIEW} for e in examples)
        batch = self.collate([{**e, "pixel_values": i.numpy()} for e, i in zip(plain, images, strict=True)])
        return mixed(batch, self.augment, generator, self.classes)


def changed(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Return images (batch, channels, height, width) mirrored and cropped at random."""
    count = len(images)
    if augment.flip:
        images = flip(images, torch.rand(count, generator=generator) < augment.flip)
    if augment.crop is not None and augment.crop.padding:
        most = 2 * augment.crop.padding + 1
        down, right = (torch.randint(most, (count,), generator=generator) for _ in range(2))
        images = shift(images, down, right, augment.crop.padding)
    elif augment.crop is not None:
        images = resized_boxes(images, _boxes(augment.crop, count, generator))
    return images


def mixed(batch: dict[str, Tensor], augment: Augment, generator: torch.Generator, classes: int) -> dict[str, Tensor]:
    """Return a batch with its images mixed two by two, and in place of `labels` the shares of each, SOFT_LABELS.

    The batch itself where nothing is to be mixed.
    """
    ways = [(name, alpha) for name, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha]
    if not ways:
        return batch
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    name, alpha = ways[rng.integers(len(ways))]
    share, images = float(rng.beta(alpha, alpha)), batch["pixel_values"]
    if name == "mixup":
        images = blended(images, share)
    else:
        images, share = pasted(images, share, *rng.random(2))
    labels = batch["labels"]
    shares = F.one_hot(labels.clamp(min=0), classes) * (labels != IGNORED)[:, None]
    others = {key: value for key, value in batch.items() if key != "labels"}
    return {**others, "pixel_values": images, SOFT_LABELS: blended(shares.float(), share)}


def _boxes(crop: Crop, count: int, generator: torch.Generator) -> Tensor:
    """Draw boxes: areas evenly, ratios evenly on a logarithmic scale (Szegedy 2015, section 6)."""
    area, ratio, down, right = torch.rand(4, count, generator=generator)
    low, high = crop.area
    narrow, wide = (math.log(r) for r in crop.ratio)
    return boxes_of(low + (high - low) * area, (narrow + (wide - narrow) * ratio).exp(), down, right)


def _images(examples: Sequence[Mapping[str, Any]]) -> Tensor:
    # `datasets` gives int64
    return torch.from_numpy(np.stack([example["pixel_values"] for example in examples]).astype(np.uint8))


def _generator(*seeds: Any) -> torch.Generator:
    """Return a generator whose numbers follow from the values and the bytes of the tensors given."""
    digest = hashlib.blake2b(digest_size=7)
    for seed in seeds:
        digest.update(seed.numpy().tobytes() if isinstance(seed, Tensor) else str(seed).encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))

"""Changes to batches of images, (batch, channels, height, width), one draw of numbers for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Return the images with those where `which` (batch,) is True mirrored left to right."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """Return windows of the images' own size out of images with `padding` black pixels on every side.

    down, right: (batch,) whole numbers from 0 to twice the padding; the padding itself leaves an image as it is.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    rows = (down[:, None] + torch.arange(height)).view(count, 1, height, 1)
    columns = (right[:, None] + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(images.shape[1]).view(1, -1, 1, 1), rows, columns]


def resized_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Return the part of each image in its box, enlarged to the whole image's size (bilinear), in float32.

    boxes: (batch, 4) of top, left, height and width as shares of the image, inside it.
    """
    top, left, height, width = boxes.float().unbind(1)
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def boxes_of(area: Tensor, ratio: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return boxes (batch, 4) for `resized_boxes`, of such areas and width-to-height ratios, cut at the image's sides.

    area: shares of the image; down, right: where in the room that is left, 0 to 1. Each is (batch,).
    """
    height, width = ((area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1))
    return torch.stack([down * (1 - height), right * (1 - width), height, width], 1)


def blended(values: Tensor, share: float) -> Tensor:
    """Return `share` of each row and the rest of the row as far from the other end (mixup, Zhang 2018, section 2)."""
    return values * share + values.flip(0) * (1 - share)


def pasted(images: Tensor, share: float, down: float, right: float) -> tuple[Tensor, float]:
    """Return images with a box of about 1 - `share` of the area from the image as far from the other end, and the share
    of its own that each kept (CutMix, Yun 2019, eq. 2).

    down, right: the box's centre, 0 to 1; what lies outside the image is cut off.
    """
    height, width = images.shape[-2:]
    half = (1 - share) ** 0.5 / 2
    top, bottom = (round(min(max(down + s * half, 0), 1) * height) for s in (-1, 1))
    left, end = (round(min(max(right + s * half, 0), 1) * width) for s in (-1, 1))
    mixed = images.clone()
    mixed[..., top:bottom, left:end] = images.flip(0)[..., top:bottom, left:end]
    return mixed, 1 - (bottom - top) * (end - left) / (height * width)

"""Images of fewer pixels: an image processor, its model, and a teacher that goes on seeing images of the old size."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import TargetError
from ..core.families import family_of
from ..core.position_tables import PositionTable, position_table
from .position_rows import configs_of, fit_grid_, grid_rows, rows_of

_ENLARGES = "_hfcompress_enlarges_images_to"


def pixels_of(processor: Any) -> int | None:
    """Return the pixels per side of the images a processor gives; None when it is no image processor."""
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    size = crop or getattr(processor, "size", None) or {}
    side = size.get("height") or size.get("shortest_edge")
    return None if side is None else int(side)


def resize_(processor: Any, pixels: int) -> None:
    """Let an image processor give images of another size, with the same share cropped away."""
    ratio = pixels / (pixels_of(processor) or pixels)
    if processor.size.get("height"):
        processor.size = {side: round(processor.size[side] * ratio) for side in ("height", "width")}
    else:
        processor.size = {"shortest_edge": round(processor.size["shortest_edge"] * ratio)}
    if getattr(processor, "do_center_crop", False):
        processor.crop_size = {"height": pixels, "width": pixels}


def require_pixels(model: nn.Module, pixels: int) -> None:
    """Raise TargetError, with the reason, when the model cannot be fitted to images of so many pixels per side."""
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise TargetError(f"a {type(model).__name__} takes no images")
    family = family_of(model)
    if family.attention is None:
        _try(model, pixels)
    elif (table := position_table(model)) is None:
        raise TargetError(
            f"a {type(model).__name__} is made for one image size: its attention has a table of the places two patches "
            "can lie apart"
            if family.attention.tables
            else f"where a {type(model).__name__} keeps the positions of patches is not known"
        )
    else:
        rows_of(model, table)
        grid_rows(model, pixels, table)


def fit_pixels_(model: nn.Module, pixels: int) -> None:
    """Fit the model to images of so many pixels per side: its positions as it would interpolate them, its config."""
    table: PositionTable | None = position_table(model)
    if table is not None:
        fit_grid_(model, table, pixels)
        return
    for config in configs_of(model):
        if hasattr(config, "image_size"):
            config.image_size = pixels


def follow_pixels_(model: nn.Module, before: Any, after: Any) -> bool:
    """Let a model for the images of processor `before` take those of `after`, enlarged to its own size; say if it must.

    See `as_read`: the model itself is not touched.
    """
    own = pixels_of(before)
    if own is None or own == pixels_of(after):
        return False
    setattr(model, _ENLARGES, enlarges_to(model) or own)  # it may follow more than once
    return True


def enlarges_to(model: nn.Module) -> int | None:
    """Return the pixels per side to which images are enlarged for this model; None: it takes them as they are."""
    return vars(model).get(_ENLARGES)


def as_read(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with `pixel_values` (B, C, H, W) enlarged where the model follows a smaller size, bicubically."""
    size = enlarges_to(model)
    if size is None:
        return dict(inputs)
    return {**inputs, "pixel_values": F.interpolate(inputs["pixel_values"], (size, size), mode="bicubic")}


@torch.no_grad()
def _try(model: nn.Module, pixels: int) -> None:
    """Let a network of any image size see one of this size; TargetError when nothing is left of it on the way."""
    twin: Any = copy.deepcopy(model).to("meta").eval()
    try:
        twin(pixel_values=torch.empty(2, twin.config.num_channels, pixels, pixels, device="meta"))
    except RuntimeError as error:
        raise TargetError(
            f"images of {pixels} pixels per side are too small for a {type(model).__name__}: {error}"
        ) from error

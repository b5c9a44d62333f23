"""The workloads of a benchmark, written out or in short, such as '8x128'."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from ..core.config import EITHER, MAPPING, PLAIN, StrictModel

_SHORT = re.compile(r"\s*([1-9]\d{0,5})\s*[xX×]\s*([1-9]\d{0,5})\s*")
HOW = "write BATCHxLENGTH, such as 8x128 (of images BATCHxPIXELS), or {batch: 8, length: 128}"


class Shape(StrictModel):
    """One workload of the latency benchmark."""

    batch: int = Field(1, ge=1, description="Examples per forward pass.")
    length: int | None = Field(None, ge=1, description="Tokens per text.")
    image_size: int | None = Field(None, ge=1, description="Pixels per side of an image; by default the processor's.")

    @model_validator(mode="after")
    def _one_kind(self) -> Shape:
        if self.length is not None and self.image_size is not None:
            raise ValueError("give 'length' (text) or 'image_size' (images), not both")
        return self


def split_shape(text: str) -> tuple[int, int] | None:
    """Return the batch and the size of a workload such as '8x128'; None for any other text."""
    found = _SHORT.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def _short(value: Any) -> Any:
    if not isinstance(value, str) or split_shape(value) is None:
        raise ValueError(HOW)
    return value.strip()


def _listed(value: Any) -> Any:
    """Refuse what is no list with the form of one."""
    if value is not None and not isinstance(value, list | tuple):
        one = value if isinstance(value, str) and split_shape(value) else "8x128"
        raise ValueError(f"give a list, such as [{one}]")
    return value


_FORM = WithJsonSchema(
    {"type": "string", "pattern": r"^\s*[1-9]\d*\s*[xX×]\s*[1-9]\d*\s*$", "description": "BATCHxLENGTH or BATCHxPIXELS"}
)
GivenShape = Annotated[
    Annotated[str, BeforeValidator(_short), _FORM, PLAIN] | Annotated[Shape, MAPPING],
    EITHER,
]
Shapes = Annotated[Annotated[list[GivenShape], Field(min_length=1)] | None, BeforeValidator(_listed)]


def written_out(given: str | Shape, *, images: bool) -> Shape:
    """Return a workload of a recipe as a Shape: what is short says pixels where the model reads `images`."""
    if isinstance(given, Shape):
        return given
    batch, size = split_shape(given) or (1, 1)
    return Shape(batch=batch, image_size=size) if images else Shape(batch=batch, length=size)

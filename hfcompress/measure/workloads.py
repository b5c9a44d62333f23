"""The shapes a model is timed on, and the inputs every process then uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import MeasureError
from ..core.model_classes import class_of
from ..core.pretrained import from_pretrained
from ..export.inputs import InputSpec, example_inputs, spec_from
from ..export.runtime import Source
from .batches import write_batches
from .onnx_file import read_onnx


@dataclass(frozen=True)
class Shape:
    """One workload: a batch of texts of `length` tokens, or of square images of `image_size` pixels a side.

    With neither, every model gets images of its own size.
    """

    batch: int
    length: int | None = None
    image_size: int | None = None

    def __str__(self) -> str:
        return f"{self.batch}×{self.length or self.image_size or 'image'}"

    @property
    def key(self) -> str:
        """Name in a result, such as '1x32', or '1ximage' where each model has images of its own size."""
        return f"{self.batch}x{self.length or self.image_size or 'image'}"


def checkpoint_spec(source: Source, auto_class: str) -> InputSpec:
    """Return what a checkpoint takes, from its config alone, or an ONNX file, from its graph."""
    if source.is_onnx:
        return read_onnx(Path(source.checkpoint)).spec
    import transformers

    auto_class = source.auto_class or auto_class
    config = from_pretrained(transformers.AutoConfig, source.checkpoint, revision=source.revision or "main")
    return spec_from(config, class_of(auto_class, config))


def common_spec(specs: Sequence[InputSpec]) -> InputSpec:
    """Return what all models can take: one set of inputs, ids within the smallest vocabulary.

    Raises MeasureError when some take text and some images, or some several choices.
    """
    if len({spec.is_image for spec in specs}) > 1:
        raise MeasureError("a text model and an image model cannot be compared on the same inputs")
    if len({spec.choices for spec in specs}) > 1:
        raise MeasureError("a model that reads several choices cannot be compared with one that reads a single text")
    limits = [spec.max_length for spec in specs if spec.max_length]
    return replace(
        max(specs, key=lambda spec: len(spec.names)),
        vocab_size=min(spec.vocab_size for spec in specs),
        token_types=min(spec.token_types for spec in specs),
        max_length=min(limits, default=0),
    )


def write_workloads(
    folder: Path, models: Mapping[str, Source], auto_class: str, shapes: Sequence[Shape], seed: int = 0
) -> dict[str, str]:
    """Write one batch per shape, random and valid, and return the file each model reads.

    That is one for all, unless they have images of different sizes.
    """
    specs = {label: checkpoint_spec(source, auto_class) for label, source in models.items()}
    common = common_spec(list(specs.values()))
    own = any(not (shape.length or shape.image_size) for shape in shapes)
    files: dict[str, str] = {}
    for label, spec in specs.items():
        pixels: Any = (models[label].image_size or spec.image_size) if own else None
        path = folder / f"inputs-{pixels}.safetensors"
        if str(path) not in files.values():
            write_batches(path, _batches(common, shapes, pixels, seed))
        files[label] = str(path)
    return files


def _batches(spec: InputSpec, shapes: Sequence[Shape], pixels: Any, seed: int) -> Iterator[dict[str, Tensor]]:
    for i, shape in enumerate(shapes):
        yield example_inputs(spec, shape.batch, shape.length, shape.image_size or pixels, seed + i)

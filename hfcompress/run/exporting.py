"""`hfcompress export`: a checkpoint in another format, or an engine's file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..core.errors import ExportError, RecipeError, nearest
from ..core.pretrained import from_pretrained
from ..core.scratch import scratch_folder
from ..export.gptq import FORMAT, export_gptq
from ..export.onnx import export_onnx
from ..export.runtime import ENGINES, Source, require_engine
from ..measure.batches import read_batches
from ..measure.exported import digests
from ..recipe.load import LoadedRecipe
from ..train.tasks import tasks
from .calibrating import calibrated
from .inspect import auto_class_of, checkpoint_of, own_pixels, reads_images


def export_checkpoint(
    source: str,
    formats: list[str],
    output: Path | None,
    calibration: LoadedRecipe | None = None,
    image_size: int | None = None,
) -> tuple[list[Path], list[str]]:
    """Write each of `formats` (an engine's name, or a checkpoint format); return what was written and what to know.

    Engines' files go into `output`, by default into the model's folder; a checkpoint format needs a folder of its own.
    An image model's take `image_size` pixels per side, by default as many as the image processor gives.
    """
    known = [FORMAT, *(name for name, engine in ENGINES.items() if engine.file)]
    for name in formats:
        if name not in known:
            raise RecipeError(f"--format {name}: there is no such format.{nearest(name, known)}")
    checkpoint = checkpoint_of(source)
    if FORMAT in formats and (output is None or len(formats) > 1 or output.resolve() == Path(checkpoint).resolve()):
        raise RecipeError(f"--format {FORMAT} makes a checkpoint: ask for it alone, with --output a folder of its own")
    auto_class = auto_class_of(checkpoint)
    if FORMAT in formats and output is not None:
        if output.is_dir() and any(output.iterdir()):
            raise RecipeError(f"--output {output}: the folder is not empty, and a checkpoint would replace it")
        processor = _processor(checkpoint, auto_class)
        messages = [] if processor else ["the model has no tokenizer beside it, so the export has none either"]
        return [output], messages + export_gptq(load_model(checkpoint, auto_class), output, processor)
    for name in formats:
        require_engine(name)
    if image_size and not reads_images(checkpoint, auto_class):
        raise RecipeError(f"--image-size {image_size}: {source} takes no images")
    if output is None and not Path(checkpoint).is_dir():
        raise ExportError(f"{checkpoint} is not a local folder: say where its exports shall go with --output")
    with scratch_folder() as scratch:
        pixels = image_size or own_pixels(checkpoint, auto_class)
        found = calibrated(Source(checkpoint, image_size=pixels), formats, calibration, Path(scratch))
        batches = read_batches(found.calibration) if found.calibration else None
        model = load_model(checkpoint, auto_class)
        target, read = output or checkpoint, digests(found)
        made = export_onnx(model, target, engines=formats, image_size=pixels, calibration=batches, made_of=read)
        return list(made.values()), []


def _processor(checkpoint: str, auto_class: str) -> Any:
    """Return the checkpoint's tokenizer or image processor, or None when it has none."""
    from transformers import AutoConfig

    from ..recipe.data import Data

    task = next((t for t in tasks().values() if t.auto_class == auto_class), None)
    if task is None:
        return None
    try:
        return task.load_processor(checkpoint, from_pretrained(AutoConfig, checkpoint), Data(path=checkpoint))
    except RecipeError:
        return None

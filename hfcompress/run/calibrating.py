"""Training examples for exports that round activations on fixed grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig

from ..core.pretrained import from_pretrained
from ..export.runtime import Source, engine
from ..measure.batches import write_batches
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Benchmark, Recipe
from ..train.data import calibration_batches, load_data
from ..train.tasks import get_task
from ..train.tasks.base import Collator, stored


def write_calibration(path: Path, train: Dataset, collator: Collator, recipe: Recipe) -> None:
    """Store examples of an encoded training split, one to a batch so that none is padded."""
    count = (recipe.benchmark or Benchmark()).calibration
    write_batches(path, calibration_batches(train, stored(collator), count, 1, recipe.seed))


def calibrated(source: Source, engines: Sequence[str], recipe: LoadedRecipe | None, scratch: Path) -> Source:
    """Return the source with training examples of the recipe, as its own processor reads them, if an engine asks."""
    if recipe is None or not any(engine(name).calibrated for name in engines):
        return source
    given, path = recipe.recipe, scratch / "calibration.safetensors"
    task = get_task(given.task)
    data = given.data.model_copy(update={"image_size": source.image_size or given.data.image_size})
    processor = task.load_processor(source.checkpoint, from_pretrained(AutoConfig, source.checkpoint), data)
    train = task.encode(load_data(data, task, given.seed).train, processor, data)
    write_calibration(path, train, task.collator(processor), given)
    return replace(source, calibration=str(path))

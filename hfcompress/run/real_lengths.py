"""Real examples of the evaluation split to time models on, each as that model's own tokenizer or processor reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig

from ..core.errors import RecipeError
from ..core.pretrained import from_pretrained
from ..export.runtime import Source
from ..measure.real import spaced, write_real
from ..recipe.load import LoadedRecipe
from ..train.data import load_data
from ..train.tasks import Task, get_task
from ..train.tasks.base import Collator
from .setup import Setup


def write_split(path: Path, evaluate: Dataset, collator: Collator, count: int, total: int | None = None) -> None:
    """Store `count` examples of an encoded evaluation split, evenly spaced through its first `total` (default: all)."""
    rows = spaced(total or len(evaluate), count)
    write_real(path, (collator([evaluate[row]]) for row in rows))


def real_of_run(setups: Mapping[str, Setup], files: Mapping[str, Path]) -> dict[str, Path]:
    """Store what the recipe's `benchmark.real_lengths` asks for, as each model's setup reads it; nothing without it.

    Both `setups` and `files` are by label; the same file stands for models that read alike. Rows are the same for all,
    also where joined text makes blocks of another number with another tokenizer.
    """
    benchmark = next(iter(setups.values())).recipe.benchmark
    if benchmark is None or benchmark.real_lengths is None:
        return {}
    total = min(len(setup.evaluate) for setup in setups.values())
    for path, setup in {files[label]: setup for label, setup in setups.items()}.items():
        write_split(path, setup.evaluate, setup.collator, benchmark.real_lengths, total)
    return dict(files)


def real_of_models(models: Mapping[str, Source], loaded: LoadedRecipe, count: int, scratch: Path) -> dict[str, Path]:
    """Store `count` examples of a recipe's evaluation split as each model reads them, and return the files by model.

    A model with a tokenizer or image processor beside it reads with that one, another with that of the first model
    that has one, or the recipe's. Raises RecipeError when there is none at all.
    """
    recipe = loaded.recipe
    task = get_task(recipe.task)
    evaluate = load_data(recipe.data, task, recipe.seed).evaluate
    if "label" in task.columns:  # a row is an example; texts that are joined have none of their own
        evaluate = evaluate.select(spaced(len(evaluate), count))
    own = {label: _own_processor(task, source, loaded) for label, source in models.items()}
    first = next((processor for processor in own.values() if processor is not None), None)
    encoded = {}
    for label, processor in own.items():
        reads = processor or first or _named_processor(task, loaded)
        examples = task.encode(evaluate, reads, _data(models[label], loaded))
        encoded[label] = task.for_evaluation(examples, reads, recipe.data), task.collator(reads, recipe.data)
    total = min(len(examples) for examples, _ in encoded.values())
    files = {label: scratch / f"real-{index}.safetensors" for index, label in enumerate(models)}
    for label, (examples, collator) in encoded.items():
        write_split(files[label], examples, collator, count, total)
    return files


def _own_processor(task: Task, source: Source, loaded: LoadedRecipe) -> Any:
    """Return the tokenizer or image processor that lies beside a model, None where there is none."""
    places = [source.checkpoint]
    if source.is_onnx:  # beside the file, or in the folder above, as in a model repository
        places = [str(folder) for folder in list(Path(source.checkpoint).resolve().parents)[:2]]
    for place in places:
        try:
            config = from_pretrained(AutoConfig, place, revision=source.revision or "main")
            return task.load_processor(place, config, _data(source, loaded), source.revision)
        except (RecipeError, OSError, ValueError):
            continue
    return None


def _data(source: Source, loaded: LoadedRecipe) -> Any:
    data = loaded.recipe.data
    return data.model_copy(update={"image_size": source.image_size or data.image_size})


def _named_processor(task: Task, loaded: LoadedRecipe) -> Any:
    """Return the tokenizer or image processor that the recipe names, or that of the model it names."""
    recipe = loaded.recipe
    named = recipe.processor or (recipe.model if isinstance(recipe.model, str) else None)
    if named is None:
        raise RecipeError("processor: neither a model nor the recipe has a tokenizer or image processor; name one.")
    return task.load_processor(named, PreTrainedConfig(), recipe.data, recipe.revision)

"""Opening what a recipe names: data, processor, model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoConfig, set_seed

from ..checkpoint import load_model
from ..core.errors import CheckpointError
from ..core.method import Corpus
from ..export.runtime import require_engine
from ..measure.require import parse_requirement
from ..measure.workloads import Shape
from ..recipe.load import LoadedRecipe
from ..recipe.plan import Plan, make_plan
from ..recipe.schema import Recipe
from ..train.data import Splits, corpus_of, load_data
from ..train.tasks import Task, get_task
from ..train.tasks.base import Collator
from .shapes import shapes_of


@dataclass(frozen=True)
class Setup:
    """A recipe with everything it names opened and checked against each other."""

    loaded: LoadedRecipe
    task: Task
    splits: Splits
    train: Dataset  # encoded
    evaluate: Dataset  # encoded
    processor: Any
    collator: Collator
    model: nn.Module  # as the recipe names it, before any fine-tuning
    plan: Plan
    shapes: list[Shape]  # to time inference at

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def corpus(self) -> Corpus:
        """The training split as methods read it."""
        return corpus_of(lambda: self.train, lambda: self.task.texts(self.splits.train))

    def reading_with(self, processor: Any) -> Setup:
        """Return the same with the data encoded by another processor; itself when that reads alike."""
        if _reads(processor) == _reads(self.processor):
            return self
        train, evaluate = (
            self.task.encode(s, processor, self.recipe.data) for s in (self.splits.train, self.splits.evaluate)
        )
        collator = self.task.collator(processor)
        return replace(self, processor=processor, train=train, evaluate=evaluate, collator=collator)


def open_recipe(loaded: LoadedRecipe) -> Setup:
    """Load data, processor and model and check that they fit; raises a typed error that names what does not."""
    recipe = loaded.recipe
    task = get_task(recipe.task)
    task.metric(recipe.evaluate.metric)
    for name, text in recipe.require.items():
        parse_requirement(name, text)
    for name in recipe.benchmark.engines if recipe.benchmark else ():
        require_engine(name)
    splits = load_data(recipe.data, task, recipe.seed)
    set_seed(recipe.seed)
    model = _open_model(recipe, task, splits)
    source = recipe.processor or (recipe.model if isinstance(recipe.model, str) else None)
    processor = task.load_processor(source, model.config, recipe.data, recipe.revision)
    encoded = functools.cache(lambda: task.encode(splits.train, processor, recipe.data))
    plan = make_plan(
        recipe,
        model,
        recipe_hash=loaded.hash,
        train_examples=len(splits.train),
        evaluate_examples=len(splits.evaluate),
        processor=processor,
        corpus=corpus_of(encoded, lambda: task.texts(splits.train)),
    )
    return Setup(
        loaded=loaded,
        task=task,
        splits=splits,
        train=encoded(),
        evaluate=task.encode(splits.evaluate, processor, recipe.data),
        processor=processor,
        collator=task.collator(processor),
        model=model,
        plan=plan,
        shapes=shapes_of(recipe, task, processor, plan.max_length),
    )


def _reads(processor: Any) -> tuple[Any, ...]:
    """Return what decides how a processor that a method may have changed reads its input."""
    words = processor.get_vocab() if hasattr(processor, "get_vocab") else None
    return words, getattr(processor, "model_max_length", None)


def _open_model(recipe: Recipe, task: Task, splits: Splits) -> nn.Module:
    labels = splits.label_names or [f"LABEL_{i}" for i in range(splits.label_count)]
    if isinstance(recipe.model, dict):
        if recipe.finetune is None:
            raise CheckpointError("a model from scratch knows nothing yet: add `finetune:` to the recipe to train it")
        config = AutoConfig.for_model(**recipe.model, **task.head_config(labels))
        return task.model_class.from_config(config).eval()
    if recipe.finetune is not None:
        head = {**task.head_config(labels), "ignore_mismatched_sizes": True}
        return load_model(recipe.model, task.auto_class, new_head=True, revision=recipe.revision, **head)
    model = load_model(recipe.model, task.auto_class, revision=recipe.revision)
    task.check_labels(model.config, splits.label_names, splits.label_count)
    return model

"""Opening what a recipe names: data, processor, model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoConfig, set_seed

from ..checkpoint import load_model
from ..checkpoint.adapters import Adapter
from ..checkpoint.load import dtype_of
from ..checkpoint.memory import meta_copy
from ..core.errors import CheckpointError, DataError, RecipeError, RowError
from ..core.method import Corpus, Method
from ..core.pretrained import NO_REMOTE_CODE
from ..core.registry import list_methods
from ..core.shares import share
from ..export.runtime import require_any_length, require_engine
from ..measure.require import parse_requirement
from ..measure.workloads import Shape
from ..modules.pixels import pixels_of
from ..recipe.data_report import DataReport
from ..recipe.load import LoadedRecipe
from ..recipe.plan import Plan, make_plan
from ..recipe.schema import Recipe
from ..recipe.shape import written_out
from ..train.corpus import corpus_of
from ..train.data import Splits, load_data
from ..train.overlap import data_report
from ..train.rows import HOW
from ..train.tasks import Task, get_task, metric_key
from ..train.tasks.base import Collator
from ..train.teacher import processor_difference
from .adapters import adapters_of, processor_place
from .classes import classes_to_train, require_same_classes, require_same_order
from .shapes import shapes_of

MOST_UNKNOWN = 0.2  # share of tokens that the tokenizer does not know, above which a model reads other text


@dataclass(frozen=True)
class Setup:
    """A recipe with everything it names opened and checked against each other."""

    loaded: LoadedRecipe
    task: Task
    splits: Splits
    train: Dataset  # encoded
    mixed: Dataset  # the same, followed by inputs without labels if the recipe names any
    evaluate: Dataset  # encoded
    processor: Any
    collator: Collator
    training_collator: Collator  # the same, with the recipe's augmentation
    model: nn.Module  # as the recipe names it, before any fine-tuning
    plan: Plan
    shapes: list[Shape]  # to time inference at
    student: nn.Module | None = None  # the checkpoint the recipe names as such
    unknown_tokens: float | None = None  # share of the data's tokens that the tokenizer does not know
    data_report: DataReport = field(default_factory=DataReport)  # rows left out, texts cut, and leakage
    adapters: Mapping[str, Adapter] = field(default_factory=dict)  # merged into their bases, by the recipe's key

    @property
    def makes_baseline(self) -> bool:
        """Whether the baseline is none of the checkpoints named, but is made by the run and kept in its folder."""
        return self.recipe.finetune is not None or "model" in self.adapters

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def metric(self) -> str:
        """The metric the recipe names, or the task's own."""
        return self.recipe.evaluate.metric or self.task.default_metric

    @property
    def corpus(self) -> Corpus:
        """The training split as methods read it."""
        return corpus_of(lambda: self.mixed, lambda: self.task.texts(self.splits.mixed()))

    def train_for(self, methods: Iterable[Method]) -> Dataset:
        """Return what a stage of these methods trains on: inputs without labels only where a teacher labels them."""
        return self.mixed if any(m.needs.teacher for m in methods) else self.train

    def reading_with(self, processor: Any) -> Setup:
        """Return the same with the data encoded by another processor; itself when that reads alike."""
        if _reads(processor) == _reads(self.processor):
            return self
        train, mixed, evaluate = _encode(self.task, self.splits, processor, self.recipe)
        evaluate = self.task.for_evaluation(evaluate, processor, self.recipe.data)
        collators = _collators(self.task, processor, self.recipe, self.model)
        return replace(self, processor=processor, train=train, mixed=mixed, evaluate=evaluate, **collators)


def open_recipe(loaded: LoadedRecipe) -> Setup:
    """Load data, processor and model and check that they fit; raises a typed error that names what does not."""
    recipe = loaded.recipe
    adapters = adapters_of(recipe)
    task = get_task(recipe.task)
    metric = recipe.evaluate.metric or task.default_metric
    task.metric(metric)
    given = recipe.benchmark.shapes if recipe.benchmark else None
    batches = {written_out(shape, images=False).batch for shape in given} if given else None
    for name, text in recipe.require.items():
        parse_requirement(name, text, metric_key(metric), batches)
    for name in recipe.benchmark.engines if recipe.benchmark else ():
        require_engine(name)
        if recipe.benchmark and recipe.benchmark.real_lengths:
            require_any_length(name)
    _require_same_tokens(recipe, task)
    splits = load_data(recipe.data, task, recipe.seed)
    model, processor, splits = _open_model(recipe, task, splits, adapters)
    train, mixed, evaluate = _encode(task, splits, processor, recipe)
    report = data_report(recipe.data, task, splits, {"train": mixed, "evaluate": evaluate}, processor)
    evaluate = task.for_evaluation(evaluate, processor, recipe.data)
    unknown = _unknown_tokens(task, {"train": train, "evaluate": evaluate}, processor, recipe)
    task.check_encoded(model.config, mixed, evaluate)
    trains = recipe.finetune is not None
    task.fit_model_(model, mixed, "data.image_size", trains=trains)
    changed = task.fit_padding_(model, mixed, processor, "model", trains=trains)
    student = _open_student(recipe, task, model, processor)
    teacher, looked = _look_at_teacher(recipe, task, model, processor, splits, mixed)
    if student is not None:
        task.fit_model_(student, mixed, "student", trains=True)
        changed += task.fit_padding_(student, mixed, processor, "student", trains=True)
    if teacher is not None:
        task.fit_model_(teacher, mixed, "teacher", trains=False)
    plan = make_plan(
        recipe,
        model,
        student=student,
        teacher=teacher,
        recipe_hash=loaded.hash,
        train_examples=len(train),
        evaluate_examples=len(evaluate),
        unlabelled_examples=len(mixed) - len(train),
        processor=processor,
        corpus=corpus_of(lambda: mixed, lambda: task.texts(splits.mixed())),
        notes=[*report.sentences(), *_notes(splits, unknown), *changed, *looked],
    )
    return Setup(
        loaded=loaded,
        task=task,
        splits=splits,
        train=train,
        mixed=mixed,
        evaluate=evaluate,
        processor=processor,
        **_collators(task, processor, recipe, model),
        model=model,
        plan=plan,
        student=student,
        adapters=adapters,
        shapes=shapes_of(recipe, task, processor, plan),
        unknown_tokens=unknown,
        data_report=report,
    )


def _notes(splits: Splits, unknown: float | None) -> list[str]:
    """Return what is to be known of the data as the model gets it."""
    notes = [] if splits.label_map is None else splits.label_map.lines()
    return notes if unknown is None else [*notes, f"Tokens that the tokenizer does not know: {share(unknown, 2)}."]


def _unknown_tokens(task: Task, encoded: dict[str, Dataset], processor: Any, recipe: Recipe) -> float | None:
    """Return the larger share of unknown tokens of the splits; DataError where it is too large to go on."""
    shares = {name: task.unknown_share(split, processor) for name, split in encoded.items()}
    for name, part in shares.items():
        if part is not None and part > MOST_UNKNOWN and not recipe.data.allow_unknown_tokens:
            raise DataError(
                f"split {name!r}: {part:.0%} of the tokens are unknown to the tokenizer, so the model cannot read "
                "this text. Name the tokenizer it was made for as 'processor'; to go on all the same, set "
                "data.allow_unknown_tokens: true."
            )
    return max((part for part in shares.values() if part is not None), default=None)


def _require_same_tokens(recipe: Recipe, task: Task) -> None:
    """Raise RecipeError where a metric counts tokens and a method changes which a text has: no two models compare."""
    for index, stage in enumerate(recipe.stages if task.counted == "tokens" else ()):
        for name in stage.methods:
            if list_methods()[name].info.retokenizes:
                raise RecipeError(
                    f"stages.{index}.methods.{name}: it gives text other tokens, and {recipe.task} is measured token "
                    "by token: original and result would be asked different things. Use it in a script, by "
                    "compress(), and measure there what does not depend on tokens"
                )


def _encode(task: Task, splits: Splits, processor: Any, recipe: Recipe) -> tuple[Dataset, Dataset, Dataset]:
    """Return what has labels to train on, the same with what has none, and what to measure on, as model inputs."""
    mixed, evaluate = (_encoded(name, splits, task, processor, recipe) for name in ("train", "evaluate"))
    labelled = mixed if splits.unlabelled is None else mixed.select(range(len(splits.train)))
    return labelled, mixed, evaluate


def _encoded(name: str, splits: Splits, task: Task, processor: Any, recipe: Recipe) -> Dataset:
    try:
        return task.encode(splits.mixed() if name == "train" else splits.evaluate, processor, recipe.data)
    except RowError as error:
        raise DataError(f"split {name!r}, {splits.called(name, error.row)} ({HOW}): {error}") from error
    except DataError as error:
        raise DataError(f"split {name!r}: {error}") from error


def _collators(task: Task, processor: Any, recipe: Recipe, model: Any) -> dict[str, Any]:
    """Return what makes batches to measure on, and those to train on."""
    given = processor, recipe.data, recipe.seed
    classes = getattr(model.config, "num_labels", 0)
    return {"collator": task.collator(*given), "training_collator": task.training_collator(*given, classes)}


def _reads(processor: Any) -> tuple[Any, ...]:
    """Return what decides how a processor that a method may have changed reads its input."""
    words = processor.get_vocab() if hasattr(processor, "get_vocab") else None
    return words, getattr(processor, "model_max_length", None), pixels_of(processor)


def _open_model(
    recipe: Recipe, task: Task, splits: Splits, adapters: Mapping[str, Adapter]
) -> tuple[nn.Module, Any, Splits]:
    """Return the model, its tokenizer or image processor, and the splits with the ids of its classes as labels."""
    if recipe.finetune is not None or isinstance(recipe.model, dict):
        splits = splits.numbered_as(classes_to_train(recipe, task, splits))
    head = task.head_config(splits.label_names or [])
    if isinstance(recipe.model, dict):
        return *_from_scratch(recipe, recipe.model, task, head), splits
    set_seed(recipe.seed)
    common: dict[str, Any] = {"revision": recipe.revision, "dtype": recipe.dtype}
    if recipe.finetune is not None:
        model = _load("model", recipe.model, task, new_head=True, **common, **head, ignore_mismatched_sizes=True)
    else:
        model = _load("model", recipe.model, task, **common)
        splits = splits.for_classes(task.classes(model.config), recipe.data)
    source, revision = processor_place(recipe, adapters)
    return model, task.load_processor(source, model.config, recipe.data, revision), splits


def _load(key: str, source: str, task: Task, **options: Any) -> nn.Module:
    """Load what the recipe names under `key`, which a CheckpointError names too; it answers by name from then on."""
    try:
        model: Any = load_model(source, task.auto_class, merge_adapters=True, **options)  # those unwanted are refused
        model.config.return_dict = True
        return model
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def _open_student(recipe: Recipe, task: Task, model: Any, processor: Any) -> nn.Module | None:
    """Return the checkpoint named as student, its head new where it has none for these labels; None without one."""
    if not isinstance(recipe.student, str):
        return None
    labels = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    head = {**task.head_config(labels), "ignore_mismatched_sizes": True}
    set_seed(recipe.seed)
    require_same_order("student", recipe.student, task, model.config)
    student = _load("student", recipe.student, task, new_head=True, dtype=recipe.dtype, **head)
    _require_same_processor(recipe, task, recipe.student, student.config, processor, "student")
    return student


def _look_at_teacher(
    recipe: Recipe, task: Task, model: Any, processor: Any, splits: Splits, encoded: Dataset
) -> tuple[nn.Module | None, list[str]]:
    """Return the shapes of the teacher the recipe names, once it is known to read and answer as the model does.

    With it comes what could not be known of it, in words.
    """
    if recipe.teacher is None:
        return None, []
    teacher = _load("teacher", recipe.teacher, task, dtype=recipe.dtype)
    _require_same_processor(recipe, task, recipe.teacher, teacher.config, processor, "teacher")
    notes = require_same_classes(task.classes(teacher.config), task.classes(model.config), splits)
    task.fit_padding_(teacher, encoded, processor, "teacher", trains=False)
    return meta_copy(teacher), notes


def _require_same_processor(recipe: Recipe, task: Task, source: str, config: Any, processor: Any, whose: str) -> None:
    """Raise RecipeError that shows how the checkpoint `source` reads its inputs in another way, if it says how."""
    try:
        own = task.load_processor(source, config, recipe.data)
    except RecipeError:
        return
    if difference := processor_difference(own, processor):
        raise RecipeError(
            f"{whose}: {source} was made for other inputs than the model: {difference}. Choose one of the same "
            "tokenizer or image processor."
        )


def _from_scratch(recipe: Recipe, given: dict[str, Any], task: Task, head: dict[str, Any]) -> tuple[nn.Module, Any]:
    if recipe.finetune is None:
        raise CheckpointError("a model from scratch knows nothing yet: add `finetune:` to the recipe to train it")
    config = AutoConfig.for_model(**given, **head)
    processor = task.load_processor(recipe.processor, config, recipe.data, recipe.revision)
    task.fit_config_(config, processor, given)
    set_seed(recipe.seed)
    dtype = "float32" if recipe.dtype == "auto" else recipe.dtype
    return task.model_class.from_config(config, dtype=dtype_of(dtype), **NO_REMOTE_CODE).eval(), processor

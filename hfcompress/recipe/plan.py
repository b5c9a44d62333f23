"""The plan: a recipe checked against one model, with what each stage would do and leave, before anything trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import nn

from ..checkpoint import attach_structure_, refuse_untrainable
from ..checkpoint.memory import is_large, meta_copy, weight_bytes
from ..core.config import StrictModel
from ..core.errors import LifecycleError
from ..core.lifecycle import Lifecycle
from ..core.method import Corpus
from ..core.position_tables import longest_input
from ..core.registry import create
from ..core.student import StudentConfig
from ..modules.counting import count
from ..modules.coverage import acts_on_weights, left_alone, weights_of
from ..modules.pixels import pixels_of
from ..modules.student import derive_student_
from .schema import Recipe, Stage

_DEFAULT_EPOCHS, _DEFAULT_BATCH = 3.0, 8
SELECTION_SHARE = 0.1  # of the labelled training examples, held out where a stage evaluates


class PlannedMethod(StrictModel):
    """One method of a stage and what it would act on."""

    name: str
    settings: dict[str, Any]
    targets: list[str] = Field(description="Module paths, or names of model outputs; none where they are not known.")
    left: str = Field("", description="The weights it can't act on, with their share of all, in words.")


class PlannedStage(StrictModel):
    """One stage and what it would leave."""

    title: str
    steps: int | None = Field(description="Optimizer steps; None for a one-shot stage.")
    methods: list[PlannedMethod]
    parameters: int | None = Field(description="Numbers the model holds after this stage; None: known only when run.")
    weight_bytes: int | None = Field(
        description="Bytes of all tensors after this stage; the file adds a few kilobytes. None: known only when run."
    )


class PlannedStudent(StrictModel):
    """What the stages act on, where that is not the model itself."""

    origin: list[str] = Field(description="Where each part of its weights comes from, in words.")
    parameters: int
    weight_bytes: int
    stock: bool = Field(description="Whether its config alone describes it, so that it loads without this package.")


class Plan(StrictModel):
    """What a run would do."""

    model: str
    task: str
    train_examples: int
    evaluate_examples: int
    unlabelled_examples: int = 0
    parameters: int
    weight_bytes: int
    max_length: int = Field(0, description="Longest text in tokens that the compressed model takes; 0: no limit.")
    image_size: int | None = Field(None, description="Pixels per side the compressed model reads; None: it reads text.")
    student: PlannedStudent | None = Field(None, description="None: the stages act on the model itself.")
    stages: list[PlannedStage]
    notes: list[str] = Field([], description="What is to be known of data and labels as the model gets them, in words.")
    refuses_trivial: bool = Field(
        True, description="Whether the run ends where the model it starts from is no better than a guess."
    )
    recipe_hash: str


def make_plan(
    recipe: Recipe,
    model: nn.Module,
    *,
    recipe_hash: str,
    train_examples: int,
    evaluate_examples: int,
    unlabelled_examples: int = 0,
    processor: Any = None,
    corpus: Corpus | None = None,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Walk through the stages on a copy of `model`, at full strength and without training.

    What a method would learn to keep is not known yet, how much of it is: counts and bytes are those of the run, up to
    rounding per layer. Of a large model (see `is_large`) only the shapes are copied: what a method decides by the
    values of weights is then not known, nor what follows it. Raises what the run would: RecipeError, TargetError,
    FamilyError, LifecycleError.

    student: the checkpoint the recipe names as such. teacher: the one it names, of which shapes are enough. notes: what
    was found when data and model were opened.
    """
    source = student or model
    large = is_large(source)
    scratch = (meta_copy(source) if large else copy.deepcopy(source)).eval()
    planned_student = _plan_student(recipe, scratch)
    processor = copy.deepcopy(processor)
    surroundings = {"teacher": teacher or model, "processor": processor, "corpus": _as_read_by(processor, corpus)}
    stages = _plan_stages(recipe, scratch, surroundings, (train_examples, unlabelled_examples), by_shape=large)
    return Plan(
        model=recipe.model if isinstance(recipe.model, str) else f"{recipe.model['model_type']} from scratch",
        task=recipe.task,
        train_examples=train_examples,
        evaluate_examples=evaluate_examples,
        unlabelled_examples=unlabelled_examples,
        parameters=count(model),
        weight_bytes=weight_bytes(model),
        max_length=longest_input(scratch.config),
        image_size=pixels_of(processor),
        student=planned_student,
        stages=stages,
        notes=list(notes),
        refuses_trivial=not recipe.evaluate.allow_trivial,
        recipe_hash=recipe_hash,
    )


def _as_read_by(processor: Any, corpus: Corpus | None) -> Corpus | None:
    """Return the corpus with images of the size that the processor, as the stages leave it, gives."""
    if corpus is None or pixels_of(processor) is None:
        return corpus

    def size() -> tuple[int, int] | None:
        before, now = corpus.image_size(), pixels_of(processor)
        return (now, now) if before and now and before[0] == before[1] else before

    return replace(corpus, image_size=size)


def _plan_student(recipe: Recipe, scratch: nn.Module) -> PlannedStudent | None:
    """Make `scratch` the student, in place, where the recipe wants one."""
    if recipe.student is None:
        return None
    origin = [f"a checkpoint of its own, {recipe.student}"]
    if isinstance(recipe.student, StudentConfig):
        origin = derive_student_(scratch, recipe.student, seed=recipe.seed)
    structure = attach_structure_(scratch)
    return PlannedStudent(
        origin=origin, parameters=count(scratch), weight_bytes=weight_bytes(scratch), stock=not structure
    )


def _plan_stages(
    recipe: Recipe, scratch: nn.Module, surroundings: dict[str, Any], examples: tuple[int, int], *, by_shape: bool
) -> list[PlannedStage]:
    planned: list[PlannedStage] = []
    for index, stage in enumerate(recipe.stages):
        methods = [create(name, settings, f"stages.{index}.methods") for name, settings in stage.methods.items()]
        known = not planned or planned[-1].parameters is not None
        try:
            if stage.train is not None and not any(m.info.adapts for m in methods):
                refuse_untrainable(scratch)
            lifecycle = Lifecycle(methods, training=stage.train is not None)
            left: dict[str, str] = {}
            targets = _walk(lifecycle, scratch, surroundings, by_shape, left) if known else None
        except LifecycleError as error:
            raise LifecycleError(f"stages.{index} ({stage.title}): {error}") from error
        planned.append(_planned(stage, lifecycle, targets, left, scratch, examples))
    return planned


def _walk(
    lifecycle: Lifecycle, scratch: nn.Module, surroundings: dict[str, Any], by_shape: bool, left: dict[str, str]
) -> dict[str, list[str]] | None:
    """Apply a stage at full strength and return what it acts on; None when that takes values and there are none.

    What a method can't act on is entered in `left`.
    """
    targets: dict[str, list[str]] = {}
    try:
        for part in lifecycle.passes():
            weights = weights_of(scratch)
            found = part.prepare(scratch, **surroundings)
            targets |= found
            names = [method.info.name for method in part.methods if acts_on_weights(method)]
            left |= {name: str(left_alone(scratch, weights, found[name])) for name in names}
            part.assume(scratch)
            part.finalize(scratch)
        attach_structure_(scratch)
    except RuntimeError:  # what torch raises when it is asked for the values of a meta tensor
        if by_shape:
            return None
        raise
    return targets


def _planned(
    stage: Stage,
    lifecycle: Lifecycle,
    targets: dict[str, list[str]] | None,
    left: dict[str, str],
    scratch: nn.Module,
    examples: tuple[int, int],
) -> PlannedStage:
    labelled, unlabelled = examples
    if stage.train and stage.train.get("eval_strategy", "no") != "no":
        labelled -= math.ceil(SELECTION_SHARE * labelled)
    seen = labelled + (unlabelled if lifecycle.needs_teacher else 0)
    return PlannedStage(
        title=stage.title,
        steps=None if stage.train is None else steps(stage.train, seen),
        methods=[
            PlannedMethod(
                name=name,
                settings=settings,
                targets=[] if targets is None else targets[name],
                left=left.get(name, ""),
            )
            for name, settings in lifecycle.settings().items()
        ],
        parameters=None if targets is None else count(scratch),
        weight_bytes=None if targets is None else weight_bytes(scratch),
    )


def steps(train: dict[str, Any], examples: int) -> int:
    """Return the optimizer steps that these TrainingArguments make of `examples` on one process."""
    if train.get("max_steps", -1) > 0:
        return int(train["max_steps"])
    batches = math.ceil(examples / train.get("per_device_train_batch_size", _DEFAULT_BATCH))
    per_epoch = max(1, math.ceil(batches / train.get("gradient_accumulation_steps", 1)))
    return math.ceil(train.get("num_train_epochs", _DEFAULT_EPOCHS) * per_epoch)

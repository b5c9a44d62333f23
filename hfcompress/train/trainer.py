"""HFCompressTrainer: transformers' Trainer with a stage of compression methods acting while it trains."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..checkpoint import attach_structure_, load_model, refuse_untrainable
from ..core.answers import named, tensors_of
from ..core.errors import LifecycleError, TargetError
from ..core.foreign_internals import taken_for_adapted
from ..core.lifecycle import NO_LOSS, Lifecycle, State
from ..core.user_adapters import has_adapters, is_wrapped, merging, refuse_adapters
from ..modules.coverage import weights_of
from ..ops.reductions import IGNORED
from ..recipe.schema import Recipe, TeacherCache
from .batches import SOFT_LABELS
from .cached_teacher import NUMBER
from .caching import TeacherCacheMixin
from .callback import HFCompressCallback, fraction
from .checkpointing import CheckpointMixin
from .compress import run_oneshot
from .corpus import corpus_of
from .covering import coverage, with_coverage
from .forward_check import ForwardCheck, beginning
from .stages import RecipeLike, StageMethods, read_recipe, stages_of
from .tasks import auto_class_for
from .teacher import Teacher, output_flags, require_same_order, require_same_processor


class HFCompressMixin(TeacherCacheMixin, CheckpointMixin):
    """What turns a Trainer class into a compressing one; put it before the class in the list of bases.

    `recipe` is a Recipe, a recipe file, or a list of method configs that act together; one-shot stages before the one
    that trains are applied at once, those after it when training ends. `teacher` is a model, a folder or a Hub id; a
    method that needs one gets a frozen copy of the model itself when none is given. With `teacher_cache` (true, or its
    settings) the teacher runs once on every example and its logits are kept on disk, in $HFCOMPRESS_CACHE or
    ~/.cache/hfcompress. What is not given of these two and of `args`, its seed included, a Recipe says; the model, data
    and measurements it names are not read. `train_collator` makes training batches where augmentation has them differ
    from those that `data_collator` makes. Everything else is the Trainer's.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        recipe: RecipeLike,
        teacher: PreTrainedModel | str | Path | None = None,
        teacher_cache: bool | TeacherCache | None = None,
        **kwargs: Any,
    ) -> None:
        recipe = read_recipe(recipe)
        self._before, self._stage, self._after = _around_training(stages_of(recipe))
        _refuse_new_inputs([*self._before, *self._after])
        _refuse_changed_adapters(model, [*self._before, self._stage, *self._after])
        if isinstance(recipe, Recipe):
            teacher = recipe.teacher if teacher is None else teacher
            teacher_cache = recipe.teacher_cache if teacher_cache is None else teacher_cache
            own = {"output_dir": "trainer_output", "seed": recipe.seed}
            args = TrainingArguments(**{**own, **(self._stage.train or {})}) if args is None else args
        self._teacher_source = teacher
        self._merge_adapters = isinstance(recipe, Recipe) and recipe.merge_adapters
        self._ask_for_cache(teacher_cache or False)
        adapts = any(method.info.adapts for method in self._stage.methods)
        if not adapts:
            refuse_untrainable(model)
        with _adapted(model if adapts else None):
            super().__init__(model, args, *positional, **kwargs)
        self._begin_stage()

    # ------------------------------------------------------------------ the stage

    def _begin_stage(self) -> None:
        """Attach the stage's methods to the model the Trainer holds."""
        self.lifecycle = Lifecycle(self._stage.methods, training=True)
        self.compression_report: dict[str, dict[str, float]] = {}
        self._first_batch: Mapping[str, Any] | None = None  # what the model is run on once more when the stage ends
        self.pop_callback(HFCompressCallback)  # type: ignore[attr-defined]
        self.add_callback(HFCompressCallback(self.lifecycle))  # type: ignore[attr-defined]
        self.teacher = self._make_teacher() if self.lifecycle.needs_teacher else None
        self._forget_cache()
        self._surroundings: dict[str, Any] = {
            "seed": self.args.seed,
            "processor": self.processing_class,  # type: ignore[attr-defined]
            "corpus": corpus_of(lambda: self.train_dataset or ()),
        }
        for stage in self._before:
            run_oneshot(self.model, stage, calibration=self._calibration(stage), **self._surroundings)
        teacher = self.teacher.model if self.teacher else None
        weights = weights_of(self.model)
        self.targets = self.lifecycle.prepare(self.model, teacher=teacher, **self._surroundings)
        self._covered = coverage(self.model, self.lifecycle.methods, weights, self.targets)

    def _make_teacher(self) -> Teacher:
        source = self._teacher_source
        if isinstance(source, str | Path):
            require_same_processor(source, self.processing_class)  # type: ignore[attr-defined]
            loaded = load_teacher(source, self.model, merge_adapters=self._merge_adapters)
            require_same_order(str(source), loaded, self.model)
            return Teacher(loaded, self.args.device)
        if source is None or source is self.model:  # a student that is its own teacher would be frozen
            source = copy.deepcopy(self.model)
        require_same_order(type(source).__name__, source, self.model)
        return Teacher(source, self.args.device)

    def _end_stage(self) -> None:
        """Make the stage permanent in the model the Trainer holds."""
        model = self.plain_model()
        check = ForwardCheck(model, self.lifecycle.methods, self._first_batch)
        self.compression_report = with_coverage(self.lifecycle.finalize(model), self._covered)
        attach_structure_(model)
        check.verify(model, self._stage.title)
        for stage in self._after:
            report = run_oneshot(model, stage, calibration=self._calibration(stage), **self._surroundings)
            self.compression_report |= report
        if hasattr(model, "add_model_tags"):  # a module of one's own has no card
            model.add_model_tags(["hfcompress", *self.compression_report])

    def _calibration(self, stage: StageMethods) -> Iterator[dict[str, Any]]:
        """Yield training batches, as many examples in all as the methods of a one-shot stage read."""
        left, batches = stage.calibration_examples, iter(self.get_calibration_dataloader())
        while (batch := self._shared(next(batches, None))) is not None:
            yield batch
            left -= len(next(iter(batch.values())))
            if left <= 0:
                return

    def _shared(self, batch: Any) -> Any:
        """Return the first process's batch in every process: each has a loader of its own, and all must cut alike."""
        if self.args.world_size == 1:
            return batch
        (batch,) = broadcast_object_list([None if batch is None else send_to_device(batch, "cpu")])
        return None if batch is None else self._prepare_inputs(batch)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ what the Trainer calls

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, then make the methods permanent: the model is the compressed one afterwards."""
        if self.lifecycle.state is State.FINALIZED and self.model_init is None:  # type: ignore[attr-defined]
            raise LifecycleError(
                "this trainer's model is compressed already; to train it further, hand it to a stock Trainer or to a "
                "new HFCompressTrainer"
            )
        output = super().train(*args, **kwargs)
        self._end_stage()
        return output

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build a fresh model as the Trainer does; a stage begun before begins anew with it."""
        model = super().call_model_init(trial)  # type: ignore[misc]
        if hasattr(self, "lifecycle"):
            self.model = model
            self._before, self._stage, self._after = copy.deepcopy((self._before, self._stage, self._after))
            self._begin_stage()
        return model

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the Trainer's loss, and while training what the methods make of it; a mean over the batch."""
        inputs = dict(inputs)
        numbers = inputs.pop(NUMBER, None)
        if self._first_batch is None:
            self._first_batch = beginning({name: value for name, value in inputs.items() if name != SOFT_LABELS})
        if not model.training or self.lifecycle.state is not State.PREPARED:
            return super().compute_loss(model, inputs, return_outputs)
        batch, wants = dict(inputs), self.lifecycle.wants
        loss, outputs = super().compute_loss(model, {**inputs, **output_flags(wants)}, return_outputs=True)
        own = getattr(self, "compute_loss_func", None)
        if isinstance(outputs, torch.Tensor) and own is None:  # its first entry would be the loss
            raise LifecycleError(NO_LOSS)
        answer = named(outputs, batch)
        loss = _counted(loss, batch, answer)
        loss = self.lifecycle.loss(loss, batch, answer, self.taught(batch, numbers, wants))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, the losses of training with what the methods add to them."""
        if "loss" in logs and self.lifecycle.state is State.PREPARED:
            logs = {**logs, **self.lifecycle.log()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, with the parameters of methods moved to groups of their own."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if self.lifecycle.state is State.PREPARED:
            _regroup_(optimizer, self.lifecycle.param_groups(self.plain_model()))
        return optimizer

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # A model that is not yet as small as it will be must not win for being better.
        if self.lifecycle.state is State.PREPARED and not self.lifecycle.settled(fraction(self.state)):  # type: ignore[attr-defined]
            return False
        return super()._determine_best_metric(metrics, trial)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's card, unless the folder has one with measured numbers."""
        readme = Path(str(self.args.output_dir)) / "README.md"
        if not (readme.exists() and "hfcompress" in readme.read_text(encoding="utf-8")):
            super().create_model_card(*args, **kwargs)  # type: ignore[misc]


class HFCompressTrainer(HFCompressMixin, Trainer):
    """`transformers.Trainer` that compresses while it trains; see HFCompressMixin for `recipe` and `teacher`."""


def _counted(loss: torch.Tensor, batch: Mapping[str, Any], outputs: Any) -> torch.Tensor:
    """Return the loss against the labels: zero, not 0/0, for a batch in which no example has one."""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point() or (labels != IGNORED).any():
        return loss
    return next(tensor for tensor in tensors_of(outputs) if tensor.is_floating_point() and tensor.ndim).sum() * 0.0


@contextlib.contextmanager
def _adapted(model: Any) -> Iterator[None]:
    """Tell the Trainer, which refuses a quantized model without adapters, that this one is about to get some."""
    with taken_for_adapted(model) if isinstance(model, PreTrainedModel) else contextlib.nullcontext():
        yield


def load_teacher(source: str | Path, like: nn.Module, *, merge_adapters: bool = False) -> nn.Module:
    """Load a teacher for the task that the model `like` is for, an adapter merged into its base where asked."""
    return load_model(source, auto_class_for(type(like).__name__) or type(like), merge_adapters=merge_adapters)


def _around_training(stages: list[StageMethods]) -> tuple[list[StageMethods], StageMethods, list[StageMethods]]:
    """Return (stages before, the one that trains, stages after)."""
    training = [i for i, stage in enumerate(stages) if stage.train is not None] or ([0] if len(stages) == 1 else [])
    if len(training) != 1:
        raise LifecycleError(
            f"a Trainer runs one stage that trains, this recipe has {len(training)}: `hfcompress run` runs them all, "
            "or give each stage's methods to a Trainer of its own"
        )
    (index,) = training
    return stages[:index], stages[index], stages[index + 1 :]


def _refuse_new_inputs(stages: list[StageMethods]) -> None:
    """Raise LifecycleError for a stage after which the Trainer's data sets would be those of another processor."""
    for stage in stages:
        for method in stage.methods:
            if method.info.needs.processor:
                raise LifecycleError(
                    f"{method.info.name} changes the tokenizer or image processor, and this trainer's data sets are "
                    "read already: call hfcompress.compress(model, …, processor=processor) before reading them, or "
                    "after training"
                )


def _refuse_changed_adapters(model: Any, stages: list[StageMethods]) -> None:
    """Raise TargetError for a model with adapters under stages that change it, or that can't resume with them."""
    if lasting := [method.info.name for stage in stages for method in stage.methods if method.info.lasting]:
        refuse_adapters(model, lasting)
    if has_adapters(model) and not is_wrapped(model):
        raise TargetError(
            "this model's adapters (peft) lie inside it, where training can't be resumed: wrap it instead, model = "
            f"peft.get_peft_model(base_model, config), or merge them: {merging(model)}"
        )


def _regroup_(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Move the parameters of `groups` to groups of their own, which take what they do not set from those they leave."""
    for group in groups:
        own = {id(p) for p in group["params"]}
        for left in list(optimizer.param_groups):
            moved = [p for p in left["params"] if id(p) in own]
            if moved:
                left["params"] = [p for p in left["params"] if id(p) not in own]
                optimizer.add_param_group({**left, **group, "params": moved})
                own -= {id(p) for p in moved}
        if own:  # the optimizer was made before the methods were
            optimizer.add_param_group({**group, "params": [p for p in group["params"] if id(p) in own]})

"""What transformers' Trainer needs to save, resume and pick the best of models whose file differs from memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoint import load_model, share_weights_
from ..checkpoint.training_state import load_training_state_, save_training_state
from ..core.answers import answering_by_name, logits_of, named, tensors_of
from ..core.disk import disk_is_full
from ..core.errors import CheckpointError, LifecycleError, WriteError
from ..core.files import write_text
from ..modules.plain_names import clean_state_dict
from ..modules.seen import labelled_logits, takes_labels
from ..ops.losses import soft_label_cross_entropy
from .batches import SOFT_LABELS, TrainingBatchesMixin


class CheckpointMixin:
    """Corrects four faults of the stock Trainer on checkpoints and gradient accumulation; see the comments."""

    args: TrainingArguments
    model: Any

    # The loss is a mean over each batch: without this the Trainer takes the loss of models that accept **kwargs for
    # one already divided by the number of accumulation steps, and the gradient comes out that many times too large.
    loss_is_scaled_for_ga: bool | None = False

    def plain_model(self, model: Any = None) -> Any:
        """Return the model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model if model is None else model)  # type: ignore[attr-defined]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the Trainer's loss as a mean over the batch, whatever the number of accumulation steps.

        A `compute_loss_func` is therefore told how many labels this batch has. The model answers by name, whatever its
        config says.
        """
        with answering_by_name(self.plain_model(model)):
            return self._mean_loss(model, inputs, return_outputs)

    def _mean_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        labels, smoothing = inputs.get("labels"), self.args.label_smoothing_factor
        own = self.compute_loss_func is not None  # type: ignore[attr-defined]
        bare = not own and not takes_labels(self.plain_model(model))
        if SOFT_LABELS not in inputs and not bare:
            count = self._get_num_items_in_batch([inputs], self.args.device) if own else None  # type: ignore[attr-defined]
            more = {"return_outputs": return_outputs, "num_items_in_batch": count}
            return super().compute_loss(model, inputs, **more)  # type: ignore[misc]
        outputs = model(**{k: v for k, v in inputs.items() if k != SOFT_LABELS and not (bare and k == "labels")})
        answer, taught = named(outputs), getattr(self, "teacher", None) is not None
        if SOFT_LABELS not in inputs and (labels is None or logits_of(answer) is None):
            loss = self._no_loss(answer, taught)
            return (loss, outputs) if return_outputs else loss
        heads = labelled_logits(answer, taught=taught)
        if labels is not None:
            losses = [F.cross_entropy(logits.float(), labels, label_smoothing=smoothing) for logits in heads]
        else:
            shares = inputs[SOFT_LABELS]
            even = shares.sum(1, keepdim=True) / shares.shape[1]
            shares = (1 - smoothing) * shares + smoothing * even
            losses = [soft_label_cross_entropy(logits, shares) for logits in heads]
        loss = torch.stack(losses).mean()
        return (loss, outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, and leave the config as it was.

        A model notes in it what its labels are at the first loss, which a run resumed after the last step never sees.
        """
        config = getattr(self.plain_model(), "config", None)
        before = getattr(config, "problem_type", None)
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if config is not None and getattr(config, "problem_type", None) != before:
                config.problem_type = before

    def _no_loss(self, answer: Mapping[str, Any], taught: bool) -> torch.Tensor:
        """Return zero, the loss of a model without a head that learns from a teacher; LifecycleError without one."""
        if not taught:
            raise LifecycleError(
                f"this model gives no loss, only {', '.join(answer)}: train it with a head, or with a teacher it is "
                "compared with inside"
            )
        return next(tensor for tensor in tensors_of(answer) if tensor.is_floating_point()).sum() * 0.0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint whole, or say why not and leave none that a resumed run would trip over."""
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except Exception as error:
            if not isinstance(error, (OSError, SafetensorError)) and not disk_is_full(error):
                raise
            step = self.state.global_step  # type: ignore[attr-defined]
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
            shutil.rmtree(folder, ignore_errors=True)
            raise WriteError(f"cannot write the checkpoint of step {step}: {error}", folder) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        model = self.plain_model()
        super()._save(str(folder), clean_state_dict(model) if state_dict is None else state_dict)  # type: ignore[misc]
        if not self.args.should_save:
            return
        share_weights_(folder)
        save_training_state(model, folder)
        # The Trainer pickles its arguments beside the weights; the same in JSON can be read without running code.
        (folder / "training_args.bin").unlink(missing_ok=True)
        write_text(folder / "training_args.json", json.dumps(_shareable(self.args), indent=2, default=str) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The Trainer's own loader reads the file's names as they are and silently skips those that a model has in
        # memory under others (ViT and its kin); from_pretrained knows both.
        target = self.plain_model(model)
        if not isinstance(target, PreTrainedModel):  # wrapped for adapters, which are all that was saved
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        if not (Path(resume_from_checkpoint) / TRAINER_STATE_NAME).is_file():  # else two files of shapes that differ
            raise CheckpointError(
                f"{resume_from_checkpoint} is no checkpoint of a training: it has no {TRAINER_STATE_NAME}. Give one of "
                "its folders checkpoint-N; a finished model is where a new training begins, not where one goes on"
            )
        weights = load_model(resume_from_checkpoint, type(target)).state_dict()
        load_training_state_(target, weights, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)  # type: ignore[attr-defined]


class PlainTrainer(TrainingBatchesMixin, CheckpointMixin, Trainer):
    """`transformers.Trainer` with those corrections and no compression: for fine-tuning and the dense control."""


def _shareable(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments without paths of this machine and without tokens."""
    hidden = {"output_dir", "hub_token", "resume_from_checkpoint", "run_name", "logging_dir"}
    return {key: value for key, value in args.to_dict().items() if key not in hidden}

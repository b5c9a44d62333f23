"""Knowledge distillation from a frozen teacher: softened logits and hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core.config import StrictModel
from ..core.errors import LifecycleError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..ops.losses import hidden_mse, soft_cross_entropy
from ..ops.reductions import IGNORED


class DistillConfig(StrictModel):
    """Settings of distillation; the loss is task * L(labels) + logits * L(soft) + hidden * L(hidden states)."""

    temperature: float = Field(2.0, gt=0, description="Softening of both models' logits (Hinton 2015).")
    logits: float = Field(0.9, ge=0, description="Weight of the loss against the teacher's logits.")
    hidden: float = Field(0.0, ge=0, description="Weight of the mean squared error of hidden states.")
    task: float | None = Field(None, ge=0, description="Weight of the loss against the labels; default 1 - logits.")

    @model_validator(mode="after")
    def _teaches_something(self) -> DistillConfig:
        if self.logits == 0 and self.hidden == 0:
            raise ValueError("set logits or hidden above 0; with both at 0 the teacher would not be heard")
        return self


@register
class Distill(Method[DistillConfig]):
    """Trains the student towards the teacher's outputs; leaves nothing behind in the model."""

    info = MethodInfo(
        name="distill",
        title="Knowledge distillation",
        summary="The frozen teacher's softened logits and hidden states join the loss.",
        category=Category.DISTILLATION,
        phase=Phase.COMPANION,
        papers=("https://arxiv.org/abs/1503.02531", "https://arxiv.org/abs/1909.10351"),
        needs=Needs(training=True, teacher=True),
        examples={"logits": {}, "hidden": {"hidden": 1.0}},
    )
    Config = DistillConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Check that teacher and student can be compared, and return the outputs that will be."""
        if ctx.teacher is None:
            raise LifecycleError("distill: there is no teacher")
        _same(model, ctx.teacher, "num_labels", "numbers of labels")
        self._next_token = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        if self._next_token:
            _same(model, ctx.teacher, "vocab_size", "vocabularies")
        if self.config.hidden:
            _same(model, ctx.teacher, "hidden_size", "hidden sizes")
            if getattr(model.config, "is_encoder_decoder", False):
                raise LifecycleError("distill.hidden: an encoder-decoder has two rows of hidden states; set it to 0")
        return ["logits"] * bool(self.config.logits) + ["hidden_states"] * bool(self.config.hidden)

    @property
    def wants(self) -> frozenset[str]:
        """Hidden states are asked for only when they are used."""
        return frozenset({"hidden_states"}) if self.config.hidden else frozenset()

    @property
    def task_weight(self) -> float:
        """Weight of the loss against the labels."""
        return max(0.0, 1.0 - self.config.logits) if self.config.task is None else self.config.task

    def extra_loss(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> torch.Tensor | None:
        """Return the weighted sum of both losses, a mean over the batch, or over its tokens where they have logits."""
        loss = student["logits"].new_zeros(())
        if self.config.logits:
            mask = _counted(batch, student["logits"], self._next_token)
            soft = soft_cross_entropy(student["logits"], teacher["logits"], self.config.temperature, mask)
            loss = loss + self.config.logits * soft
        if self.config.hidden:
            loss = loss + self.config.hidden * _hidden_loss(batch, student, teacher)
        return loss

    def finalize(self, model: nn.Module) -> None:
        """Nothing stays in the model."""


def _counted(batch: Mapping[str, Any], logits: torch.Tensor, next_token: bool) -> torch.Tensor | None:
    """Return which positions (batch, length) of token logits count; None when all do, or when there is one per example.

    Padding does not, nor does a position whose label is -100; a causal model's position has the next token's label.
    """
    if logits.dim() != 3:
        return None
    masks = []
    attention, labels = batch.get("attention_mask"), batch.get("labels")
    if attention is not None and attention.shape == logits.shape[:2]:
        masks.append(attention.bool())
    if labels is not None and labels.shape == logits.shape[:2]:
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED) if next_token else labels
        masks.append(labels != IGNORED)
    return torch.stack(masks).all(0) if masks else None


def _hidden_loss(batch: Mapping[str, Any], student: Any, teacher: Any) -> torch.Tensor:
    """Return the mean over layers; a shallower student meets every n-th layer of the teacher (uniform map)."""
    ours, theirs = student["hidden_states"], teacher["hidden_states"]
    last = len(theirs) - 1
    chosen = [theirs[round(i * last / (len(ours) - 1))] for i in range(len(ours))]
    mask = batch.get("attention_mask")
    return torch.stack([hidden_mse(s, t, mask) for s, t in zip(ours, chosen, strict=True)]).mean()


def _same(model: nn.Module, teacher: nn.Module, key: str, what: str) -> None:
    ours, theirs = getattr(model.config, key, None), getattr(teacher.config, key, None)
    if ours != theirs:
        raise LifecycleError(f"distill: teacher and model have different {what}: {theirs} and {ours}")

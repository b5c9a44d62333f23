"""What one training step shows of student and teacher, in the shape losses take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.answers import logits_of
from ..core.errors import LifecycleError
from ..core.layer_map import Pairs
from ..ops.reductions import IGNORED


def takes_labels(model: nn.Module) -> bool:
    """Say whether a model may compute its loss itself: not where it names what its forward takes, and no labels."""
    taken = inspect.signature(model.forward).parameters
    named = isinstance(model, PreTrainedModel) and model.main_input_name in taken
    return not named or any("label" in name or name == "return_loss" for name in taken)


def labelled_logits(outputs: Any, *, taught: bool) -> list[Tensor]:
    """Return the logits that learn from labels: of two heads (DeiT, Touvron 2021) both, but for the one that is taught.

    These are the class token's; the distillation token's learn from a teacher where there is one.
    """
    if "cls_logits" not in outputs:
        return [outputs["logits"]]
    return [outputs["cls_logits"], *([] if taught else [outputs["distillation_logits"]])]


def taught_logits(outputs: Any) -> Tensor:
    """Return the logits that learn from a teacher: of two heads those of the distillation token."""
    found: Tensor = outputs["distillation_logits"] if "distillation_logits" in outputs else _logits(outputs, "student")
    return found


def _logits(outputs: Any, whose: str) -> Tensor:
    """Return the logits; LifecycleError without."""
    found = logits_of(outputs)
    if found is None:
        raise LifecycleError(f"the {whose} gives no logits to compare, only {', '.join(outputs)}")
    return found


def token_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """Return 1 for real tokens, (rows, length); of multiple choice each choice is a row, as it is in the model."""
    mask: Tensor | None = batch.get("attention_mask")
    return mask.flatten(0, 1) if mask is not None and mask.ndim == 3 else mask


class Seen:
    """The batch and both models' outputs."""

    def __init__(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> None:
        self.batch, self.student, self.teacher = batch, student, teacher

    def logits(self) -> tuple[Tensor, Tensor]:
        """Return the logits of the student that learn from the teacher, and the teacher's; LifecycleError without."""
        return taught_logits(self.student), _logits(self.teacher, "teacher")

    def states(self, where: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return both models' hidden states; LifecycleError when one returns none."""
        return self._every("hidden_states", where), self._every("hidden_states", where, "teacher")

    def attentions(self, where: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return both models' attention (batch, heads, length, length) by layer; LifecycleError when one gives none."""
        return self._every("attentions", where), self._every("attentions", where, "teacher")

    def _every(self, key: str, where: str, whose: str = "student") -> list[Tensor]:
        found = getattr(self, whose).get(key)
        if not found or any(layer is None for layer in found):
            raise LifecycleError(
                f"{where}: the {whose} returns no {key.replace('_', ' ')}, so there is nothing to compare; set it to 0"
            )
        return [as_tokens(layer) for layer in found] if key == "hidden_states" else list(found)

    def mask(self, hidden: Tensor) -> Tensor | None:
        """Return 1 for real tokens (batch, length) of (batch, length, …); None where nothing is padded."""
        mask = token_mask(self.batch)
        return mask if mask is not None and mask.shape == hidden.shape[:2] else None

    def counted(self, *, next_token: bool) -> Tensor | None:
        """Return which positions (batch, length) of token logits count; None when all do, or with one per example.

        Padding does not, nor does a position whose label is -100; a causal model's position has the next token's label.
        Of an encoder-decoder the logits are the decoder's, and the other mask is of what the encoder reads.
        """
        shape = taught_logits(self.student).shape
        if len(shape) != 3:
            return None
        masks, padding = (
            [],
            "decoder_attention_mask" if "encoder_last_hidden_state" in self.student else "attention_mask",
        )
        attention, labels = self.batch.get(padding), self.batch.get("labels")
        if attention is not None and attention.shape == shape[:2]:
            masks.append(attention.bool())
        if labels is not None and labels.shape == shape[:2]:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED) if next_token else labels
            masks.append(labels != IGNORED)
        return torch.stack(masks).all(0) if masks else None


def as_tokens(state: Tensor) -> Tensor:
    """Return the maps (batch, channels, height, width) of a convolutional network as (batch, length, width)."""
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state


def mean_over(pairs: Pairs, loss: Callable[[Tensor, Tensor], Tensor], ours: Any, theirs: Any, where: str) -> Tensor:
    """Return the mean of `loss` over pairs of layers; LifecycleError for two that have not the same shape."""
    require_same_tokens([(ours[s], theirs[t]) for s, t in pairs], where)
    for s, t in pairs:
        if ours[s].shape != theirs[t].shape:
            shapes = f"{tuple(theirs[t].shape)} and {tuple(ours[s].shape)}"
            raise LifecycleError(f"{where}: what teacher and student give has different shapes, {shapes}")
    return torch.stack([loss(ours[s], theirs[t]) for s, t in pairs]).mean()


def require_same_tokens(pairs: Iterable[tuple[Tensor, Tensor]], where: str) -> None:
    """Raise LifecycleError for pairs of tensors (batch, tokens, …), or of maps, that differ in their tokens."""
    for ours, theirs in pairs:
        axis = 1 if ours.ndim == 3 else 2
        if ours.shape[axis] != theirs.shape[axis]:
            raise LifecycleError(
                f"{where}: the student has {ours.shape[axis]} tokens here, the teacher {theirs.shape[axis]}, and none "
                "says which go together; compare what ends with as many (logits, hidden states with layers: last)"
            )

"""Two models run once on a made-up batch, to find out before training whether what they answer can be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..core.answers import answering_by_name, logits_of, named
from ..core.errors import LifecycleError, TargetError
from ..core.foreign_internals import without_lasting_hooks
from .pixels import as_read
from .sample import sample_inputs
from .seen import taught_logits

_UNKNOWN = (KeyError, RuntimeError, TypeError, ValueError, AttributeError)


def require_configs(model: nn.Module, teacher: nn.Module, where: str) -> None:
    """Raise LifecycleError for a model or teacher that has no config, such as a module of one's own."""
    for whose, one in (("student", model), ("teacher", teacher)):
        if not hasattr(one, "config"):
            raise LifecycleError(
                f"{where}: the {whose}, a {type(one).__name__}, has no config that says what it answers: wrap it in a "
                "transformers PreTrainedModel, whose forward gives logits"
            )


def require_comparable(
    model: nn.Module, teacher: nn.Module, wants: Collection[str], where: str, *, logits: bool
) -> None:
    """Raise LifecycleError where the two give no `logits` of one shape, or not the extra outputs in `wants`.

    Models of which no batch can be made up, or that this one does not suit, are left to be seen in training.
    """
    ours, theirs = _answers(model, teacher, wants)
    for whose, one, found in (("student", model, ours), ("teacher", teacher, theirs)):
        if found is None:
            continue
        if logits and logits_of(found) is None and "distillation_logits" not in found:
            raise LifecycleError(
                f"{where}: the {whose} gives no logits to compare, only {', '.join(found) or 'what has no name'}: load "
                f"this {type(one).__name__} with a head (AutoModelFor…), or set logits to 0 and compare what is inside"
            )
        for key in wants:
            if not found.get(key):
                raise LifecycleError(
                    f"{where}: the {whose}, a {type(one).__name__}, returns no {key.replace('_', ' ')}, so there is "
                    "nothing to compare; set what compares them to 0"
                )
    if logits and ours is not None and theirs is not None:
        shapes = [tuple(found.shape) for found in (taught_logits(ours), logits_of(theirs)) if found is not None]
        if len(set(shapes)) > 1:
            raise LifecycleError(
                f"{where}: teacher and model answer in different shapes, {shapes[1]} and {shapes[0]} for the same two "
                "examples: they are for different tasks"
            )


@torch.no_grad()
def _answers(
    model: nn.Module, teacher: nn.Module, wants: Collection[str]
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Return what both answer to the model's example, None where that is not known."""
    try:
        inputs = sample_inputs(model)
        ours = _answer(model, inputs, wants)
    except (TargetError, IndexError, *_UNKNOWN):
        return None, None
    try:
        return ours, _answer(teacher, as_read(teacher, inputs), wants)
    except IndexError as error:
        raise LifecycleError(
            "the teacher has no embedding for tokens that the student reads: choose one with the same tokenizer"
        ) from error


def _answer(model: nn.Module, inputs: Mapping[str, Any], wants: Collection[str]) -> Mapping[str, Any] | None:
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):  # only its shapes are known
        return None
    moved = {name: value.to(parameters[0].device) for name, value in inputs.items()}
    flags, training = {f"output_{name}": True for name in sorted(wants)}, model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), answering_by_name(model), without_lasting_hooks(model):
            try:
                return named(model(**moved, **flags))
            except TypeError:  # a model that knows no such flags
                return named(model(**moved)) if flags else None
    except _UNKNOWN:
        return None
    finally:
        model.train(training)

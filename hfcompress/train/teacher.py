"""The frozen model that students learn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from ..core.answers import answering_by_name, named
from ..core.errors import LifecycleError, RemoteCodeError
from ..core.foreign_internals import has_forward_hooks
from ..core.pretrained import from_pretrained
from ..modules.pixels import as_read
from ..modules.tokens import knows_no_word
from .batches import SOFT_LABELS
from .tasks.base import is_unreadable
from .tasks.label_map import class_order
from .tasks.labels import show, unnamed


class Teacher:
    """Runs the teacher on each batch as it comes (on the fly), without gradients and without dropout."""

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        if device is not None:
            self.model.to(device)

    def __call__(self, batch: Mapping[str, Any], wants: frozenset[str] = frozenset()) -> Any:
        """Return the teacher's outputs for `batch` by name, with the extra outputs named in `wants`."""
        hidden = {SOFT_LABELS} if self.reads_labels else {SOFT_LABELS, "labels"}
        inputs = {name: value for name, value in batch.items() if name not in hidden}
        with torch.no_grad(), answering_by_name(self.model):
            return named(self.model(**as_read(self.model, inputs), **output_flags(wants)), inputs)

    @property
    def reads_labels(self) -> bool:
        """Whether its decoder reads the labels: what writes text makes its inputs of them where a batch has none."""
        encodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        return encodes and isinstance(self.model, PreTrainedModel) and self.model.can_generate()

    @property
    def watched(self) -> bool:
        """Whether something listens to what goes on inside the teacher while it runs."""
        return any(has_forward_hooks(m) for m in self.model.modules())


_SHOWN = 4


def require_same_order(source: str | Path, theirs: nn.Module, ours: nn.Module) -> None:
    """Raise LifecycleError that shows both orders where a teacher's classes stand in another one than the model's."""
    if not all("Classification" in type(model).__name__ for model in (theirs, ours)):
        return
    configs: list[Any] = [theirs.config, ours.config]
    heads = [[str(config.id2label[i]) for i in sorted(config.id2label)] for config in configs]
    if unnamed(heads[0]) or unnamed(heads[1]):
        return
    if moved := list(class_order(*heads)):
        raise LifecycleError(
            f"the teacher {source} has its classes in another order than the model ({'; '.join(moved[:_SHOWN])}): "
            f"{show(heads[0])} and {show(heads[1])}. Train one of them with the other's order"
        )


def require_same_processor(source: str | Path, ours: Any) -> None:
    """Raise LifecycleError that shows how the teacher in `source` reads its inputs in another way, if it says how."""
    loader = AutoTokenizer if hasattr(ours, "get_vocab") else AutoImageProcessor
    if ours is None:
        return
    try:
        theirs = from_pretrained(loader, source)
    except RemoteCodeError:
        raise
    except Exception as error:
        if not is_unreadable(error):
            raise
        return  # a teacher without one is taken to read what the model reads
    if knows_no_word(theirs):
        return
    if difference := processor_difference(theirs, ours):
        raise LifecycleError(f"the teacher {source} was made for other inputs than the model: {difference}")


def processor_difference(theirs: Any, ours: Any) -> str:
    """Return in words how two tokenizers or image processors read their input differently; "" when they do not."""
    if hasattr(theirs, "get_vocab") and hasattr(ours, "get_vocab"):
        return _token_difference(theirs.get_vocab(), ours.get_vocab()) or _reading_difference(theirs, ours)
    if hasattr(theirs, "image_mean") and hasattr(ours, "image_mean"):
        return _field_difference(theirs.to_dict(), ours.to_dict())
    kinds = [type(p).__name__ for p in (theirs, ours)]
    return "" if kinds[0] == kinds[1] else f"a {kinds[0]} and a {kinds[1]}"


def _token_difference(theirs: Mapping[str, int], ours: Mapping[str, int]) -> str:
    if theirs == ours:
        return ""
    lines = [f"{len(theirs):,} and {len(ours):,} tokens"] if len(theirs) != len(ours) else []
    for only, what in ((theirs.keys() - ours.keys(), "it alone has"), (ours.keys() - theirs.keys(), "it lacks")):
        if only:
            lines.append(f"{what} {', '.join(map(repr, sorted(only)[:_SHOWN]))}{' …' if len(only) > _SHOWN else ''}")
    moved = sorted(token for token in theirs.keys() & ours.keys() if theirs[token] != ours[token])
    if moved:
        token = moved[0]
        lines.append(f"{len(moved):,} tokens have other ids, such as {token!r}: {theirs[token]} and {ours[token]}")
    return "; ".join(lines)


def _reading_difference(theirs: Any, ours: Any) -> str:
    """Return which text two tokenizers with the same tokens read differently."""
    for text in _PROBES:
        ids = [tokenizer(text)["input_ids"] for tokenizer in (theirs, ours)]
        if ids[0] != ids[1]:
            return f"{text!r} is {ids[0]} and {ids[1]}"
    return ""


_PROBES = ("A Café, 12.5% BIGGER!", " two  spaces\nand a line", "東京 isn't e-mail")


def _field_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return the fields of other values; those that name a class, or that one side lacks, do not count."""
    theirs, ours = (json.loads(json.dumps(values, default=str)) for values in (theirs, ours))  # tuples are lists
    shared = [k for k in theirs if k in ours and not k.endswith(("_type", "_class")) and not k.startswith("_")]
    return "; ".join(f"{k}: {_short(theirs[k])} and {_short(ours[k])}" for k in shared if theirs[k] != ours[k])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def output_flags(wants: frozenset[str]) -> dict[str, bool]:
    """Return the keyword arguments that make a transformers model return the outputs in `wants`."""
    return {f"output_{name}": True for name in sorted(wants)}

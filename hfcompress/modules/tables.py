"""A model's embedding tables: found by what transformers calls them, tied, and taken over from another model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.errors import TargetError
from ..core.foreign_internals import stock_ties


def input_embeddings(model: nn.Module) -> Any:
    """Return what transformers calls the model's input embeddings, a table or not; None where it names none."""
    return _call(model, "get_input_embeddings")


def input_table(model: nn.Module) -> tuple[str, nn.Embedding]:
    """Return the path and the table of the input embeddings; TargetError when it is not a plain one."""
    found = input_embeddings(model)
    path = _path(model, found)
    if path is None or type(found) is not nn.Embedding:
        raise TargetError(f"the input embeddings of this {type(model).__name__} are no plain table of tokens")
    return path, found


def table_pair(model: nn.Module, which: str) -> tuple[str, str]:
    """Return the paths of two tables that could be one: input and `output`, or encoder and `decoder`.

    Raises TargetError where there are no two, they differ in shape or kind, or are one already.
    """
    if which == "output":
        first, second = _call(model, "get_input_embeddings"), _call(model, "get_output_embeddings")
        what = "layer that gives logits per token"
    else:
        sides = (_call(model, "get_encoder"), _call(model, "get_decoder"))
        first, second = (None if s is None or s is model else _call(s, "get_input_embeddings") for s in sides)
        what = "encoder and decoder with a table each"
    paths = [_path(model, first), _path(model, second)]
    if paths[0] is None or paths[1] is None:
        raise TargetError(f"this {type(model).__name__} has no {what}")
    if first is second or first.weight is second.weight:
        raise TargetError(f"{paths[0]} and {paths[1]} are one table already")
    if type(first) is not nn.Embedding or type(second) not in (nn.Embedding, nn.Linear):
        raise TargetError("tie tables before quantizing, pruning or replacing them")
    if first.weight.shape != second.weight.shape:
        shapes = f"{tuple(first.weight.shape)} and {tuple(second.weight.shape)}"
        raise TargetError(f"{paths[0]} and {paths[1]} have shapes {shapes}")
    return paths[0], paths[1]


def tie_in_config_(model: nn.Module, first: str, second: str) -> None:
    """Let the config state a tie that it can, so that a stock checkpoint is left; the tie itself is made already."""
    stock = stock_ties(model)
    if stock.get(second) == first and hasattr(model.config, "tie_word_embeddings"):
        model.config.tie_word_embeddings = True


@torch.no_grad()
def adopt_(table: nn.Embedding, other: nn.Embedding) -> None:
    """Copy the values of `other`, unless they are there."""
    if not torch.equal(table.weight, other.weight.to(table.weight)):
        table.weight.copy_(other.weight)


def restore_(table: nn.Embedding, trains: bool) -> None:
    """Let the table train again if it did."""
    table.weight.requires_grad_(trains)


def _call(model: nn.Module, name: str) -> Any:
    """Return what the model answers, None where it has no answer."""
    try:
        return getattr(model, name)()
    except (AttributeError, NotImplementedError):
        return None


def _path(model: nn.Module, module: Any) -> str | None:
    return next((path for path, found in model.named_modules() if found is module and module is not None), None)

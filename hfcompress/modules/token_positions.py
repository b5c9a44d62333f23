"""Tables of learned positions of tokens, of any model type: found by their size, proven by running the model, cut.

A candidate is an embedding named after positions, with as many rows as a config key says, or a few more. Which row is
that of the first token, the model shows itself: other values in rows that a text does not reach change nothing, in
those of its first and its last token they do.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import answering_by_name
from ..core.errors import TargetError
from .position_rows import configs_of
from .sample import outputs_of, sample_inputs

_NAMED = re.compile(r"pos(itions?)?(_|$)|^wpe$|_pos(itions?)?$")  # the last part of a path
_KEYS = re.compile(r"(^|_)(n|max|num)_.*position|^n_ctx$|^max_(seq|sequence)_len")
_TAKES_IT = ("max_relative_positions",)  # keys that, below 1, mean as many as there are positions
_FAILS = (IndexError, KeyError, RuntimeError, TypeError, ValueError, AttributeError)  # on inputs that are made up
_LARGEST_OFFSET = 2  # rows before the first token beyond those that the config counts


@dataclass(frozen=True)
class TokenPositions:
    """Tables whose rows one config key counts: their full paths, and what all of them have in common."""

    paths: tuple[str, ...]
    key: str
    rows: int
    first: int  # row of the first token

    @property
    def longest(self) -> int:
        """The tokens that the rows allow."""
        return self.rows - self.first


def find_token_positions(model: nn.Module) -> TokenPositions | None:
    """Return a text model's learned positions, None where it has none; TargetError where their rows can't be told."""
    if getattr(model, "main_input_name", "") != "input_ids":
        return None
    found = list(_candidates(model))
    if not found:
        return None
    key, rows = found[0][1], found[0][2]
    paths = tuple(path for path, *rest in found if rest == [key, rows])
    return TokenPositions(paths, key, rows, _first_row(model, paths, rows, rows - int(getattr(model.config, key))))


@torch.no_grad()
def require_cut(model: nn.Module, positions: TokenPositions, length: int) -> None:
    """Raise TargetError where the model can't do with the rows of the first `length` tokens; it stays as it is.

    It can where its config, cut too, builds every other weight as large as before, and a text of that length is
    answered as before, to the bit.
    """
    shapes, before = _shapes(model), _answers(model, length)
    undo = _cut_(model, positions, positions.first + length)
    try:
        own = {f"{path}.weight" for path in positions.paths}
        after = _shapes(model)
        if wrong := [name for name, shape in shapes.items() if name not in own and after.get(name) != shape]:
            raise TargetError(
                f"positions: {positions.key} also says how large {wrong[0]} is, so positions can't go alone"
            )
        if any(not torch.equal(a, b) for a, b in zip(before, _answers(model, length), strict=True)):
            raise TargetError(
                f"positions: with {length} of its positions the model answers a text of {length} tokens otherwise"
            )
    finally:
        undo()


@torch.no_grad()
def keep_first_tokens_(model: nn.Module, positions: TokenPositions, length: int) -> None:
    """Keep the rows of the first `length` tokens, in tables, buffers and config."""
    _cut_(model, positions, positions.first + length)


def _answers(model: nn.Module, length: int) -> list[Tensor]:
    """Return what the model answers on a text of that length; nothing of a model without values."""
    if any(p.is_meta for p in model.parameters()):
        return []
    with answering_by_name(model):
        return outputs_of(model, sample_inputs(model, length))


def _candidates(model: nn.Module) -> Iterator[list[Any]]:
    """Yield [path, config key, rows] of every table that is named after positions and as long as a key says."""
    config: Any = model.config
    values = {key: value for key in _keys(config) if isinstance(value := getattr(config, key, None), int)}
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if not _NAMED.search(last) or "Sinusoidal" in type(module).__name__:
            continue
        rows = getattr(module, "num_embeddings", None)
        if rows is None or not hasattr(module, "weight"):
            continue
        offsets = {0, 1, _LARGEST_OFFSET}
        key = next((key for key, value in values.items() if value > 1 and rows - value in offsets), None)
        if key is not None:
            yield [path, key, rows]


def _keys(config: Any) -> list[str]:
    """Return the keys of a config that may count positions, the usual one first."""
    known = [key for key in config.to_dict() if _KEYS.search(key) and "2d" not in key]
    usual = getattr(config, "attribute_map", {}).get("max_position_embeddings", "max_position_embeddings")
    return sorted(known, key=lambda key: key != usual)


def _first_row(model: nn.Module, paths: tuple[str, ...], rows: int, beyond: int) -> int:
    """Return the row of the first token, as the model shows it; of a model without values, as its kind has it."""
    tables = [model.get_submodule(path) for path in paths]
    pad = getattr(tables[0], "padding_idx", None)
    likely = beyond or (0 if pad is None else pad + 1)
    plain = [table for table in tables if isinstance(table, nn.Embedding)]
    if len(plain) < len(tables) or any(p.is_meta for p in model.parameters()):
        return likely
    pad = getattr(model.config, "pad_token_id", None)
    tried = dict.fromkeys([likely, beyond, 0, *([pad + 1] if isinstance(pad, int) else [])])
    length = max(1, min(12, rows - max(tried)))
    inputs = sample_inputs(model, length)
    with answering_by_name(model), contextlib.suppress(*_FAILS):
        for first in tried:
            if _is_first(model, plain, inputs, first, length):
                return first
    raise TargetError(
        f"positions: {paths[0]} looks like a table of positions, and which of its rows a text of {length} tokens "
        "reaches can't be told"
    )


def _is_first(model: nn.Module, tables: list[nn.Embedding], inputs: dict[str, Tensor], first: int, length: int) -> bool:
    """Say whether a text reads the rows from `first` on, one for each token, and no other."""
    end, rows = first + length, tables[0].num_embeddings
    unread = [slice(end, rows)] if end < rows else []
    unread += [slice(0, first)] if first else []
    read = (slice(first, first + 1), slice(end - 1, end))
    return all(_reads(model, tables, inputs, part) for part in read) and not any(
        _reads(model, tables, inputs, part) for part in unread
    )


@torch.no_grad()
def _reads(model: nn.Module, tables: list[nn.Embedding], inputs: dict[str, Tensor], rows: slice) -> bool:
    """Say whether other values in these rows of any table change what the model answers."""
    before, kept = outputs_of(model, inputs), [table.weight[rows].clone() for table in tables]
    try:
        for table in tables:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(table.weight[rows].shape, generator=generator).to(table.weight)
            table.weight[rows] = 10 * noise * (1 + table.weight.abs().max())
        after = outputs_of(model, inputs)
    finally:
        for table, values in zip(tables, kept, strict=True):
            table.weight[rows] = values
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _cut_(model: nn.Module, positions: TokenPositions, left: int) -> Any:
    """Cut tables, buffers and config to `left` rows; return what puts everything back."""
    with contextlib.ExitStack() as undo:
        for path in positions.paths:
            table = model.get_submodule(path)
            if not isinstance(table, nn.Embedding):
                raise TargetError(f"{path} is a {type(table).__name__}: cut its rows before what changes its kind")
            _set(undo, table, "weight", nn.Parameter(table.weight[:left].clone(), table.weight.requires_grad))
            _set(undo, table, "num_embeddings", left)
            parent = model.get_submodule(path.rpartition(".")[0])
            for name, buffer in list(parent.named_buffers(recurse=False)):  # position_ids and the like, (1, rows)
                if buffer.ndim == 2 and buffer.shape[0] == 1 and positions.longest <= buffer.shape[1] <= positions.rows:
                    _set(undo, parent, name, buffer[:, : buffer.shape[1] - positions.rows + left].clone())
        gone = positions.rows - left
        for config in configs_of(model):
            value = getattr(config, positions.key, None)
            if isinstance(value, int) and 0 <= positions.rows - value <= _LARGEST_OFFSET:
                for key in _TAKES_IT:
                    if isinstance(own := getattr(config, key, None), int) and own < 1:
                        _set(undo, config, key, value)
                _set(undo, config, positions.key, value - gone)
        return undo.pop_all().close


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters that the model's config builds."""
    config: Any = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return {name: p.shape for name, p in type(model)(config).named_parameters()}

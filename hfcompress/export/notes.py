"""What a model runs in, in words: how its numbers are stored, and what the products are computed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .. import __version__
from ..modules.packed import PackedEmbedding, form_of
from ..modules.storage import Packed
from ..ops.codebooks import Codebook
from ..ops.quantization import stored_width
from .kernels import kernels
from .runtime import Source, engine


def runs_in(name: str, source: Source, model: nn.Module | None) -> str:
    """Return what the engine called `name` runs the checkpoint of `source`, loaded as `model`, in (None: it is a file).

    Of an exported file this is what its metadata say, nothing when another tool wrote it, and the engine's kernels.
    """
    chosen = engine(name)
    if chosen.file is None and model is not None:
        return model_note(model) + ", compiled by torch.compile for each shape" * chosen.compiles
    file = source.export(str(chosen.file))
    return "; ".join(part for part in (chosen.note(file), kernels(file)) if part)


def made_with(image_size: int | tuple[int, int] | None, reduce_range: bool) -> dict[str, Any]:
    """Return what decides an export besides the model and the examples, and this package's version, as JSON has it."""
    size = list(image_size) if isinstance(image_size, tuple) else image_size
    return {"image_size": size, "reduce_range": reduce_range, "hfcompress": __version__}


def model_note(model: nn.Module) -> str:
    """Return how a model's layers are stored; PyTorch widens them and computes in the dtype the model has."""
    kinds: tuple[list[str], list[str]] = ([], [])
    for module in model.modules():
        form = form_of(module)
        if form is not None:
            kinds[form.packed is PackedEmbedding].append(_kind(module))
    rounds = sum(isinstance(m, Packed) and m.input_bits is not None for m in model.modules())
    return note_of(*kinds, f"computed in {_dtype(model)}" + f", inputs of {rounds} layers rounded" * bool(rounds))


def note_of(weights: Sequence[str], tables: Sequence[str], computed: str) -> str:
    """Return such as 'weights 8-bit (38), float32 (1); tables 8-bit; computed in float32'."""
    return "; ".join([*_counted("weights", weights), *_counted("tables", tables), computed])


def kind_of(width: int | str, *, sparse: bool) -> str:
    """Return how one layer's numbers are stored: `width` in bits, or a word."""
    kind = f"{width}-bit" if isinstance(width, int) else width
    return f"{kind} without zeros" if sparse else kind


def _kind(module: nn.Module) -> str:
    if not isinstance(module, Packed):
        return _dtype(module)
    if module.grid is None:
        return kind_of(_dtype(module), sparse=module.sparse)
    book = isinstance(module.grid, Codebook)
    width = module.grid.bits if book else stored_width(module.grid, module.sparse)  # type: ignore[arg-type]
    return kind_of(width, sparse=module.sparse)


def _dtype(module: nn.Module) -> str:
    found = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return str(found).removeprefix("torch.")


def _counted(what: str, kinds: Sequence[str]) -> list[str]:
    """Count kinds only where they differ."""
    names = list(dict.fromkeys(kinds))
    if len(names) < 2:
        return [f"{what} {name}" for name in names]
    return [f"{what} " + ", ".join(f"{name} ({list(kinds).count(name)})" for name in names)]

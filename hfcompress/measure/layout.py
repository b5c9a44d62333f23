"""Where a model's weights are: heads, units, bits and bytes of each block, of the embeddings, and of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from ..core.errors import FamilyError
from ..core.families import Block, blocks_of, embeddings_of, family_of, head_count, unit_count, width_in
from ..modules.adapted import Adapted
from ..modules.bnb import float_twin, is_bnb
from ..modules.factorized import Factorized
from ..modules.storage import Packed
from ..ops.quantization import TERNARY
from .result import Part

EMBEDDINGS, REST = "embeddings", "rest"
_TERNARY_BITS = 1.6  # five to a byte
_NAMELESS = ("layer", "layers", "h", "block", "blocks")


def layout_of(model: nn.Module) -> list[Part]:
    """Return the parts of `model` in order; none where its family is not known.

    It reads shapes and kinds only, so a model on the meta device will do. A parameter that several parts share counts
    in the first of them.
    """
    try:
        family = family_of(model)
        blocks = blocks_of(model, family)
    except FamilyError:
        return []
    inner = [block.path for block in blocks]
    tables = [path for path in embeddings_of(model, family) if not _within(path, inner)]
    seen: dict[int, str] = {}
    found = [_sum(EMBEDDINGS, model, tables, seen)]
    found[0].tokens = getattr(model.config, "vocab_size", None)
    for name, block in zip(_names(blocks), blocks, strict=True):
        found.append(_sum(name, model, [block.path], seen))
        found[-1].heads, found[-1].units = head_count(model, block), unit_count(model, block)
        found[-1].width = width_in(model.get_submodule(block.query))
    others = [path for path, _ in model.named_modules() if not _within(path, [*inner, *tables])]
    found.append(_sum(REST, model, others, seen, deep=False))
    return [part.frozen() for part in found if part.numbers or part.shares]


@dataclass
class _Sum:
    """What is counted of a part on the way."""

    name: str
    numbers: int = 0
    nonzeros: int = 0
    size_bytes: int = 0
    weighted_bits: float = 0.0
    bits_of: int = 0
    ranks: set[int] = field(default_factory=set)
    shares: set[str] = field(default_factory=set)
    heads: int | None = None
    units: int | None = None
    width: int | None = None
    tokens: int | None = None

    def frozen(self) -> Part:
        bits = round(self.weighted_bits / self.bits_of, 3) if self.bits_of else None
        shares = min(self.shares) if self.shares and not self.bits_of else None
        return Part(
            name=self.name, heads=self.heads, units=self.units, width=self.width, tokens=self.tokens,
            numbers=self.numbers, nonzeros=self.nonzeros, size_bytes=self.size_bytes, bits=bits,
            rank=min(self.ranks, default=None), shares=shares,
        )  # fmt: skip


def _sum(name: str, model: nn.Module, paths: list[str], seen: dict[int, str], *, deep: bool = True) -> _Sum:
    total = _Sum(name)
    for path in paths:
        top = model.get_submodule(path)
        for module in top.modules() if deep else [top]:
            _add(total, module, seen)
    return total


def _add(total: _Sum, module: nn.Module, seen: dict[int, str]) -> None:
    """Count what `module` itself holds; the bits are those of matrices, not of biases and norms."""
    rank = getattr(module, "rank", None) if isinstance(module, Factorized | Adapted) else None
    if isinstance(rank, int):
        total.ranks.add(rank)
    for key, parameter in module.named_parameters(recurse=False):
        if id(parameter) in seen:
            if seen[id(parameter)] != total.name:
                total.shares.add(seen[id(parameter)])
            continue
        seen[id(parameter)] = total.name
        total.size_bytes += parameter.numel() * parameter.element_size()
        numbers, kept, bits = _stored(module, key, parameter)
        total.numbers, total.nonzeros = total.numbers + numbers, total.nonzeros + kept
        if bits is not None:
            total.weighted_bits, total.bits_of = total.weighted_bits + bits * numbers, total.bits_of + numbers


def _stored(module: nn.Module, key: str, parameter: nn.Parameter) -> tuple[int, int, float | None]:
    """Return how many numbers a parameter stands for, how many of them it holds, and the bits of each in a matrix."""
    if isinstance(module, Packed):
        numbers = module.packed_numel.get(key, parameter.numel())
        if key == "weight_codes" and module.grid is not None:
            bits = _TERNARY_BITS if module.grid.bits == TERNARY else float(module.grid.bits) / _dim(module)
            return numbers, numbers if module.nonzeros is None else module.nonzeros, bits
        if key == "weight" and module.grid is None:
            return numbers, parameter.numel(), 8.0 * parameter.element_size()
        return numbers, numbers, None
    if key == "weight" and is_bnb(module):
        numbers = int(float_twin(module).get_parameter(key).numel())
        return numbers, numbers, 8.0 * parameter.numel() * parameter.element_size() / numbers
    numbers = parameter.numel()
    return numbers, numbers, 8.0 * parameter.element_size() if parameter.dim() > 1 and numbers else None


def _dim(module: Packed) -> int:
    """Return how many numbers one code stands for."""
    return int(getattr(module.grid, "dim", 1))


def _names(blocks: list[Block]) -> Iterator[str]:
    """Return what people call the blocks: by number, and by their stack where there are several."""
    stacks = {block.path.rpartition(".")[0] for block in blocks}
    for block in blocks:
        stack, _, index = block.path.rpartition(".")
        parts = [part for part in stack.split(".") if part not in _NAMELESS]
        yield f"{'.'.join(parts[1:])} block {index}".strip() if len(stacks) > 1 else f"block {index}"


def _within(path: str, tops: list[str]) -> bool:
    return any(path == top or path.startswith(f"{top}.") for top in tops)

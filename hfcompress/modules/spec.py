"""The JSON spec of each module kind: read off a module, checked against what it replaces, built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import CheckpointError
from .packed import PackedEmbedding, PackedLinear

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """How one class of modules is written down and built again."""

    name: str
    cls: type[nn.Module]
    sizes: tuple[str, ...]  # attributes that are widths: at least 1, at most those of the layer replaced
    flags: tuple[str, ...]  # other attributes
    replaces: tuple[type[nn.Module], ...]
    build: Callable[[Spec, torch.dtype], nn.Module]


def _bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


_LINEAR, _EMBEDDING = ("in_features", "out_features"), ("num_embeddings", "embedding_dim")
_LINEARS, _EMBEDDINGS = (nn.Linear, PackedLinear), (nn.Embedding, PackedEmbedding)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "linear",
            nn.Linear,
            _LINEAR,
            ("bias",),
            _LINEARS,
            lambda s, t: nn.Linear(s["in_features"], s["out_features"], s["bias"], dtype=t),
        ),
        Kind("conv1d_hf", Conv1D, ("nx", "nf"), (), (Conv1D,), lambda s, t: Conv1D(s["nf"], s["nx"]).to(t)),
        Kind(
            "embedding",
            nn.Embedding,
            _EMBEDDING,
            ("padding_idx",),
            _EMBEDDINGS,
            lambda s, t: nn.Embedding(s["num_embeddings"], s["embedding_dim"], s["padding_idx"], dtype=t),
        ),
        Kind(
            "packed_linear",
            PackedLinear,
            _LINEAR,
            ("bias",),
            _LINEARS,
            lambda s, t: PackedLinear(s["in_features"], s["out_features"], s["bias"], dtype=t),
        ),
        Kind(
            "packed_embedding",
            PackedEmbedding,
            _EMBEDDING,
            ("padding_idx",),
            _EMBEDDINGS,
            lambda s, t: PackedEmbedding(s["num_embeddings"], s["embedding_dim"], s["padding_idx"], dtype=t),
        ),
    )
}


def spec_of(module: nn.Module) -> dict[str, Any] | None:
    """Return the spec of a module, or None when its class is none of ours to change."""
    for kind in KINDS.values():
        if type(module) is kind.cls:
            spec: dict[str, Any] = {"kind": kind.name, **{name: getattr(module, name) for name in kind.sizes}}
            return spec | {name: _bias(module) if name == "bias" else getattr(module, name) for name in kind.flags}
    return None


def build(spec: Spec, old: nn.Module, where: str) -> nn.Module:
    """Build the module `spec` describes in place of `old`, on its device and in its dtype.

    Raises CheckpointError for a kind that is not known, a key that does not belong, and a size above what `old` has:
    a checkpoint may shrink a model, so nothing in a file can make the loader allocate more than the config asks for.
    """
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None or not isinstance(old, kind.replaces):
        raise CheckpointError(f"{where}: {spec.get('kind')!r} can't stand for a {type(old).__name__}")
    if set(spec) != {"kind", *kind.sizes, *kind.flags}:
        raise CheckpointError(f"{where}: keys {sorted(spec)} do not describe a {kind.name}")
    for name in kind.sizes:
        size, limit = spec[name], getattr(old, name)
        if type(size) is not int or not 1 <= size <= limit:
            raise CheckpointError(f"{where}: {name}={size!r} is not between 1 and the config's {limit}")
    _check_flags(kind, spec, where)
    weight: Any = old.weight
    with torch.device(weight.device):
        return kind.build(spec, weight.dtype if weight.is_floating_point() else torch.float32).train(old.training)


def _check_flags(kind: Kind, spec: Spec, where: str) -> None:
    if "bias" in kind.flags and type(spec["bias"]) is not bool:
        raise CheckpointError(f"{where}: bias={spec['bias']!r} is neither true nor false")
    padding = spec.get("padding_idx")
    if padding is not None and (type(padding) is not int or not 0 <= padding < spec["num_embeddings"]):
        raise CheckpointError(f"{where}: padding_idx={padding!r} is not a row of the table")

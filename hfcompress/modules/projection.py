"""The residual stream seen in fewer directions: those of most energy in what runs through it, for all that touch it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import DataError
from ..core.foreign_internals import parameters_of
from ..ops.lowrank import hyperplane, principal_directions
from .importance import Batch
from .sized import follow_
from .width import Axis, hidden_tokens


@dataclass(frozen=True)
class Projection:
    """Orthonormal `basis` (width, left) of what stays, and the share of the stream's energy that lies in it."""

    basis: Tensor
    energy: float

    @property
    def norm_factor(self) -> float:
        """What a norm's output has to be multiplied by: it sees `left` channels that carry `energy` of the whole."""
        width, left = self.basis.shape
        return math.sqrt(width * self.energy / left)


@torch.no_grad()
def principal_projection(
    model: nn.Module, paths: Sequence[str], norms: Sequence[str], batches: Iterable[Batch], left: int
) -> Projection:
    """Return the `left` directions of most energy in what the modules `paths` give, as SliceGPT (Ashkboos 2024, 3.3).

    Each module's energy counts alike. Norms that subtract the mean over channels take no notice of it, and must not in
    the result: it is left out, and coordinates are chosen that sum to zero. DataError without batches.
    """
    centred = any(isinstance(model.get_submodule(path), nn.LayerNorm) for path in norms)
    moments: dict[str, Tensor] = {}
    for path, tokens in hidden_tokens(model, paths, batches):
        tokens = tokens - tokens.mean(-1, keepdim=True) if centred else tokens
        moments[path] = moments.get(path, 0) + (tokens.T @ tokens).cpu()
    if not moments:
        raise DataError("there are no calibration batches")
    total = torch.stack([moment / moment.trace().clamp_min(1e-12) for moment in moments.values()]).mean(0)
    if not centred:
        return Projection(*principal_directions(total, left))
    plane = hyperplane(len(total))
    basis, energy = principal_directions(plane.T @ total @ plane, left - 1)
    return Projection(plane @ basis @ hyperplane(left).T, energy)


@torch.no_grad()
def project_channels_(model: nn.Module, axes: Iterable[Axis], norms: Collection[str], projection: Projection) -> None:
    """Express every dimension of `axes` in the projection's basis, in place; ties stay ties.

    Factors per channel (of `norms`, and layer scales) have no such expression: each becomes the mean of those its
    direction is made of, those of norms times `norm_factor`.
    """
    named: dict[tuple[str, str], list[Axis]] = {}
    for axis in axes:
        named.setdefault((axis.path, axis.name), []).append(axis)
    made: dict[Tensor, nn.Parameter] = {}  # tensors are told apart by identity
    for (path, name), dims in named.items():
        module = model.get_submodule(path)
        old: Any = parameters_of(module)[name]
        if old not in made:
            if old.ndim == 1 and name != "bias":
                new = _factors(old, projection, path in norms)
            else:
                new = _contracted(old, dims, projection.basis)
            made[old] = nn.Parameter(new.to(old).contiguous(), requires_grad=old.requires_grad)
        parameters_of(module)[name] = made[old]
        follow_(module)


def _factors(old: Tensor, projection: Projection, norm: bool) -> Tensor:
    shares = projection.basis.square()
    diagonal = (shares / shares.sum(0)).T @ old.detach().double().cpu()
    return diagonal * projection.norm_factor if norm else diagonal


def _contracted(old: Tensor, dims: Iterable[Axis], basis: Tensor) -> Tensor:
    new = old.detach().double().cpu()
    for axis in dims:
        parts = new.movedim(axis.dim, -1).unflatten(-1, (axis.times, len(basis)))
        new = (parts @ basis).flatten(-2).movedim(-1, axis.dim)
    return new

"""k-means on numbers, many sets at once and exactly, and on short vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Init = Literal["linear", "kmeans++"]
_ROUNDS = 100  # of Lloyd's iteration at most: on numbers it has settled long before
_VECTOR_ROUNDS = 15
_SAMPLE = 64  # points per centroid that are looked at: more cost time and hardly move it
_PART = 2**24  # distances held at once


def kmeans_lines(
    values: Tensor,
    count: int,
    weights: Tensor | None = None,
    *,
    init: Init = "linear",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return `count` centroids, ascending, for each row of `values` (sets, n): (sets, count).

    Minimizes the squared error weighted by `weights` (sets, n) >= 0. Sorted once, a cluster is an interval, and its
    mean a difference of prefix sums: an iteration costs count * log n. linear: centroids start evenly between the
    smallest and the largest value (Han 2016, section 3.2); kmeans++: drawn in proportion to the squared distance from
    those drawn before (Arthur 2007). A cluster without members keeps its centroid.
    """
    ordered, order = values.sort(dim=1)
    heavy = torch.ones_like(ordered) if weights is None else weights.gather(1, order)
    centroids = _evenly(ordered, heavy, count) if init == "linear" else _plus(ordered, heavy, count, generator)
    mass, moment = _prefix(heavy), _prefix(heavy.double() * ordered)
    for _ in range(_ROUNDS):
        bounds = (centroids[:, 1:] + centroids[:, :-1]) / 2
        ends = torch.searchsorted(ordered, bounds.to(ordered.dtype))
        edges = torch.cat([torch.zeros_like(ends[:, :1]), ends, torch.full_like(ends[:, :1], ordered.shape[1])], 1)
        weight, total = mass.gather(1, edges).diff(dim=1), moment.gather(1, edges).diff(dim=1)
        moved = torch.where(weight > 0, total / weight.clamp(min=1e-30), centroids)
        settled = torch.equal(moved, centroids)
        centroids = moved
        if settled:
            break
    return centroids.sort(dim=1).values.float()


def nearest_line(values: Tensor, centroids: Tensor) -> Tensor:
    """Return the number of the centroid nearest to each value: values (1, n, 1), centroids (1, count, 1) ascending."""
    line = centroids[0, :, 0]
    return torch.searchsorted((line[1:] + line[:-1]) / 2, values[0, :, 0].contiguous()).to(torch.uint8)


def kmeans_vectors(points: Tensor, count: int, weights: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return `count` centroids (count, dim) of `points` (n, dim), weighted, from a k-means++ start.

    Of many points a sample is looked at.
    """
    if len(points) > _SAMPLE * count:
        sample = torch.randperm(len(points), generator=generator, device=points.device)[: _SAMPLE * count]
        points, weights = points[sample], weights[sample]
    centroids = _plus_vectors(points, weights, count, generator)
    for _ in range(_VECTOR_ROUNDS):
        codes = nearest_vectors(points[None], centroids[None]).long()
        mass = torch.zeros(count, device=points.device).index_add_(0, codes, weights)
        total = torch.zeros_like(centroids).index_add_(0, codes, points * weights[:, None])
        moved = torch.where(mass[:, None] > 0, total / mass.clamp(min=1e-30)[:, None], centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest_vectors(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the number of the centroid nearest to each point: points (1, n, dim), centroids (1, count, dim)."""
    words = centroids[0]
    offsets = words.square().sum(1) / 2
    parts = points[0].split(max(1, _PART // len(words)))
    return torch.cat([(part @ words.T - offsets).argmax(1).to(torch.uint8) for part in parts])


def _evenly(ordered: Tensor, weights: Tensor, count: int) -> Tensor:
    counts = weights > 0
    low = torch.where(counts, ordered, torch.inf).amin(1, keepdim=True)
    high = torch.where(counts, ordered, -torch.inf).amax(1, keepdim=True)
    seen = counts.any(1, keepdim=True)
    low, high = torch.where(seen, low, 0).double(), torch.where(seen, high, 0).double()
    return low + (high - low) * torch.linspace(0, 1, count, dtype=torch.double, device=ordered.device)


def _plus(ordered: Tensor, weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw starting centroids from each row; rows of no weight start at 0."""
    picked = _draw(ordered, weights, generator)
    near = (ordered - picked).square()
    found = [picked]
    for _ in range(count - 1):
        found.append(_draw(ordered, weights * near, generator))
        near = torch.minimum(near, (ordered - found[-1]).square())
    return torch.cat(found, 1).sort(dim=1).values.double()


def _draw(values: Tensor, chances: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return one value per row, drawn in proportion to `chances` (what torch.multinomial does, for any length)."""
    total = chances.double().cumsum(1)
    at = torch.rand(len(values), 1, dtype=torch.double, generator=generator, device=values.device) * total[:, -1:]
    return values.gather(1, torch.searchsorted(total, at, right=True).clamp(max=values.shape[1] - 1))


def _plus_vectors(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    index = torch.arange(len(points), device=points.device)[None]
    picked = [points[int(_draw(index, weights[None], generator))]]
    near = (points - picked[0]).square().sum(1)
    for _ in range(count - 1):
        picked.append(points[int(_draw(index, (weights * near)[None], generator))])
        near = torch.minimum(near, (points - picked[-1]).square().sum(1))
    return torch.stack(picked)


def _prefix(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values.double().cumsum(1), (1, 0))

"""Choosing one option per layer under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STATES = 4096  # partial choices kept; more buy nothing that the measured losses could tell apart


@dataclass(frozen=True)
class Option:
    """What one way to hold a layer costs (bits, bytes, …) and how much it harms (a loss, smaller is better)."""

    cost: float
    loss: float


def allocate(layers: Sequence[Sequence[Option]], budget: float, *, states: int = _STATES) -> list[int]:
    """Return the index of one option per layer, of least total loss among those of total cost at most `budget`.

    The multiple-choice knapsack problem, as mixed precision poses it (Hubara 2020, arXiv:2006.10518, section 4), by
    dynamic programming over the choices that no other beats in both cost and loss (Nemhauser & Ullmann 1969): exact as
    long as no more than `states` of them arise. Beyond that, the best of each of `states` equal steps of cost is kept:
    the budget still holds. Ties go to the lower cost. ValueError when even the cheapest options cost more than that.
    """
    costs = [np.array([option.cost for option in options], dtype=float) for options in layers]
    losses = [np.array([option.loss for option in options], dtype=float) for options in layers]
    least = float(sum(c.min() for c in costs))
    if least > budget:
        raise ValueError(f"the budget of {budget:g} is below {least:g}, the cost of the cheapest options")
    rest, cost, loss = least, np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, int]] = []  # which states were kept at each layer, as state * options + option
    for its_costs, its_losses in zip(costs, losses, strict=True):
        rest -= float(its_costs.min())
        cost, loss = (cost[:, None] + its_costs).ravel(), (loss[:, None] + its_losses).ravel()
        kept = _thin(cost, _undominated(cost, loss, budget - rest), states)
        cost, loss = cost[kept], loss[kept]
        trail.append((kept, len(its_costs)))
    return _walk_back(trail, int(loss.argmin()))


def _undominated(cost: np.ndarray, loss: np.ndarray, limit: float) -> np.ndarray:
    """Return, by rising cost, the states within `limit` that no cheaper one matches in loss."""
    order = np.lexsort((loss, cost))
    order = order[cost[order] <= limit * (1 + 1e-12)]  # sums taken in another order differ in the last bits
    best = np.minimum.accumulate(loss[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = loss[order][1:] < best[:-1]
    return order[better]


def _thin(cost: np.ndarray, kept: np.ndarray, states: int) -> np.ndarray:
    """Return at most `states` of the undominated states `kept`: of each step of cost the dearest, which is the best."""
    if len(kept) <= states:
        return kept
    low, high = cost[kept[0]], cost[kept[-1]]
    step = np.minimum(((cost[kept] - low) / (high - low) * (states - 1)).astype(int), states - 2) + 1
    step[0] = 0  # the cheapest stays, so that a way to keep the budget always does
    last = np.append(step[1:] != step[:-1], True)
    return kept[last]


def _walk_back(trail: list[tuple[np.ndarray, int]], state: int) -> list[int]:
    chosen = []
    for kept, options in reversed(trail):
        state, option = divmod(int(kept[state]), options)
        chosen.append(option)
    return chosen[::-1]

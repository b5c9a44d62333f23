"""How much each layer keeps, when all share one budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import TargetError

GRID = 20_000  # costs are compared in this many parts of the budget, rounded up, when whole numbers do not divide it


def keep_counts(scores: Sequence[Tensor], multiple: int) -> list[Tensor]:
    """Return, per layer, the numbers of entries it may keep: multiples of `multiple`, and all."""
    return [torch.tensor([*range(multiple, len(s), multiple), len(s)]) for s in scores]


def dropped(scores: Sequence[Tensor], counts: Sequence[Tensor]) -> list[Tensor]:
    """Return, per layer and number of entries kept, the sum of the scores of all but the highest so many."""
    errors = []
    for layer, options in zip(scores, counts, strict=True):
        lost = layer.detach().double().cpu().sort().values.cumsum(0)
        errors.append(torch.cat([lost.new_zeros(1), lost])[len(layer) - options])
    return errors


def allocate(errors: Sequence[Tensor], costs: Sequence[Tensor], share: float) -> list[int]:
    """Choose one option per layer with the least sum of errors at a cost of at most `share` of the last options'.

    errors, costs: (options,) per layer, the last option being the whole layer. Solved exactly, by dynamic programming
    over the cost spent (the multiple-choice knapsack problem), on a grid of `GRID` steps. Raises TargetError when even
    the cheapest options cost more.
    """
    full, least = sum(float(c[-1]) for c in costs), sum(float(c.min()) for c in costs)
    if least > share * full:
        raise TargetError(f"no more than {1 - least / full:.0%} can be removed: every layer has to keep something")
    steps, prices = _grid(costs, share * full)
    best = torch.zeros(steps + 1, dtype=torch.float64)  # least error of the layers so far, by what they may cost
    choices = []
    for layer, price in zip(errors, prices, strict=True):
        reached = torch.full((len(price), steps + 1), math.inf, dtype=torch.float64)
        for option, cost in enumerate(int(p) for p in price):
            if cost <= steps:
                reached[option, cost:] = best[: steps + 1 - cost] + float(layer[option])
        best, choice = reached.min(0)
        choices.append(choice)
    chosen = []
    for price, choice in zip(reversed(prices), reversed(choices), strict=True):
        option = int(choice[steps])
        chosen.append(option)
        steps -= int(price[option])
    return chosen[::-1]


def _grid(costs: Sequence[Tensor], budget: float) -> tuple[int, list[Tensor]]:
    """Return the budget and the costs as whole numbers of one unit, no cost too low."""
    flat = torch.cat([c.double() for c in costs])
    if bool((flat == flat.round()).all()):
        unit = math.gcd(*(int(c) for c in flat))
        if budget / unit <= GRID:
            return math.floor(budget / unit + 1e-9), [(c.double() / unit).round().long() for c in costs]
    prices = [torch.ceil(c.double() / budget * GRID - 1e-6).long() for c in costs]
    return max(GRID, sum(int(p.min()) for p in prices)), prices

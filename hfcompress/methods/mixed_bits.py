"""Bits per layer, chosen from what rounding each layer does to the model's answers, under a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.packable import packable
from ..modules.packed import pack_
from ..modules.sensitivity import output_divergences, stored_bytes
from ..modules.sparse import pack_sparse_
from ..modules.storage import Packed
from ..modules.ties import sharers
from ..ops.allocation import allocate
from ..ops.quantization import Grid


class MixedBitsConfig(StrictModel):
    """Settings of mixed precision."""

    average_bits: float | None = Field(
        None, gt=0, description="Budget: bits per weight over all layers acted on, scales included; or budget_mb."
    )
    budget_mb: float | None = Field(
        None, gt=0, description="Budget: megabytes (10^6 bytes) of the weights of all layers acted on; or average_bits."
    )
    choices: list[Literal[8, 6, 4, 3, 2]] = Field([2, 3, 4, 6, 8], min_length=2, description="Bits a layer may get.")
    batches: int = Field(2, ge=1, description="Calibration batches to measure on; each layer and choice runs them all.")
    symmetric: bool = Field(True, description="Levels lie evenly around zero; false adds a zero point to each scale.")
    group_size: int | None = Field(None, ge=1, description="Columns that share a scale; default: a whole row.")
    clip: Literal["max", "mse"] = Field(
        "mse", description="max: the levels span all weights; mse: they span what leaves the least squared error."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding, Conv1D, Conv2d); default: every such "
        "layer but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")

    @model_validator(mode="after")
    def _one_budget(self) -> MixedBitsConfig:
        if (self.average_bits is None) == (self.budget_mb is None):
            raise ValueError("set either average_bits, such as 4, or budget_mb")
        return self

    @property
    def grids(self) -> list[Grid]:
        """The grids a layer may get, by rising bits."""
        return [Grid(bits, self.symmetric, self.group_size) for bits in sorted(set(self.choices))]


@register
class MixedBits(Method[MixedBitsConfig]):
    """Rounds each layer alone to each choice of bits, and spends the budget where that hurts most."""

    info = MethodInfo(
        name="mixed_bits",
        title="Mixed precision",
        summary="One-shot: bits per layer from its measured sensitivity, under a budget of average bits or bytes.",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=("https://arxiv.org/abs/2001.00281", "https://arxiv.org/abs/2006.10518"),
        needs=Needs(calibration=True),
        examples={"": {"average_bits": 4}},
    )
    Config = MixedBitsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers, tied ones once; TargetError for one that can't be packed or a budget below the least."""
        self._paths = self._select(model)
        self._weights = sum(_weights(model.get_submodule(path)) for path in self._paths)
        least = sum(stored_bytes(model.get_submodule(path), self.config.grids[0]) for path in self._paths)
        if least > self._budget:
            raise TargetError(
                f"the budget is {self._budget / 1e6:.3g} MB or {8 * self._budget / self._weights:.3g} bits per weight; "
                f"the fewest bits take {least / 1e6:.3g} MB or {8 * least / self._weights:.3g}, scales included"
            )
        return self._paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure every layer on every grid, divide the budget, and pack.

        Errors of single layers need not add up: where the same bits everywhere come out closer, that is what is used.
        """
        few, grids, paths = list(islice(batches, self.config.batches)), self.config.grids, self._paths
        single = output_divergences(model, few, [{p: g} for p in paths for g in grids], self.config.clip)
        costs = self._costs(model)
        errors = torch.tensor(single, dtype=torch.float64).view(len(paths), -1)
        errors = errors.flip(1).cummax(1).values.flip(1)  # that fewer bits do better is noise
        chosen = allocate(list(errors), costs, self._budget / sum(int(c[-1]) for c in costs))
        _spend_rest_(chosen, errors, costs, self._budget)
        plans = [dict(zip(paths, (grids[c] for c in chosen), strict=True)), dict.fromkeys(paths, self._uniform(model))]
        joint = output_divergences(model, few, plans, self.config.clip)
        for path, grid in plans[joint.index(min(joint))].items():
            pack_(model, path, grid, clip=self.config.clip)

    def assume(self, model: nn.Module) -> None:
        """Give all layers the same bits, the most the budget allows."""
        grid = self._uniform(model)
        for path in self._paths:
            pack_(model, path, grid)

    def finalize(self, model: nn.Module) -> None:
        """Leave out zeros where that is smaller still."""
        for path in self._paths:
            pack_sparse_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers, weights, their bits per weight on disk, and how many layers got how many bits."""
        modules: list[Any] = [model.get_submodule(path) for path in self._paths]
        stored = sum(p.nbytes for m in modules for name, p in m.named_parameters() if name != "bias")
        layers = Counter(m.grid.bits for m in modules)
        return {
            "layers": len(modules),
            "weights": self._weights,
            "bits_per_weight": round(8 * stored / self._weights, 4),
            **{f"layers_{grid.bits}_bits": layers[grid.bits] for grid in self.config.grids},
        }

    def _costs(self, model: nn.Module) -> list[Tensor]:
        """Return, per layer, the bytes on each grid."""
        modules = [model.get_submodule(path) for path in self._paths]
        return [torch.tensor([stored_bytes(module, grid) for grid in self.config.grids]) for module in modules]

    def _uniform(self, model: nn.Module) -> Grid:
        """Return the largest grid that all layers can have within the budget."""
        totals = torch.stack(self._costs(model)).sum(0)
        return self.config.grids[int((totals <= self._budget).sum()) - 1]

    @property
    def _budget(self) -> int:
        """The budget in bytes."""
        if self.config.budget_mb is not None:
            return round(self.config.budget_mb * 1e6)
        return round((self.config.average_bits or 0.0) * self._weights / 8)

    def _select(self, model: nn.Module) -> list[str]:
        chosen: dict[str, None] = {}
        seen: set[int] = set()
        for path, module in packable(model, self.config.targets, self.config.ignore, self.info.name):
            if id(module) not in seen:
                seen |= {id(tied) for _, tied in sharers(model, path)}
                chosen[path] = None
        return list(chosen)


def _spend_rest_(chosen: list[int], errors: Tensor, costs: list[Tensor], budget: int) -> None:
    """Raise layers, those that err most first, by what is left of the budget: more bits do no harm."""
    left = budget - sum(int(cost[choice]) for cost, choice in zip(costs, chosen, strict=True))
    order = sorted(range(len(chosen)), key=lambda i: -float(errors[i, chosen[i]]))
    for i in order:
        affordable = int((costs[i] <= costs[i][chosen[i]] + left).sum()) - 1
        left -= int(costs[i][affordable] - costs[i][chosen[i]])
        chosen[i] = affordable


def _weights(module: Any) -> int:
    return module.rows * module.columns if isinstance(module, Packed) else module.weight.numel()

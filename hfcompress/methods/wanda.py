"""Wanda: weights that are small, or meet small inputs, become zero; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.sparsity import Sparsity
from ..modules.blockwise import walk_
from ..modules.masked import choose_sparse, row_mask, store_zeros_, zero_smallest_
from ..modules.matrix import matrix, set_matrix_
from ..ops.moments import ColumnNorms


class WandaConfig(Sparsity):
    """Settings of Wanda."""


@register
class Wanda(Method[WandaConfig]):
    """Scores a weight by |W_ij| * ‖X_j‖₂ and, in every row, sets the lowest to zero (Sun 2023, eq. 1)."""

    info = MethodInfo(
        name="wanda",
        title="Wanda",
        summary="One-shot: in every row the weights with the smallest product with their input's norm become zero.",
        category=Category.PRUNING,
        phase=Phase.SPARSITY,
        papers=("https://arxiv.org/abs/2306.11695",),
        needs=Needs(calibration=True),
        examples={"": {"sparsity": 0.5}},
    )
    Config = WandaConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers."""
        self._paths = choose_sparse(model, self.config, self.info.name)
        return self._paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Prune block by block, in place."""

        def prune(paths: list[str], inputs: ColumnNorms) -> None:
            for path in paths:
                module = model.get_submodule(path)
                weight = matrix(module)
                set_matrix_(module, weight * row_mask(weight.float().abs() * inputs.norms(), self.config))

        walk_(model, batches, self._paths, ColumnNorms, prune, self.info.title)

    def assume(self, model: nn.Module) -> None:
        """Set as many weights to zero, the smallest."""
        zero_smallest_(model, self._paths, self.config)

    def finalize(self, model: nn.Module) -> None:
        """Store the nonzero weights alone where that is smaller."""
        self._counts = store_zeros_(model, self._paths)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers, their weights, how many of those are zero, and how many layers take fewer bytes for it."""
        return self._counts

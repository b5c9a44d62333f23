"""SparseGPT: weights become zero where that hurts least, and those that stay make up for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field
from torch import Tensor, nn

from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.sparsity import Sparsity
from ..modules.blockwise import walk_
from ..modules.masked import choose_sparse, store_zeros_, zero_smallest_
from ..modules.matrix import matrix, set_matrix_
from ..ops.moments import Gram
from ..ops.obs import inverse_factor, prune


class SparseGPTConfig(Sparsity):
    """Settings of SparseGPT."""

    damping: float = Field(
        0.01, gt=0, description="Share of the mean diagonal that is added to the Hessian's diagonal."
    )


@register
class SparseGPT(Method[SparseGPTConfig]):
    """Prunes each layer by the Optimal Brain Surgeon, column by column, to keep its outputs on calibration data."""

    info = MethodInfo(
        name="sparsegpt",
        title="SparseGPT",
        summary="One-shot: prunes by second-order error and adjusts the weights that stay to keep each layer's output.",
        category=Category.PRUNING,
        phase=Phase.SPARSITY,
        papers=("https://arxiv.org/abs/2301.00774",),
        needs=Needs(calibration=True),
        examples={"": {"sparsity": 0.5}},
    )
    Config = SparseGPTConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers."""
        self._paths = choose_sparse(model, self.config, self.info.name)
        return self._paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Prune block by block, in place."""

        def compress(paths: list[str], inputs: Gram) -> None:
            factor = inverse_factor(inputs.matrix, self.config.damping)
            for path in paths:
                module = model.get_submodule(path)
                weight = matrix(module).float()
                set_matrix_(module, prune(weight, factor, density=self.config.density, pattern=self.config.pattern))

        walk_(model, batches, self._paths, Gram, compress, self.info.title)

    def assume(self, model: nn.Module) -> None:
        """Set as many weights to zero, the smallest."""
        zero_smallest_(model, self._paths, self.config)

    def finalize(self, model: nn.Module) -> None:
        """Store the nonzero weights alone where that is smaller."""
        self._counts = store_zeros_(model, self._paths)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers, their weights, how many of those are zero, and how many layers take fewer bytes for it."""
        return self._counts

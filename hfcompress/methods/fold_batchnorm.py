"""BatchNorm folded into convolutions: the same function in fewer layers."""

from __future__ import annotations

from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.position_tables import usual_image_size
from ..core.registry import register
from ..modules.batch_norm import fold_norm_, norm_pairs
from ..modules.channels import example_pixels
from ..modules.storage import Packed


class FoldBatchnormConfig(StrictModel):
    """Folding has no settings."""


@register
class FoldBatchnorm(Method[FoldBatchnormConfig]):
    """Puts scale and shift of every BatchNorm into the convolution before it (Jacob 2018, section 3.2)."""

    info = MethodInfo(
        name="fold_batchnorm",
        title="BatchNorm folding",
        summary="One-shot, exact: BatchNorms go into the convolutions before them; do it once training is over.",
        category=Category.COMPACT,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1712.05877",),
        alone=True,  # what acts on a convolution's weight would see another one afterwards
    )
    Config = FoldBatchnormConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find which convolution each BatchNorm reads; TargetError where there are none, or they can't be folded."""
        norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        if not norms:
            raise TargetError(f"fold_batchnorm: a {type(model).__name__} has no BatchNorm (nn.BatchNorm2d)")
        size = ctx.corpus.image_size() or usual_image_size(model.config)
        training = model.training
        self._pairs = norm_pairs(model.eval(), example_pixels(model, size))
        model.train(training)
        if not self._pairs:
            raise TargetError(f"fold_batchnorm: {norms[0]} and the others do not read what one convolution gives")
        for path in self._pairs.values():
            if isinstance(model.get_submodule(path), Packed):
                raise TargetError(f"fold_batchnorm: {path}: its weight is packed already; fold norms before")
        self._left = len(norms) - len(self._pairs)
        return list(self._pairs)

    def finalize(self, model: nn.Module) -> None:
        """Fold."""
        for norm, convolution in self._pairs.items():
            fold_norm_(model, norm, convolution)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return how many norms were folded, and how many are left."""
        return {"folded": len(self._pairs), "left": self._left}

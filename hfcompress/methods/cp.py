"""CP decomposition: a convolution as 1x1, a column and a row for each channel, and 1x1."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.factorization import KernelConfig
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..modules.factorized import CPConv2d
from ..modules.lowrank import Show, choose_kernels, kernel_report
from ..modules.matrix import stored
from ..modules.splitting import factorize_
from ..ops.tensors import cp, cp_product


class CPConfig(KernelConfig):
    """Settings of the CP decomposition."""

    sweeps: int = Field(50, ge=1, description="Passes of alternating least squares.")


@register
class CP(Method[CPConfig]):
    """Writes a kernel as a sum of outer products of four vectors each (Lebedev 2014)."""

    info = MethodInfo(
        name="cp",
        title="CP decomposition",
        summary="Convolutions become four: 1x1, depthwise kx1 and 1xk, 1x1, by the CP decomposition of their kernel.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=("https://arxiv.org/abs/1412.6553",),
        alone=True,
    )
    Config = CPConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the convolutions; TargetError for grouped ones, and where `keep` leaves no rank."""
        self._paths, self._seed = choose_kernels(model, self.config, self.info.name), ctx.seed
        kernels = {path: model.get_submodule(path).weight for path in self._paths}
        self._ranks = {path: self._rank(path, kernel) for path, kernel in kernels.items()}  # type: ignore[arg-type]
        self._before = sum(kernel.numel() for kernel in kernels.values())  # type: ignore[operator,misc]
        self._show = Show(model, {path: [path] for path in self._paths})
        return self._paths

    @torch.no_grad()
    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the approximated kernels at the end of the stage, so that what is evaluated is what will be stored."""
        if fraction < 1.0:
            self._show.off(model)
            return
        self._factors = {
            path: cp(stored(model.get_submodule(path)), rank, self.config.sweeps, self._seed)
            for path, rank in self._ranks.items()
        }
        self._show.on(model, {path: cp_product(*factors) for path, factors in self._factors.items()})

    def settled(self, fraction: float) -> bool:
        """Say whether kernels are cut, which they are at the end of the stage."""
        return fraction >= 1.0

    def finalize(self, model: nn.Module) -> None:
        """Put the four convolutions in place of each."""
        self._show.remove(model)
        names = ("down", "vertical", "horizontal", "up")
        for path, factors in self._factors.items():
            factorize_(model, path, CPConv2d, dict(zip(names, factors, strict=True)), rank=self._ranks[path])
        del self._factors

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return how many convolutions were split, and their weights before and after."""
        return kernel_report(model, self._paths, self._before)

    def _rank(self, path: str, kernel: Tensor) -> int:
        rank = math.floor(self.config.keep * kernel.numel() / sum(kernel.shape))
        if rank < 1:
            raise TargetError(
                f"cp.keep: {path}: not even rank 1 leaves only {self.config.keep:.0%} of its {tuple(kernel.shape)} "
                "kernel; raise it, or add the layer to `ignore`"
            )
        return rank

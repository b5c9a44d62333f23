"""Tucker decomposition: a convolution as 1x1, kxk and 1x1, narrow in between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.factorization import KernelConfig
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..modules.factorized import TuckerConv2d
from ..modules.lowrank import Show, choose_kernels, kernel_report
from ..modules.matrix import stored
from ..modules.splitting import factorize_
from ..ops.tensors import tucker, tucker_product, tucker_ranks


class TuckerConfig(KernelConfig):
    """Settings of the Tucker decomposition."""


@register
class Tucker(Method[TuckerConfig]):
    """Cuts the channels a kernel mixes to their principal ones, on both sides (Kim 2015)."""

    info = MethodInfo(
        name="tucker",
        title="Tucker decomposition",
        summary="Convolutions become three: 1x1, kxk, 1x1, by the Tucker-2 decomposition of their kernel.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=("https://arxiv.org/abs/1511.06530",),
        alone=True,
    )
    Config = TuckerConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the convolutions; TargetError for grouped ones, and where `keep` leaves no ranks."""
        self._paths = choose_kernels(model, self.config, self.info.name)
        kernels = [model.get_submodule(path).weight for path in self._paths]
        self._before = sum(kernel.numel() for kernel in kernels)  # type: ignore[operator,misc]
        self._show = Show(model, {path: [path] for path in self._paths})
        return self._paths

    @torch.no_grad()
    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the approximated kernels at the end of the stage, so that what is evaluated is what will be stored."""
        if fraction < 1.0:
            self._show.off(model)
            return
        self._factors = {path: self._split(path, stored(model.get_submodule(path))) for path in self._paths}
        self._show.on(model, {path: tucker_product(*factors) for path, factors in self._factors.items()})

    def settled(self, fraction: float) -> bool:
        """Say whether kernels are cut, which they are at the end of the stage."""
        return fraction >= 1.0

    def finalize(self, model: nn.Module) -> None:
        """Put the three convolutions in place of each."""
        self._show.remove(model)
        for path, (down, core, up) in self._factors.items():
            ranks = {"rank_in": len(down), "rank_out": len(core)}
            factorize_(model, path, TuckerConv2d, {"down": down, "core": core, "up": up}, **ranks)
        del self._factors

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return how many convolutions were split, and their weights before and after."""
        return kernel_report(model, self._paths, self._before)

    def _split(self, path: str, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, out = tucker_ranks(kernel, self.config.keep)
        if not inner:
            raise TargetError(
                f"tucker.keep: {path}: no ranks leave only {self.config.keep:.0%} of its {tuple(kernel.shape)} kernel; "
                "raise it, or add the layer to `ignore`"
            )
        return tucker(kernel, inner, out)

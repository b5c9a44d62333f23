"""Convolutions factorized into depthwise and pointwise ones, as in MobileNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import DataError, TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.targets import select
from ..modules.parametrizations import attach, find
from ..modules.separating import SeparableKernel, separable, separate_, sizes
from ..ops.separable import fit_pointwise


class DepthwiseSeparableConfig(StrictModel):
    """Settings of the factorization; train after it, or in the same stage with `fit: weights`."""

    multiplier: int = Field(1, ge=1, description="Depthwise filters per input channel (MobileNet: 1).")
    fit: Literal["data", "weights"] = Field(
        "data",
        description="How the two are chosen. weights: nearest to the kernel, by SVD of each input channel's filters; "
        "data: then the pointwise one once more, by least squares on what the layer gives on calibration data.",
    )
    ridge: float = Field(
        1e-3, gt=0, description="For `data`: pull towards the SVD, relative to the inputs' mean square."
    )
    examples: int = Field(256, ge=1, description="Calibration examples to read, where the caller provides that many.")
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names; default: every convolution larger than 1 x 1 that it "
        "makes smaller.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")


@register
class DepthwiseSeparable(Method[DepthwiseSeparableConfig]):
    """Replaces k x k convolutions by one per channel and one of 1 x 1 over channels (Howard 2017)."""

    info = MethodInfo(
        name="depthwise_separable",
        title="Depthwise separable convolutions",
        summary="Convolutions become a depthwise and a pointwise one (MobileNet), by SVD and least squares.",
        category=Category.COMPACT,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1704.04861", "https://arxiv.org/abs/1405.3866"),
        alone=True,  # the layers it leaves have other paths
    )
    Config = DepthwiseSeparableConfig

    @property
    def needs(self) -> Needs:
        """Only fitting on data needs data."""
        return Needs(calibration=self.config.fit == "data")

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off; TargetError for a convolution that would not become smaller."""
        self._paths = self._select(model)
        counts = [sizes(model.get_submodule(path), self.config.multiplier) for path in self._paths]
        self._counts = [sum(column) for column in zip(*counts, strict=True)]
        for path in self._paths:
            weight: Any = model.get_submodule(path).weight
            attach(model, path, SeparableKernel(weight, self.config.multiplier))
        return self._paths

    @torch.no_grad()
    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Refit every pointwise kernel on what its layer reads and gives in the model as it was."""
        sums: dict[str, list[Tensor]] = {}

        def record(path: str, layer: Any, x: Tensor, y: Tensor) -> None:
            kernel, channels = find(model, path, SeparableKernel), layer.in_channels
            inner = F.conv2d(x, kernel.depthwise, None, layer.stride, layer.padding, layer.dilation, channels)
            wanted = y if layer.bias is None else y - layer.bias.view(-1, 1, 1)
            d, y = (t.transpose(0, 1).flatten(1).double().cpu() for t in (inner, wanted))
            both = [d @ d.T, d @ y.T]
            sums[path] = [a + b for a, b in zip(sums[path], both, strict=True)] if path in sums else both

        def hook(path: str) -> Any:
            return lambda layer, args, output: record(path, layer, args[0], output)

        hooks = [model.get_submodule(path).register_forward_hook(hook(path)) for path in self._paths]
        try:
            for batch in batches:
                model(**batch)
        finally:
            for handle in hooks:
                handle.remove()
        if missed := [path for path in self._paths if path not in sums]:
            raise DataError(f"{missed[0]} is never reached by the calibration batches")
        for path, (moments, products) in sums.items():
            kernel = find(model, path, SeparableKernel)
            kernel.pointwise.copy_(fit_pointwise(moments, products, kernel.pointwise, self.config.ridge))

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the model with the pairs from the first step on, which then train."""
        for path in self._paths:
            find(model, path, SeparableKernel).on.fill_(fraction > 0)

    def finalize(self, model: nn.Module) -> None:
        """Put the pairs in the places of the convolutions."""
        for path in self._paths:
            separate_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of convolutions, and their weights before and after."""
        before, after = self._counts
        return {"convolutions": len(self._paths), "weights_before": before, "weights_after": after}

    def _select(self, model: nn.Module) -> list[str]:
        config, every = self.config, [(p, m) for p, m in model.named_modules() if separable(m)]
        if not every:
            raise TargetError(f"depthwise_separable: a {type(model).__name__} has no convolution larger than 1 x 1")
        chosen = select(every, config.targets, config.ignore, "depthwise_separable.targets")
        found = []
        for path, module in chosen:
            before, after = sizes(module, config.multiplier)
            if after < before:
                found.append(path)
            elif config.targets is not None:
                raise TargetError(
                    f"{path}: {before:,} weights would become {after:,}; lower depthwise_separable.multiplier "
                    f"({config.multiplier}) or leave the layer out"
                )
        if not found:
            raise TargetError(
                f"depthwise_separable.multiplier: with {config.multiplier} no convolution becomes smaller; lower it"
            )
        return found

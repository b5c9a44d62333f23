"""Depthwise separable convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """A convolution of every channel by itself, then one of 1 x 1 over all of them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        multiplier: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.multiplier = in_channels, out_channels, multiplier
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        inner = in_channels * multiplier
        where: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        self.depthwise = nn.Conv2d(in_channels, inner, kernel_size, groups=in_channels, bias=False, **where)
        self.pointwise = nn.Conv2d(inner, out_channels, 1, bias=bias)

    @property
    def weight(self) -> Tensor:
        """The pointwise kernel: models ask a convolution's weight for its dtype and device."""
        return self.pointwise.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, which the pointwise convolution adds."""
        return self.pointwise.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, …)."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out

"""A convolution as one over each channel and one over channels (MobileNet, Howard 2017, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def separate(kernel: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the depthwise (in * m, 1, h, w) and pointwise (out, in * m, 1, 1) kernels whose product is nearest.

    kernel: (out, in, h, w); m, the multiplier: depthwise filters per input channel, at most h * w and `out`. Each input
    channel's filters (out, h * w) become a matrix of rank m by SVD, which no other pair is nearer to.
    """
    out, channels, height, width = kernel.shape
    u, s, v = torch.linalg.svd(kernel.detach().float().transpose(0, 1).flatten(2), full_matrices=False)
    root = s[:, :multiplier].sqrt()
    depthwise = (root.unsqueeze(-1) * v[:, :multiplier]).reshape(channels * multiplier, 1, height, width)
    pointwise = (u[:, :, :multiplier] * root.unsqueeze(1)).transpose(0, 1).reshape(out, -1, 1, 1)
    return depthwise, pointwise


def compose(depthwise: Tensor, pointwise: Tensor, channels: int) -> Tensor:
    """Return the kernel (out, in, h, w) that the two, shaped as `separate` returns them, amount to; channels: in."""
    filters = depthwise.view(channels, -1, *depthwise.shape[2:])
    mixing = pointwise.view(len(pointwise), channels, -1)
    return torch.einsum("oim,imhw->oihw", mixing, filters)


def fit_pointwise(moments: Tensor, products: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Return the pointwise kernel (out, in * m, 1, 1) of least squared error, pulled towards `start`.

    moments: (in * m, in * m) sum of d d^T over positions, d what the depthwise kernel gives; products: (in * m, out)
    sum of d y^T, y the outputs wanted. ridge: of the pull, relative to the mean square of d.
    """
    size = len(moments)
    pull = ridge * moments.diagonal().mean().clamp_min(1e-12) * torch.eye(size, dtype=moments.dtype)
    wanted = products + pull @ start.flatten(1).T.to(products)
    return torch.linalg.solve(moments + pull, wanted).T.reshape(start.shape).to(start)

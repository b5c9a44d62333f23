"""Activation ranges, and moving the difficulty of rounding them into the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOKENS_PER_BATCH, TOKENS = 16, 512  # kept as they are, to choose a range by
_SHRINK = [1 - step / 32 for step in range(25)]
_SMALLEST = 1e-5


class InputRange:
    """The lowest and highest value of each column of a layer's inputs, and a sample of tokens."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.low = torch.full((columns,), torch.inf, device=device)
        self.high = torch.full((columns,), -torch.inf, device=device)
        self.sample: list[Tensor] = []
        self._kept = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (tokens, columns)."""
        x = x.float()
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        if self._kept < TOKENS:
            self.sample.append(x[:: max(1, len(x) // TOKENS_PER_BATCH)])
            self._kept += len(self.sample[-1])

    def clipped(self, low: float, high: float) -> InputRange:
        """Return the same as if every value had been clipped to [low, high] before."""
        made = InputRange(len(self.low), self.low.device)
        made.low, made.high = self.low.clamp(low, high), self.high.clamp(low, high)
        made.sample = [x.clamp(low, high) for x in self.sample]
        return made

    def largest(self) -> Tensor:
        """Return the largest magnitude of each column, (columns,)."""
        return torch.maximum(self.low.abs(), self.high.abs())


@torch.no_grad()
def smoothing(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Return s (columns,): inputs divided by it, and the columns of the weights times it, are both easy to round.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (SmoothQuant, Xiao 2022, eq. 4). largest: max|X_j|, (columns,); weights:
    those that read the inputs, each (rows, columns). A column without inputs or weights keeps 1.
    """
    weight = torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)
    s = largest.clamp(min=_SMALLEST) ** alpha / weight.clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((largest > 0) & (weight > 0), s.clamp(min=_SMALLEST), 1.0)


@torch.no_grad()
def input_grid(inputs: InputRange, s: Tensor, bits: int, *, search: bool) -> tuple[Tensor, int]:
    """Return (step (1,), zero point) of the grid for inputs divided by `s`.

    It spans all values seen; with `search`, the share of that span with the smallest squared error on the sample.
    """
    low, high = (inputs.low / s).min().clamp(max=0), (inputs.high / s).max().clamp(min=0)
    last = 2**bits - 1
    sample = torch.cat(inputs.sample) / s
    best, found = torch.inf, _grid(low, high, last)
    for share in _SHRINK if search else ():
        step, zero = _grid(low * share, high * share, last)
        error = float((((sample / step).round() + zero).clamp(0, last) - zero).mul(step).sub(sample).square().mean())
        if error < best:
            best, found = error, (step, zero)
    return found


def _grid(low: Tensor, high: Tensor, last: int) -> tuple[Tensor, int]:
    step = ((high - low) / last).clamp(min=1e-12).to(torch.bfloat16).float()
    return step.reshape(1), int((-low / step).round().clamp(0, last))

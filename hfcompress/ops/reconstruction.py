"""Making up for removed columns of a layer: what is left is fitted, by least squares, to what the whole layer gave."""

from __future__ import annotations

import torch
from torch import Tensor


class InputMoments:
    """Z^T Z over all tokens, Z = [X, 1] the layer's inputs and the constant its bias multiplies, in float32."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.matrix = torch.zeros(columns + 1, columns + 1, device=device)

    def add(self, x: Tensor) -> None:
        """Take in inputs (tokens, columns)."""
        x = x.float()
        self.matrix[:-1, :-1].addmm_(x.T, x)
        sums = x.sum(0)
        self.matrix[-1, :-1] += sums
        self.matrix[:-1, -1] += sums
        self.matrix[-1, -1] += len(x)


def refit(
    weight: Tensor, bias: Tensor | None, keep: Tensor, moments: Tensor, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """Return the weight, zero in removed columns, and bias that give closest to the same outputs.

    Minimizes ||Z W^T - Z W'^T||^2 + lambda ||W' - W||^2 over the kept columns and the bias: with D the removed ones,
    W'_K = W_K + (G_KK + lambda I)^-1 G_KD W_D, G the `moments` (columns + 1, columns + 1). lambda is `ridge` times the
    mean of G's diagonal over kept columns; the bias is free. weight: (rows, columns); bias: (rows,) or None; keep:
    (columns,) boolean.
    """
    kept, gone = keep.nonzero().flatten(), (~keep).nonzero().flatten()
    free = kept if bias is None else torch.cat([kept, kept.new_tensor([len(keep)])])
    inner = moments[free][:, free].double()
    damping = torch.full_like(inner.diagonal(), ridge * float(inner.diagonal()[: len(kept)].mean()))
    damping[len(kept) :] = 0
    inner.diagonal().add_(damping + torch.finfo(torch.float32).tiny)
    lost = moments[free][:, gone].double() @ weight[:, gone].double().T
    change = torch.linalg.solve(inner, lost).T.float()
    new = torch.zeros_like(weight)
    new[:, kept] = (weight[:, kept].float() + change[:, : len(kept)]).to(weight.dtype)
    return new, None if bias is None else (bias.float() + change[:, -1]).to(bias.dtype)


def rescale(weight: Tensor, keep: Tensor, size: int, moments: Tensor, ridge: float) -> Tensor:
    """Return the weight with one factor per kept group of `size` columns, zero in the removed ones (Kwon 2022, 5.3).

    The factors m minimize ||sum_g m_g X_g W_g^T - X W^T||^2 + lambda ||m - 1||^2, lambda being `ridge` times the mean
    diagonal of the normal equations. weight: (rows, groups * size); keep: (groups,) boolean; moments as in `refit`.
    """
    groups = len(keep)
    products = weight.float().T @ weight.float() * moments[:-1, :-1]
    normal = products.view(groups, size, groups, size).sum((1, 3)).double()
    inner = normal[keep][:, keep]
    inner.diagonal().add_(ridge * float(inner.diagonal().mean()) + torch.finfo(torch.float32).tiny)
    factors = torch.zeros(groups, dtype=torch.float64, device=weight.device)
    factors[keep] = 1 + torch.linalg.solve(inner, normal[keep][:, ~keep].sum(1))
    return weight * factors.repeat_interleave(size).to(weight.dtype)

"""Decompositions of a convolution's kernel (out, in, height, width): Tucker over its channels, CP over all four."""

from __future__ import annotations

import torch
from torch import Tensor

_SWEEPS = 5  # of alternating least squares after the first guess, which is close already


def tucker_ranks(kernel: Tensor, keep: float) -> tuple[int, int]:
    """Return (rank in, rank out) of least error whose factors hold at most `keep` of the kernel's numbers.

    The error is the sum of the squared singular values cut from either unfolding, which bounds that of the Tucker
    decomposition (De Lathauwer 2000, property 10). (0, 0) when no ranks are that small.
    """
    rows, columns, *window = kernel.shape
    size = window[0] * window[1]
    tails = [_tail(kernel, dim) for dim in (0, 1)]  # by rank, from 1 on
    out, inner = torch.arange(1, len(tails[0]) + 1)[:, None], torch.arange(1, len(tails[1]) + 1)[None]
    cost = columns * inner + inner * out * size + rows * out
    error = tails[0][:, None] + tails[1][None]
    error = error.masked_fill((cost > keep * kernel.numel()).to(error.device), torch.inf)
    if not bool(error.isfinite().any()):
        return 0, 0
    best = int(error.argmin())
    return best % len(tails[1]) + 1, best // len(tails[1]) + 1


def tucker(kernel: Tensor, rank_in: int, rank_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (down, core, up) of the Tucker-2 decomposition: kernel ~ up core down, of shapes of convolutions.

    down: (rank_in, in, 1, 1). core: (rank_out, rank_in, height, width). up: (out, rank_out, 1, 1). By the higher-order
    SVD, improved by orthogonal iteration (HOOI, De Lathauwer 2000b).
    """
    wide = kernel.double()
    inner = _basis(wide, 1, rank_in)
    for _ in range(1 + _SWEEPS):
        out = _basis(torch.einsum("oihw,ir->orhw", wide, inner), 0, rank_out)
        inner = _basis(torch.einsum("oihw,or->rihw", wide, out), 1, rank_in)
    core = torch.einsum("oihw,or,is->rshw", wide, out, inner)
    return inner.T[:, :, None, None], core, out[:, :, None, None]


def tucker_product(down: Tensor, core: Tensor, up: Tensor) -> Tensor:
    """Return the kernel the three convolutions make together."""
    return torch.einsum("or,rshw,si->oihw", up[:, :, 0, 0], core, down[:, :, 0, 0])


def cp(kernel: Tensor, rank: int, sweeps: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (down, vertical, horizontal, up) of the CP decomposition, of shapes of convolutions.

    down: (rank, in, 1, 1). vertical: (rank, 1, height, 1). horizontal: (rank, 1, 1, width). up: (out, rank, 1, 1). By
    alternating least squares from the kernel's singular vectors, filled up with random ones (Kolda 2009, figure 3.3).
    """
    wide = kernel.double()
    generator = torch.Generator().manual_seed(seed)
    factors = [_start(wide, dim, rank, generator) for dim in range(4)]
    for _ in range(sweeps):
        for dim in range(4):
            factors[dim] = _solve(wide, factors, dim)
            factors = _balanced(factors, dim)
    up, down, vertical, horizontal = (f for f in factors)
    sizes = [f.norm(dim=0).clamp(min=1e-30) for f in factors]
    even = torch.stack(sizes).prod(0) ** 0.25  # each component's size divided evenly over the four
    up, down, vertical, horizontal = (
        f / s * even for f, s in zip((up, down, vertical, horizontal), sizes, strict=True)
    )
    return (
        down.T[:, :, None, None],
        vertical.T[:, None, :, None],
        horizontal.T[:, None, None, :],
        up[:, :, None, None],
    )


def cp_product(down: Tensor, vertical: Tensor, horizontal: Tensor, up: Tensor) -> Tensor:
    """Return the kernel the four convolutions make together."""
    return torch.einsum(
        "or,ri,rh,rw->oihw", up[:, :, 0, 0], down[:, :, 0, 0], vertical[:, 0, :, 0], horizontal[:, 0, 0, :]
    )


def _unfold(kernel: Tensor, dim: int) -> Tensor:
    return kernel.movedim(dim, 0).flatten(1)


def _basis(kernel: Tensor, dim: int, rank: int) -> Tensor:
    return torch.linalg.svd(_unfold(kernel, dim), full_matrices=False)[0][:, :rank]


def _tail(kernel: Tensor, dim: int) -> Tensor:
    """Return, by rank from 1 on, the squared singular values of the unfolding that this rank cuts off."""
    squares = torch.linalg.svdvals(_unfold(kernel.double(), dim)).square()
    return squares.sum() - squares.cumsum(0)


def _start(kernel: Tensor, dim: int, rank: int, generator: torch.Generator) -> Tensor:
    basis = _basis(kernel, dim, rank)
    more = torch.randn(len(basis), rank - basis.shape[1], generator=generator, dtype=torch.float64)
    return torch.cat([basis, more.to(kernel.device)], 1)


def _solve(kernel: Tensor, factors: list[Tensor], dim: int) -> Tensor:
    """Return the factor of least squared error with the others fixed, pulled a little to zero: CP may diverge."""
    letters = "oihw"
    others = [i for i in range(4) if i != dim]
    terms = ",".join(f"{letters[i]}r" for i in others)
    projected = torch.einsum(f"{letters},{terms}->{letters[dim]}r", kernel, *(factors[i] for i in others))
    gram = torch.stack([factors[i].T @ factors[i] for i in others]).prod(0)
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.linalg.solve(gram, projected.T).T


def _balanced(factors: list[Tensor], dim: int) -> list[Tensor]:
    """Return the factors with unit columns but in `dim`, so that no Gram matrix grows out of bounds."""
    sizes = [f.norm(dim=0).clamp(min=1e-30) if i != dim else torch.ones_like(f[0]) for i, f in enumerate(factors)]
    scale = torch.stack(sizes).prod(0)
    return [f * scale if i == dim else f / s for i, (f, s) in enumerate(zip(factors, sizes, strict=True))]

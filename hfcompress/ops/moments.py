"""What calibrated methods need to know of a layer's inputs, summed over tokens in float32 as they stream past."""

from __future__ import annotations

import torch
from torch import Tensor


class ColumnNorms:
    """The Euclidean norm of every input column over all tokens: ‖X_j‖₂ of Wanda (Sun 2023, eq. 1)."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self._squares = torch.zeros(columns, device=device)

    def add(self, x: Tensor) -> None:
        """Take in inputs (tokens, columns)."""
        self._squares += x.float().square().sum(0)

    def norms(self) -> Tensor:
        """Return the norms, (columns,)."""
        return self._squares.sqrt()


class Gram:
    """X^T X over all tokens: up to a factor the Hessian of a layer's squared output error in any row of its weight."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.matrix = torch.zeros(columns, columns, device=device)

    def add(self, x: Tensor) -> None:
        """Take in inputs (tokens, columns)."""
        x = x.float()
        self.matrix.addmm_(x.T, x)

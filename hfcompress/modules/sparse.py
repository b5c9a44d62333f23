"""Stand-in."""

from torch import nn


def pack_sparse_(model: nn.Module, path: str) -> bool:
    return False

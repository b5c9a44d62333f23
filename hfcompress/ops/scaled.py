"""Numbers in 8 bits that stand for float32 ones exactly: what images are before they are normalized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def scaled(whole: Array, scale: Array, offset: Array) -> Array:
    """Return ``whole * scale - offset`` in float32, rounded after each of the two, so that all who compute it agree."""
    values = whole.astype(np.float32)
    values *= scale
    values -= offset
    return values


@dataclass(frozen=True)
class Scaled:
    """Whole numbers (uint8) and what makes float32 values of them: `scale` and `offset`, broadcast against them."""

    whole: Array
    scale: Array
    offset: Array

    def values(self) -> Array:
        """Return the values that are meant."""
        return scaled(self.whole, self.scale, self.offset)

"""One file per method; importing this package fills the registry."""

from . import distill, movement, positions, quantize_weights, vocabulary

__all__ = ["distill", "movement", "positions", "quantize_weights", "vocabulary"]

"""One file per method; importing this package fills the registry."""

from . import distill, ffn, heads, layers, movement, positions, quantize_weights, vocabulary

__all__ = ["distill", "ffn", "heads", "layers", "movement", "positions", "quantize_weights", "vocabulary"]

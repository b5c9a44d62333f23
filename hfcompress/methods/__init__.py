"""One file per method; importing this package fills the registry."""

from . import bitsandbytes, distill, ffn, heads, layers, movement, positions, quantize_weights, vocabulary

__all__ = [
    "bitsandbytes",
    "distill",
    "ffn",
    "heads",
    "layers",
    "movement",
    "positions",
    "quantize_weights",
    "vocabulary",
]

"""One file per method; importing this package fills the registry."""

from . import distill, ffn, heads, layers, movement, quantize_weights

__all__ = ["distill", "ffn", "heads", "layers", "movement", "quantize_weights"]

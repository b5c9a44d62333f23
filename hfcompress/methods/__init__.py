"""One file per method; importing this package fills the registry."""

from . import distill, layers, movement, quantize_weights

__all__ = ["distill", "layers", "movement", "quantize_weights"]

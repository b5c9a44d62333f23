"""One file per method; importing this package fills the registry."""

from . import distill, movement, quantize_weights

__all__ = ["distill", "movement", "quantize_weights"]

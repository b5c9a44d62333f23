"""One file per method; importing this package fills the registry."""

from . import distill, magnitude, movement, n_m, quantize_weights, sparsegpt, wanda

__all__ = ["distill", "magnitude", "movement", "n_m", "quantize_weights", "sparsegpt", "wanda"]

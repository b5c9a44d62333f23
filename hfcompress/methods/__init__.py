"""One file per method; importing this package fills the registry."""

from . import bitsandbytes, distill, movement, quantize_weights

__all__ = ["bitsandbytes", "distill", "movement", "quantize_weights"]

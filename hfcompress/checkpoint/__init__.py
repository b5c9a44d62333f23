"""Saving and loading compressed models; importing this package registers the loader with transformers.

It also lets peft refuse to merge adapters into weights that such a model shares between layers.
"""

from ..modules.exact_merges import guard_merges
from .load import load_model
from .loader import HFCompressConfig, HFCompressQuantizer, refuse_untrainable
from .memory import own_memory_, release_
from .save import attach_structure_, is_stock, is_whole, save_checkpoint, share_weights_

guard_merges()

__all__ = [
    "HFCompressConfig",
    "HFCompressQuantizer",
    "attach_structure_",
    "is_stock",
    "is_whole",
    "load_model",
    "own_memory_",
    "refuse_untrainable",
    "release_",
    "save_checkpoint",
    "share_weights_",
]

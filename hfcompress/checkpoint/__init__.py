"""Saving and loading compressed models; importing this package registers the loader with transformers."""

from .load import load_model, release_
from .loader import HFCompressConfig, HFCompressQuantizer
from .save import attach_structure_, save_checkpoint

__all__ = ["HFCompressConfig", "HFCompressQuantizer", "attach_structure_", "load_model", "release_", "save_checkpoint"]

"""Tells transformers of our checkpoints without importing it: `import hfcompress` costs nothing until one is loaded.

transformers finds a checkpoint's loader in two mappings of `transformers.quantizers.auto`, whose import takes seconds
(torch among them). They are filled at once where that module is there, else right after it is imported, with stand-ins
that import the loader when transformers first calls them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from .core.after_import import after_import

QUANT_METHOD = "hfcompress"
HOME = "transformers.quantizers.auto"


def _loader() -> Any:
    """Return the module of the real classes; importing it puts them in place of the stand-ins."""
    return import_module("hfcompress.checkpoint.loader")


class ConfigStandIn:
    """Gives HFCompressConfig for what stands in `config.json`."""

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the HFCompressConfig of a checkpoint's `quantization_config`."""
        return _loader().HFCompressConfig.from_dict(*args, **kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _loader().HFCompressConfig(*args, **kwargs)


class QuantizerStandIn:
    """Gives an HFCompressQuantizer when it is called."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _loader().HFCompressQuantizer(*args, **kwargs)


def fill_(home: ModuleType) -> None:
    """Put the stand-ins, or the real classes where they have been imported, into the mappings of transformers."""
    real: Any = sys.modules.get("hfcompress.checkpoint.loader")
    home.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = getattr(real, "HFCompressConfig", ConfigStandIn)
    home.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = getattr(real, "HFCompressQuantizer", QuantizerStandIn)


def register() -> None:
    """Let transformers know of our checkpoints, now or as soon as it is imported; doing it twice changes nothing."""
    after_import(HOME, fill_)

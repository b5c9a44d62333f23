"""Tells transformers of our checkpoints without importing it: `import hfcompress` costs nothing until one is loaded.

transformers finds a checkpoint's loader in two mappings of `transformers.quantizers.auto`, whose import takes seconds
(torch among them). Where that module is there, they are filled at once; else Python's import system is asked to fill
them right after it has run, which is the standard hook for this: a finder in `sys.meta_path`. What is put into them are
stand-ins that import the loader when transformers first calls them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


class _FillingLoader(Loader):
    """Runs a module as its own loader does, and fills its mappings then."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        fill_(module)

    def __getattr__(self, name: str) -> Any:  # such as get_source, which tracebacks read
        return getattr(self._own, name)


class _Finder(MetaPathFinder):
    """Finds one module, as the other finders do, and has its mappings filled once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != HOME:
            return None
        for finder in sys.meta_path:
            found = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if found is not None and found.loader is not None:
                found.loader = _FillingLoader(found.loader)
                return found
        return None


def register() -> None:
    """Let transformers know of our checkpoints, now or as soon as it is imported; doing it twice changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if HOME in sys.modules:
        fill_(import_module(HOME))  # waits where another thread is just importing it

"""torch.compile: what it needs here, and a model in a form that it makes one graph of."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

SHAPES = 1024  # graphs that are made of a model; more than anyone times in one process


def lacks_compiler() -> str:
    """Say what torch.compile misses to make code for the processor, and what mends it; nothing when all is there."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler} was not found); run: apt install g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h was not found); run: apt install python3-dev"
    return ""


def compiled(model: Any, *, dynamic: bool) -> Any:
    """Return the model compiled: for every shape when it first comes, or (`dynamic`) once with sizes as variables.

    Packed layers are widened before: they look at whether their weights changed, which would split the graph at each.
    """
    import torch

    from ..core.foreign_internals import compiler_config

    # Beyond a limit torch runs the model as it is, and says so to nobody; models of one class share the count.
    config = compiler_config()
    config.recompile_limit = config.accumulated_recompile_limit = SHAPES
    config.fail_on_recompile_limit_hit = True
    return torch.compile(widened_(model), dynamic=dynamic)


def widened_(model: Any) -> Any:
    """Replace packed layers by plain ones, in place, which round their inputs where the packed ones did."""
    from ..modules.packed import dequantize_
    from ..modules.storage import Packed

    grids = {path: m.inputs() for path, m in model.named_modules() if isinstance(m, Packed)}
    dequantize_(model)
    for path, grid in grids.items():
        if grid is not None:
            model.get_submodule(path).register_forward_pre_hook(_rounding(*grid))
    return model


def _rounding(step: Any, zero: int, bits: int) -> Any:
    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        scale = step.to(args[0].dtype)
        return ((args[0] / scale).round().clamp(-zero, 2**bits - 1 - zero) * scale, *args[1:])

    return hook

"""What the numbers depend on besides the model: versions, processor, threads; nothing about whose machine it is."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from typing import Any

import torch

from ..core.machine import cpu_info
from ..export.cpu import cpu_flags
from .energy import energy

PACKAGES = ("hfcompress", "torch", "transformers", "onnxruntime", "onnx", "openvino", "nncf", "numpy")
OPTIMUM = "optimum.onnxruntime"  # its classes load the exports; a release may be installed and not fit transformers
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


def environment(threads: int) -> dict[str, Any]:
    """Return versions, operating system, processor, cores, relevant CPU flags and the threads used."""
    flags = cpu_flags()
    return {
        "python": platform.python_version(),
        **{package: version for package in PACKAGES if (version := _version(package))},
        **_optimum(),
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_info("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "threads": threads,
        "energy": energy(),
    }


def _optimum() -> dict[str, str]:
    """Return the version of optimum's ONNX Runtime classes where they can be imported."""
    try:
        importlib.import_module(OPTIMUM)
    except (ImportError, RuntimeError):  # transformers' lazy modules turn one into the other
        return {}
    return {OPTIMUM: _version("optimum-onnx") or "unknown"}


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # which says the build too
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""What the numbers depend on besides the model: versions, processor, threads; nothing about whose machine it is."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from ..core.machine import cpu_info
from ..export.cpu import cpu_flags

PACKAGES = ("hfcompress", "torch", "transformers", "onnxruntime", "onnx", "openvino", "nncf", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


def environment(threads: int) -> dict[str, Any]:
    """Return versions, operating system, processor, cores, relevant CPU flags and the threads used."""
    flags = cpu_flags()
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_info("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

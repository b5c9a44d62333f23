"""What this machine is."""

from __future__ import annotations

from pathlib import Path


def cpu_info(key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo, empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")

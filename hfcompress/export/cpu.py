"""What this processor can do."""

from __future__ import annotations

from pathlib import Path


def cpu_info(key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo, empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def cpu_flags() -> set[str]:
    """Return the x86 feature flags of this CPU, empty where the system does not tell."""
    return set(cpu_info("flags").split())


def needs_reduced_range() -> bool:
    """Say whether int8 products can overflow 16 bits here: x86 without VNNI adds pairs of them with saturation."""
    flags = cpu_flags()
    return bool(flags) and not any("vnni" in flag for flag in flags)

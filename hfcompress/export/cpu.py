"""What this processor can do."""

from __future__ import annotations

from ..core.machine import cpu_info


def cpu_flags() -> set[str]:
    """Return the x86 feature flags of this CPU, empty where the system does not tell."""
    return set(cpu_info("flags").split())


def needs_reduced_range() -> bool:
    """Say whether int8 products can overflow 16 bits here: x86 without VNNI adds pairs of them with saturation."""
    flags = cpu_flags()
    return bool(flags) and not any("vnni" in flag for flag in flags)

"""Energy, from the processor's own counter read through codecarbon; where there is none, said to be absent.

An estimate from the processor's rated power, codecarbon's way out, would be time again under another name.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
JOULES = 3.6e6  # of a kilowatt hour
SECONDS = 3.0  # that a model runs for its energy to be counted: the counter moves a thousand times a second


def why_absent(counters: Path | None = None) -> str | None:
    """Return why energy is not measured on this machine, in words, or None where it is."""
    found = sorted((counters or COUNTERS).glob("*/energy_uj"))
    if not found:
        return "this machine shows no energy counter (RAPL)"
    try:
        found[0].read_text(encoding="ascii")
    except OSError:
        return "the processor's energy counter may not be read by this user"
    if importlib.util.find_spec("codecarbon") is None:
        return (
            'codecarbon, which reads the processor\'s counter, is not installed; run: pip install "hfcompress[energy]"'
        )
    from codecarbon.core.cpu import is_rapl_available

    if not is_rapl_available():  # it would estimate instead, and say so in a log only
        return "codecarbon does not find the processor's energy counter"
    return None


def energy(counters: Path | None = None) -> str:
    """Say how energy was measured, or that it was not, and why."""
    absent = why_absent(counters)
    if absent:
        return f"not measured: {absent}"
    return "of the whole processor (RAPL, read by codecarbon): idle power and what else runs included"


def joules(work: Callable[[], int]) -> float:
    """Let `work` run and return the energy in joules of one of the passes it says it made.

    Of processor and graphics cards: memory is left out, for codecarbon estimates it.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own log_level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Energy only: the country decides nothing but emissions, and has to be given for nothing to be asked online.
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            measure_power_secs=1,
            tracking_mode="machine",
            save_to_file=False,
            allow_multiple_runs=True,
            log_level="critical",
        )
        tracker.start()
        try:
            passes = work()
        finally:
            tracker.stop()
    found = tracker.final_emissions_data
    return float(found.cpu_energy + found.gpu_energy) * JOULES / passes

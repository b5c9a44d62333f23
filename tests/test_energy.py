"""Energy: of a pass where the machine counts it, and never an estimate."""

from __future__ import annotations

import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

from test_card import make_result
from tiny import make

from hfcompress.checkpoint import save_checkpoint
from hfcompress.export.runtime import Source
from hfcompress.measure.bench import Bench, Settings, bench
from hfcompress.measure.energy import energy
from hfcompress.measure.environment import environment
from hfcompress.measure.workloads import Shape
from hfcompress.publish.rows import table
from hfcompress.run.bench_rows import bench_records, bench_rows


class Tracker:
    """Codecarbon's, of which a watt goes into the processor and half of one into a graphics card."""

    running: ClassVar[list[bool]] = []

    def __init__(self, **settings):
        assert settings["save_to_file"] is False and settings["country_iso_code"]

    def start(self):
        self.running.append(True)
        self.started = time.perf_counter()

    def stop(self):
        self.running.pop()
        hours = (time.perf_counter() - self.started) / 3600
        self.final_emissions_data = SimpleNamespace(cpu_energy=hours / 1e3, gpu_energy=hours / 2e3, ram_energy=9.0)


def test_energy_is_that_of_a_pass_where_the_machine_counts_it(tmp_path, monkeypatch):
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1")
    fake = ModuleType("codecarbon")
    fake.OfflineEmissionsTracker, fake.__spec__ = Tracker, ModuleSpec("codecarbon", None)
    monkeypatch.setitem(sys.modules, "codecarbon", fake)
    monkeypatch.setitem(sys.modules, "codecarbon.core", ModuleType("codecarbon.core"))
    seen = ModuleType("codecarbon.core.cpu")
    monkeypatch.setitem(sys.modules, "codecarbon.core.cpu", seen)
    monkeypatch.setattr("hfcompress.measure.energy.COUNTERS", tmp_path)
    monkeypatch.setattr("hfcompress.measure.opening.SECONDS", 0.2)
    seen.is_rapl_available = lambda: False
    assert energy() == "not measured: codecarbon does not find the processor's energy counter"
    seen.is_rapl_available = lambda: True
    assert energy().startswith("of the whole processor") and energy() == environment(1)["energy"]
    save_checkpoint(make("bert"), tmp_path / "model")
    source = {"a": Source(str(tmp_path / "model"))}
    settings = Settings("AutoModelForSequenceClassification", [Shape(1, 8), Shape(4, 8)], ["pytorch"], 1, 1, 0.1)
    found = bench(source, settings).models["a"]
    seconds = found.latency[0].p50_ms / 1000  # of a pass, at one watt and a half
    assert 0.2 * seconds < found.energy_j["pytorch"] / 1.5 < 5 * seconds and not Tracker.running
    note = str(bench_rows(Bench({"a": found})).caption)
    assert f"a pass at the smallest shape: pytorch {1000 * found.energy_j['pytorch']:.1f} mJ" in note
    assert bench_records({1: Bench({"a": found})})["rows"][0]["energy_j"] == found.energy_j["pytorch"]


def test_the_card_has_a_row_of_energy_only_where_it_was_measured():
    plain = make_result()
    assert not any("Energy" in row.name for row in table(plain))
    spent = {side: getattr(plain, side).model_copy(update={"energy_j": {"pytorch": joules}})
             for side, joules in (("baseline", 0.12), ("compressed", 0.03))}  # fmt: skip
    (row,) = (row for row in table(plain.model_copy(update=spent)) if "Energy" in row.name)
    assert (row.before, row.after) == ("120 mJ", "30.0 mJ") and "4.00x" in row.change

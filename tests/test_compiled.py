"""torch.compile as an engine: one graph per shape, the same numbers, and what it needs is asked for first."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from test_calibrated_engines import arrays, examples, packed

from hfcompress import SmoothQuantConfig, compress
from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import ExportError
from hfcompress.export import compiled
from hfcompress.export.inputs import example_inputs
from hfcompress.export.runtime import Source, open_engine, require_engine
from hfcompress.measure.worker import warm_up
from hfcompress.ops.quantization import Grid
from hfcompress.run import doctor
from hfcompress.run.benching import default_engines

TEXT, NAME = "AutoModelForSequenceClassification", "pytorch-compile"


@pytest.fixture
def graphs(monkeypatch):
    """Have graphs counted instead of translated, which takes a compiler a minute."""
    seen, real = [], torch.compile

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **more: real(model, backend=backend, **more))
    yield seen
    torch._dynamo.reset()


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("rounds_inputs", [False, True])
def test_every_shape_is_one_graph_with_the_numbers_of_the_model(graphs, rounds_inputs, tmp_path):
    model = packed("bert", None if rounds_inputs else Grid(8))
    if rounds_inputs:
        batches = [{k: torch.from_numpy(v) for k, v in e.items()} for e in examples(model)]
        model = compress(model, SmoothQuantConfig(), calibration=batches)
    save_checkpoint(model, tmp_path)
    runs = {any_shape: open_engine(NAME, Source(str(tmp_path)), 1, TEXT, any_shape=any_shape) for any_shape in (0, 1)}
    for any_shape, count in ((0, 2), (1, 1)):
        graphs.clear()
        for shape in ((2, 8), (3, 12)):
            inputs = example_inputs(model, *shape, mask_zeros=True)
            with torch.inference_mode():
                wanted = model(**inputs).logits.numpy()
            for _ in range(2):
                np.testing.assert_allclose(runs[any_shape](arrays(inputs)), wanted, atol=1e-4)
        assert len(graphs) == count


def test_a_missing_compiler_is_told_before_any_work_and_by_the_doctor(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match=r"pytorch-compile needs a C\+\+ compiler \(.* was not found\); run: apt"):
        require_engine(NAME)
    (line,) = (one for one in doctor._engines([NAME]) if one.name == f"engine {NAME}")
    assert (line.state, line.mend) == ("missing", "apt install g++") and "C++ compiler" in line.found


def test_bench_does_not_compile_unasked():
    assert NAME not in default_engines(calibrated=True) and "pytorch" in default_engines(calibrated=False)


def test_compiling_is_no_part_of_what_warm_up_returns_or_limits():
    """Passes 0 and 1 compile, each longer than the limit; the median is that of what comes after."""
    calls = []

    def run(batch):
        calls.append(1)
        time.sleep(0.2 if len(calls) <= 2 else 0.002)

    assert warm_up(run, {}, seconds=0.05) < 20 and len(calls) >= 5

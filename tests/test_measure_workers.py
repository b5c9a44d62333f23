"""Measurements in processes of their own, on tiny saved models."""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import MeasureError
from hfcompress.export.inputs import example_inputs
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, Engine, Source
from hfcompress.measure import worker
from hfcompress.measure.batches import write_batches
from hfcompress.measure.bench import Settings, bench
from hfcompress.measure.latency import Latency, measure_latency
from hfcompress.measure.opening import Opened, measure_opening
from hfcompress.measure.process import WorkerProcess, worker_environment
from hfcompress.measure.quality import EvaluationSet, evaluate, predict
from hfcompress.measure.statistics import accuracy
from hfcompress.measure.worker import Worker, warm_up
from hfcompress.measure.workloads import Shape
from hfcompress.modules.packed import pack_
from hfcompress.ops.reductions import unanswered

TEXT = "AutoModelForSequenceClassification"


def bert(layers: int, hidden: int = 32) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=100,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            initializer_range=0.2,
            num_labels=3,
        )
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Source]:
    """A deep model, and a shallow one with a packed layer."""
    root = tmp_path_factory.mktemp("models")
    deep, shallow = bert(8, 128), bert(1)
    pack_(shallow, "bert.encoder.layer.0.output.dense")
    save_checkpoint(deep, root / "deep")
    save_checkpoint(shallow, root / "shallow")
    return {"baseline": Source(str(root / "deep"), str(root / "exports")), "compressed": Source(str(root / "shallow"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EvaluationSet:
    """Batches of several lengths, labelled by the shallow model."""
    model = bert(1)
    batches = [example_inputs(model, 8, 5 + n, seed=n, mask_zeros=True) for n in range(4)]
    path = tmp_path_factory.mktemp("data") / "batches.safetensors"
    write_batches(path, batches)
    with torch.inference_mode():
        labels = torch.cat([model(**batch).logits.argmax(-1) for batch in batches]).numpy()
    return EvaluationSet(path, labels, "accuracy", accuracy)


@pytest.mark.slow
def test_bench_measures_everything_of_both_models(folders, data):
    seen: list[float] = []
    settings = Settings(
        TEXT, [Shape(1, 8), Shape(4, 32)], engines=("pytorch", "onnxruntime"), threads=1, rounds=2, seconds=0.2
    )
    found = bench(folders, settings, data, on_progress=lambda text, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0
    baseline, compressed = found.models["baseline"], found.models["compressed"]
    assert (baseline.name, compressed.name) == ("deep", "shallow")
    assert compressed.size_bytes == (Path(folders["compressed"].checkpoint) / "model.safetensors").stat().st_size
    assert set(compressed.exports) == {"onnx/model.onnx"} == set(baseline.exports)
    stored = "weights float32 (7), 8-bit (1); tables float32; computed in float32"
    assert compressed.runs_in["pytorch"] == stored
    note, kernels = compressed.runs_in["onnxruntime"].split("; kernels ")
    assert note == stored and sum(map(int, re.findall(r"\((\d+)\)", kernels))) >= 8
    assert baseline.flops.keys() == {"1x8", "1x32"} and baseline.flops["1x8"] > compressed.flops["1x8"]
    assert [(r.engine, r.shape) for r in compressed.latency] == [
        (engine, shape) for engine in settings.engines for shape in ((1, 8), (4, 32))
    ]
    for row in compressed.latency:
        assert 0 < row.p50_ms <= row.p90_ms and row.throughput_per_s == pytest.approx(1000 * row.batch / row.p50_ms)
    own = [s.ratio for s in found.speedup["compressed"] if s.engine == s.baseline_engine and s.batch == 4]
    assert len(own) == 2 and min(own) > 0
    assert compressed.quality_in("pytorch").value >= 0.9 > baseline.quality_in("pytorch").value
    assert [d.engine for d in found.difference["compressed"]] == list(settings.engines)
    assert all(d.value > 0 and d.examples == 32 for d in found.difference["compressed"])
    assert all(set(m.load_seconds) == set(settings.engines) and min(m.load_seconds.values()) > 0
               for m in (baseline, compressed))  # fmt: skip
    assert all(row.passes >= 2 * 3 and (row.p99_ms is None) == (row.passes < 100) for row in compressed.latency)
    assert found.waiting >= 0


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_an_engine_without_torch_needs_less_memory(tmp_path):
    save_checkpoint(bert(1), tmp_path)
    export_onnx(bert(1), tmp_path, engines=["onnxruntime"])
    source, engines = {"m": Source(str(tmp_path))}, ["pytorch", "onnxruntime"]
    found = measure_opening(source, engines, [Shape(4, 32)], auto_class=TEXT, threads=1)
    assert 30e6 < found.peak_bytes["m"]["onnxruntime"] < 0.7 * found.peak_bytes["m"]["pytorch"]


def test_predictions_in_a_worker_are_the_models(folders, data):
    model = bert(1)
    pack_(model, "bert.encoder.layer.0.output.dense")
    from hfcompress.measure.batches import read_batches

    with torch.inference_mode():
        wanted = [
            model(**{name: torch.from_numpy(a) for name, a in batch.items()}).logits.numpy()
            for batch in read_batches(data.batches)
        ]
    got = predict(folders["compressed"], "pytorch", data.batches, TEXT, 1)
    np.testing.assert_allclose(got, np.concatenate(wanted), atol=1e-5)


def test_answers_that_are_not_finite_are_an_error_that_names_model_and_engine(folders, data, tmp_path):
    logits = np.array([[1.0, 2.0], [np.nan, 2.0], [np.inf, 0.0], [-np.inf, 0.0], [-np.inf, -np.inf]])
    assert unanswered(logits, "logits").tolist() == [False, True, True, False, True]
    model = bert(1)
    torch.nn.init.constant_(model.classifier.bias[1:2], torch.nan)
    save_checkpoint(model, tmp_path / "broken")
    models = {"baseline": folders["compressed"], "compressed": Source(str(tmp_path / "broken"))}
    with pytest.raises(MeasureError, match=r"broken answers 32 of 32 examples in pytorch with numbers that are not"):
        evaluate(models, ["pytorch"], replace(data, classes=["a", "b", "c"]), auto_class=TEXT, threads=1)


def test_a_failed_worker_is_an_error_with_its_last_words(folders, tmp_path):
    source = Path(folders["compressed"].checkpoint)
    for file in source.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        MeasureError, match=r"(?s)timing pytorch: the worker process failed.*model.safetensors is damaged"
    ):
        measure_latency({"m": Source(str(tmp_path))}, ["pytorch"], [Shape(1, 8)], auto_class=TEXT, threads=1)


def test_a_worker_that_takes_too_long_is_ended(folders):
    job = {"engine": "pytorch", "models": {}, "threads": 1, "auto_class": TEXT, "inputs": ""}
    with (
        WorkerProcess(job, "a slow job") as worker,
        pytest.raises(MeasureError, match=r"a slow job: the worker process failed \(exit status -9\)"),
    ):
        worker.ask("memory", limit_s=0.01)


def test_unknown_engine_is_refused_before_any_process_starts(folders):
    with pytest.raises(MeasureError, match=r"no engine is called 'pytorhc'. Did you mean 'pytorch'"):
        measure_opening(folders, ["pytorhc"], [Shape(1, 8)], auto_class=TEXT, threads=1)


def test_what_a_model_took_to_open_is_found_again_until_its_files_change(folders, tmp_path, monkeypatch):
    def opening(**more):
        return measure_opening(
            folders, ["pytorch"], [Shape(1, 8)], auto_class=TEXT, threads=1, kept=tmp_path / "kept", **more
        )

    (tmp_path / "kept").mkdir()
    first = opening()
    started = []

    class Counted(WorkerProcess):
        def __init__(self, job, what):
            started.append(what)
            super().__init__(job, what)

    monkeypatch.setattr("hfcompress.measure.opening.WorkerProcess", Counted)
    again = opening()
    assert (again.peak_bytes, again.load_seconds) == (first.peak_bytes, first.load_seconds)
    assert started == []
    opening(seed=1)  # other inputs
    assert len(started) == len(folders)


def test_a_run_keeps_what_its_models_took_to_open_with_its_predictions(folders, data, tmp_path, monkeypatch):
    seen = {}

    def opening(models, *_, kept, **__):
        seen["kept"] = kept
        return Opened.of(models)

    monkeypatch.setattr("hfcompress.measure.bench.measure_opening", opening)
    monkeypatch.setattr(
        "hfcompress.measure.bench.measure_latency", lambda *_, **__: Latency({label: [] for label in folders}, 0.0)
    )
    monkeypatch.setattr("hfcompress.measure.bench.evaluate", lambda *_, **__: ({label: [] for label in folders}, {}))
    settings = Settings(TEXT, [Shape(1, 8)], engines=("pytorch",))
    bench(folders, settings, replace(data, kept=tmp_path))
    assert seen == {"kept": tmp_path}
    bench(folders, settings)
    assert seen == {"kept": None}


def test_images_are_measured_too(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **small)).save_pretrained(tmp_path)
    timed = measure_latency(
        {"m": Source(str(tmp_path))},
        ["pytorch"],
        [Shape(2, image_size=16)],
        auto_class="AutoModelForImageClassification",
        threads=1,
        rounds=1,
        seconds=0.05,
    )
    (row,) = timed.rows["m"]
    assert (row.image_size, row.length, row.batch) == (16, None, 2)


def test_bench_refuses_nothing_and_mixed_image_sizes(folders):
    with pytest.raises(MeasureError, match="nothing to measure"):
        bench({}, Settings(TEXT, [Shape(1, 8)]))


def test_a_worker_starts_with_its_own_threads_and_the_default_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4000000000")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = worker_environment(2)
    assert found["OMP_NUM_THREADS"] == "2" and found["HF_HUB_OFFLINE"] == "1"
    assert "MALLOC_TRIM_THRESHOLD_" not in found


def test_loading_is_timed_up_to_the_first_output_without_the_librarys_import(monkeypatch, tmp_path):
    def opened(source, threads, auto_class):
        time.sleep(0.02)
        return lambda batch: time.sleep(0.03)

    slow = Engine(opened, imports=lambda source, auto_class: time.sleep(0.5))
    monkeypatch.setitem(ENGINES, "slow", slow)
    write_batches(tmp_path / "inputs", [{"x": np.zeros(1)}])
    job = {"engine": "slow", "models": {"m": {"checkpoint": "m"}}, "threads": 1, "auto_class": TEXT,
           "inputs": {"m": str(tmp_path / "inputs")}}  # fmt: skip
    worker = Worker(job)
    time.sleep(0.5)  # what the process waits for its orders is no loading either
    assert 0.05 <= worker.load(lambda fraction: None) < 0.4


def test_warm_up_ends_when_times_agree_and_at_its_limit():
    calls = []
    warm_up(lambda batch: calls.append(1), {}, seconds=0.02)
    assert len(calls) >= 2
    slow = iter([0.03, 0.001] * 50)

    def unstable(batch):
        import time

        calls.append(1)
        time.sleep(next(slow))

    calls.clear()
    warm_up(unstable, {}, seconds=0.1)
    assert 3 <= len(calls) < 20


def test_models_are_timed_in_turn_and_what_happens_in_the_pause_between_is_not_counted(monkeypatch):
    """Threads of the model before wait in a loop for a while: in the pause they take a core, and nobody's time."""
    clock = {"ns": 0, "waited": 0}
    seen: list[str] = []

    def sleep(seconds: float) -> None:
        seen.append("pause")
        clock["ns"] += int(seconds * 1e9)
        clock["waited"] += int(seconds * 1e9)

    def timed(label: str, run: object) -> list[float]:
        seen.append(label)
        clock["ns"] += 1000
        clock["waited"] += 100
        return [1.0]

    monkeypatch.setattr(worker.time, "sleep", sleep)
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: clock["ns"])
    monkeypatch.setattr(worker, "waited_ns", lambda: clock["waited"])
    one = Worker.__new__(Worker)
    one.job, one.runs = {"threads": 2}, {"original": print, "compressed": print}
    found = one._in_turn(timed)
    assert seen == ["pause", "original", "pause", "compressed"]
    assert found == {"times_ms": {"original": [1.0], "compressed": [1.0]}, "waiting": 100 * 2 / (1000 * 2 * 2)}

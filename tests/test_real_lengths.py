"""Timing on the evaluation split as it comes: whose texts, which lengths, whose tokens, and who cannot take part."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from project import text_project
from test_bench_command import write_file
from test_card import make_result
from test_run import command  # noqa: F401 - a fixture
from tiny import make
from transformers import AutoTokenizer

from hfcompress import run_recipe
from hfcompress.core.errors import MeasureError
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, Engine, Source
from hfcompress.measure.batches import read_batches
from hfcompress.measure.bench import Settings
from hfcompress.measure.latency import speedups
from hfcompress.measure.real import check_real, measure_real, real_row, spaced, unpadded, write_real
from hfcompress.measure.result import read_result
from hfcompress.measure.worker import Worker
from hfcompress.publish.card import render_card
from hfcompress.publish.rows import table
from hfcompress.recipe.load import load_recipe
from hfcompress.run import benching, check
from hfcompress.run.check import check_card
from hfcompress.run.reporter import Reporter

TEXT = "AutoModelForSequenceClassification"
FACTS = {"kind": "texts", "examples": 3, "tokens": (3, 5, 9)}


def texts(count: int = 24) -> list[str]:
    """The texts of the evaluation split, sorted by length, as some splits are."""
    return ["a " + "very " * (i // 4) + ["bad", "fair", "good"][i % 3] + " film" for i in range(count)]


def project(folder, **recipe):
    """A project whose evaluation split holds texts of many lengths."""
    path = text_project(folder, **recipe)
    rows = [f"{text},{['negative', 'neutral', 'positive'][i % 3]}" for i, text in enumerate(texts())]
    (folder / "data" / "validation.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def ids(file) -> list[list[int]]:
    batches = list(read_batches(file))
    assert all(len(batch["input_ids"]) == 1 for batch in batches)
    return [batch["input_ids"][0].tolist() for batch in batches]


def examples(folder, *lengths: int):
    """Write random examples of these lengths and return the file."""
    path = folder / "real.safetensors"
    write_real(path, ({"input_ids": np.full((1, n), 7), "attention_mask": np.ones((1, n), np.int64)} for n in lengths))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run whose compressed model has a tokenizer of its own, timed on real examples."""
    folder = tmp_path_factory.mktemp("run")
    stages = [{"methods": {"vocabulary": {}}}]
    benchmark = {"engines": ["pytorch"], "shapes": [{"length": 8}], "real_lengths": 7, "seconds": 0.05, "rounds": 2}
    recipe = load_recipe(project(folder, stages=stages, benchmark=benchmark))
    return folder, run_recipe(recipe, folder / "out")


def test_rows_are_spread_through_the_split():
    assert spaced(24, 6) == [2, 6, 10, 14, 18, 22] and spaced(3, 100) == [0, 1, 2] and spaced(5, 1) == [2]


def test_padding_goes_on_either_side_and_other_arrays_stay():
    batch = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]]), "labels": np.ones(1)}
    found = unpadded({**batch, "text": "left out"})
    assert found["input_ids"].tolist() == [[5, 6]] and found["attention_mask"].tolist() == [[1, 1]]
    assert set(found) == set(batch) and found["labels"].tolist() == [1]


def test_a_run_times_the_splits_own_texts_each_model_with_its_own_tokens(ran):
    folder, result = ran
    wanted = [texts()[row] for row in spaced(24, 7)]
    stored = {}
    for name, place in (("real-baseline", folder / "base"), ("real", folder / "out" / "model")):
        tokenizer = AutoTokenizer.from_pretrained(place)
        stored[name] = ids(folder / "out" / f"{name}.safetensors")
        assert stored[name] == [tokenizer(text)["input_ids"] for text in wanted]
    assert stored["real"] != stored["real-baseline"] and len({len(one) for one in stored["real"]}) >= 5
    for model in (result.baseline, result.compressed):
        fixed, real = model.latency
        assert (fixed.key, fixed.examples, real.key, real.examples, real.kind) == ("1x8", None, "real-1", 7, "texts")
        assert real.tokens == (5, 7, 10) and (real.rounds, real.passes, real.p99_ms) == (2, 14, None)
    assert [s.key for s in result.speedup] == ["1x8", "real-1"]
    assert read_result(folder / "out") == result


def test_the_card_and_its_check_name_the_workload(ran, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.05)
    folder, result = ran
    card = (folder / "out" / "model" / "README.md").read_text()
    assert "on 7 real texts, 1 at a time (PyTorch against the original in PyTorch)" in card
    assert "| Latency mean, 7 real texts, 1 at a time, PyTorch |" in card
    assert "| the same, p50 / p90 / p99, PyTorch |" in card
    checked = [line for line in check_card(folder / "out", band=1e9) if "7 real texts, 1 at a time" in line.name]
    assert len(checked) == 1 and checked[0].holds is not False and checked[0].found[0].isdigit()
    (folder / "out" / "real.safetensors").rename(folder / "kept")
    try:
        (gone,) = (line for line in check_card(folder / "out") if "real texts" in line.name)
        assert gone.holds is None and "no examples" in gone.found
    finally:
        (folder / "kept").rename(folder / "out" / "real.safetensors")


def test_bench_reads_a_recipes_split_with_each_models_own_tokenizer(ran, tmp_path, monkeypatch):
    """A model without a tokenizer reads with that of the first model, not with one that transformers makes up."""
    folder, _ = ran
    make("bert").save_pretrained(tmp_path / "bare")
    seen = {}

    def bench(sources, settings, *, names, on_progress):
        seen.update({name: ids(file) for name, file in zip(names.values(), settings.real.values(), strict=True)})

    monkeypatch.setattr(benching, "bench", bench)
    models = [str(folder / "base"), str(folder / "out"), str(tmp_path / "bare")]
    recipe = load_recipe(folder / "recipe.yaml")
    benching.bench_models(models, ["1x8"], ["pytorch"], [1], 1, Reporter(), data=recipe, examples=5)
    wanted = [texts()[row] for row in spaced(24, 5)]
    own = [[AutoTokenizer.from_pretrained(place)(text)["input_ids"] for text in wanted]
           for place in (folder / "base", folder / "out" / "model")]  # fmt: skip
    assert list(seen.values()) == [own[0], own[1], own[0]] and own[0] != own[1]


def test_bench_from_the_command_line(ran, command, tmp_path, monkeypatch):  # noqa: F811
    folder, _ = ran
    monkeypatch.setattr(benching, "Settings", partial(Settings, seconds=0.05))
    asked = ("--shape", "1x8", "--engine", "pytorch", "--rounds", "1", "--threads", "1")
    more = ("--data", folder / "recipe.yaml", "--examples", "6", "--json", tmp_path / "rows.json")
    status, printed, errors = command("bench", folder / "base", folder / "out", *asked, *more)
    assert status == 0, errors
    assert "6 real texts: one at a time" in printed and "reads them as 5 to 9 tokens" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["workload"], row["examples"]) for row in rows] == [("1x8", None), ("real-1", 6)] * 2
    assert rows[3]["ratio_same_engine"] == pytest.approx(rows[3]["throughput_per_s"] / rows[1]["throughput_per_s"])
    status, _, errors = command("bench", folder / "base", *asked, "--examples", "6")
    assert status == 2 and "--data" in errors


def test_percentiles_are_over_examples_and_ratios_of_total_time():
    """Half the time on one long text of three is half of nearly everything, though the median text gains nothing."""
    slow = real_row("pytorch", FACTS, 1, np.array([[1.0, 2, 97], [1, 2, 97], [50, 50, 500]]))
    fast = real_row("pytorch", FACTS, 1, np.array([[1.0, 2, 47]] * 3))
    assert (slow.p50_ms, slow.passes, slow.rounds) == (2, 9, 3) and slow.p90_ms == pytest.approx(78)
    assert (slow.throughput_per_s, fast.time_ms) == (pytest.approx(30), pytest.approx(50 / 3))
    (gain,) = speedups([slow], [fast])
    assert gain.ratio == pytest.approx(2) and (gain.key, gain.examples) == ("real-1", 3)
    assert speedups([slow.model_copy(update={"examples": None, "kind": None})], [fast]) == []
    assert real_row("pytorch", FACTS, 1, np.ones((1, 100))).p99_ms == 1


def test_a_pass_runs_every_example_by_every_model_in_an_engine_for_any_length(tmp_path, monkeypatch):
    ran = []

    def opened(source, threads, auto_class):
        return lambda batch: ran.append((source.checkpoint, batch["input_ids"].shape[1]))

    monkeypatch.setitem(ENGINES, "any", Engine(lambda *_: pytest.fail("opened for one shape"), open_any=opened))
    file = str(examples(tmp_path, 3, 9, 4))
    job = {"engine": "any", "models": {name: {"checkpoint": name} for name in "ab"}, "threads": 1, "auto_class": TEXT,
           "inputs": dict.fromkeys("ab", file), "any_shape": True}  # fmt: skip
    found = Worker(job).examples(lambda fraction: None)
    assert ran == [(name, length) for name in "ab" for length in (3, 3, 9, 4)]  # the first brings weights into caches
    assert {label: len(times) for label, times in found["times_ms"].items()} == {"a": 3, "b": 3}


def test_what_takes_one_length_only_is_refused_before_any_process_starts(tmp_path, monkeypatch):
    make("bert").save_pretrained(tmp_path)
    file, model = examples(tmp_path, 3, 9), Source(str(tmp_path))
    monkeypatch.setitem(ENGINES, "fixed", Engine(lambda *_: pytest.fail("opened"), compiles=True))
    with pytest.raises(MeasureError, match="fixed prepares for one shape at a time"):
        measure_real({"m": model}, ["fixed"], {"m": file}, auto_class=TEXT, threads=1)
    check_real({"m": model}, ["pytorch-compile"], {"m": file}, TEXT)  # has a way to take any
    for axes, what in (((1, 8), "a length of 8"), ((4, "length"), "a batch of 4")):
        fixed = Source(str(write_file(tmp_path / "m.onnx", *axes)))
        with pytest.raises(MeasureError, match=f"m.onnx takes {what} only, and real texts have any length"):
            check_real({"m": fixed}, ["onnxruntime"], {"m": file}, TEXT)
    export_onnx(make("bert"), tmp_path, engines=["onnxruntime"])
    assert check_real({"m": model}, ["onnxruntime"], {"m": file}, TEXT)["m"]["tokens"] == (3, 6, 9)


def test_a_static_openvino_file_is_refused(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    make("bert").save_pretrained(tmp_path)
    (file,) = export_onnx(make("bert"), tmp_path, engines=["openvino"]).values()
    model, real = Source(str(tmp_path)), {"m": examples(tmp_path, 3, 9)}
    check_real({"m": model}, ["openvino"], real, TEXT)
    graph = openvino.Core().read_model(str(file))
    graph.reshape({port.get_any_name(): [1, 8] for port in graph.inputs})
    openvino.save_model(graph, str(tmp_path / "static.xml"))
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], file="static.xml"))
    with pytest.raises(MeasureError, match=r"static.xml takes a length of 8"):
        check_real({"m": model}, ["openvino"], real, TEXT)


def test_texts_a_model_cannot_read_are_refused(tmp_path):
    make("bert").save_pretrained(tmp_path / "m")
    model, long = {"m": Source(str(tmp_path / "m"))}, make("bert").config.max_position_embeddings + 1
    with pytest.raises(MeasureError, match=rf"the longest text has {long}: set data.max_length"):
        check_real(model, ["pytorch"], {"m": examples(tmp_path, 3, long)}, TEXT)
    write_real(tmp_path / "other", [{"input_ids": np.full((1, 4), 5000)}])
    with pytest.raises(MeasureError, match="made by another tokenizer"):
        check_real(model, ["pytorch"], {"m": tmp_path / "other"}, TEXT)
    write_real(tmp_path / "pixels", [{"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}])
    with pytest.raises(MeasureError, match="m takes texts, the data are images"):
        check_real(model, ["pytorch"], {"m": tmp_path / "pixels"}, TEXT)


def test_a_result_from_before_is_read_and_rendered_as_it_was():
    """Its rows have none of the fields of real examples."""
    result = make_result()
    plain = json.loads(result.model_dump_json())
    rows = [*plain["speedup"], *plain["baseline"]["latency"], *plain["compressed"]["latency"]]
    for row in rows:
        for name in ("examples", "kind", "tokens"):
            row.pop(name, None)
    old = type(result).model_validate_json(json.dumps(plain))
    assert render_card(old) == render_card(result) and "real" not in " ".join(row.name for row in table(old))

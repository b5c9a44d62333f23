"""Timing on the evaluation split as it comes: whose texts, which lengths, whose tokens, and who cannot take part."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from project import WORDS, text_project
from rich.console import Console
from test_bench_command import write_file
from test_card import make_result
from test_run import command  # noqa: F401 - a fixture
from tiny import make
from transformers import AutoTokenizer, ViTImageProcessorPil

from hfcompress import compress
from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import MeasureError
from hfcompress.core.registry import create
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, Engine, Source
from hfcompress.measure import real
from hfcompress.measure.batches import read_batches
from hfcompress.measure.bench import Bench
from hfcompress.measure.findings import findings
from hfcompress.measure.latency import Latency, speedups
from hfcompress.measure.real import check_real, measure_real, real_row, spaced, unpadded, write_real
from hfcompress.measure.worker import Worker
from hfcompress.publish.card import render_card
from hfcompress.publish.comparison import comparison_markdown
from hfcompress.publish.figures import _latencies
from hfcompress.publish.rows import engine_name, milliseconds, shape_name, table
from hfcompress.recipe.load import load_recipe
from hfcompress.run import benching, claims_times
from hfcompress.run.bench_rows import bench_records, bench_rows
from hfcompress.run.claims import Place
from hfcompress.run.folder import RunFolder
from hfcompress.run.real_lengths import real_of_models, real_of_run
from hfcompress.run.reporter import Reporter
from hfcompress.run.setup import open_recipe

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
def setups(tmp_path_factory):
    """A recipe opened as the original reads it, and as a model with fewer tokens does, which lies in small/."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:  # a word that the texts lack comes first, so that ids change
        patch.setattr("project.WORDS", [*WORDS[:5], "not", *WORDS[5:-1]])
        recipe = project(folder, benchmark={"engines": ["pytorch"], "real_lengths": 7})
    setup = open_recipe(load_recipe(recipe))
    small, tokenizer = copy.deepcopy(setup.model), copy.deepcopy(setup.processor)
    compress(small, create("vocabulary", {}).config, processor=tokenizer, texts=texts())
    save_checkpoint(small, folder / "small", tokenizer)
    return folder, setup, setup.reading_with(tokenizer)


def tokens(folder, wanted: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in wanted]


def test_rows_are_spread_through_the_split():
    assert spaced(24, 6) == [2, 6, 10, 14, 18, 22] and spaced(3, 100) == [0, 1, 2] and spaced(5, 1) == [2]


def test_padding_goes_on_either_side_and_other_arrays_stay():
    batch = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]]), "labels": np.ones(1)}
    found = unpadded({**batch, "text": "left out"})
    assert found["input_ids"].tolist() == [[5, 6]] and found["attention_mask"].tolist() == [[1, 1]]
    assert set(found) == set(batch) and found["labels"].tolist() == [1]


def test_a_run_takes_the_splits_own_texts_for_each_model_with_its_own_tokens(setups, tmp_path):
    folder, before, after = setups
    files = real_of_run({"a": before, "b": after}, {name: tmp_path / name for name in "ab"})
    wanted = [texts()[row] for row in spaced(24, 7)]
    assert ids(files["a"]) == tokens(folder / "base", wanted) and ids(files["b"]) == tokens(folder / "small", wanted)
    assert ids(files["a"]) != ids(files["b"]) and len({len(one) for one in ids(files["b"])}) >= 5
    off = replace(before, loaded=load_recipe(folder / "recipe.yaml", ["benchmark.real_lengths=null"]))
    assert real_of_run({"a": off, "b": after}, files) == {}


def test_bench_reads_a_recipes_split_with_each_models_own_tokenizer(setups, tmp_path, monkeypatch):
    """A model without a tokenizer reads with that of the first model, not with one that transformers makes up."""
    folder, _, _ = setups
    make("bert").save_pretrained(tmp_path / "bare")
    seen = []

    def bench(sources, settings, *, names, on_progress):
        assert list(names.values()) == ["base", "small", "bare"]
        seen.extend(ids(settings.real[label]) for label in sources)

    monkeypatch.setattr(benching, "bench", bench)
    models = [str(folder / "base"), str(folder / "small"), str(tmp_path / "bare")]
    recipe = load_recipe(folder / "recipe.yaml")
    benching.bench_models(models, ["1x8"], ["pytorch"], [1], 1, Reporter(), data=recipe, examples=5)
    wanted = [texts()[row] for row in spaced(24, 5)]
    base, small = (tokens(folder / name, wanted) for name in ("base", "small"))
    assert seen == [base, small, base] and base != small


def test_images_are_read_at_each_models_own_size(tmp_path):
    for size in (16, 8):
        folder = tmp_path / str(size)
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
        make("vit").save_pretrained(folder)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {model_type: vit}\ntask: image-classification\nfinetune: {}\n"
        "data: {dataset: 'sklearn:digits'}\nstages: [{methods: {quantize_weights: {}}}]\n"
    )
    models = {str(size): Source(str(tmp_path / str(size)), image_size=size) for size in (16, 8)}
    files = real_of_models(models, load_recipe(recipe), 3, tmp_path)
    assert [[b["pixel_values"].shape for b in read_batches(files[name])] for name in ("16", "8")] == [
        [(1, 3, size, size)] * 3 for size in (16, 8)
    ]
    facts = check_real({"16": models["16"]}, ["pytorch"], files, "AutoModelForImageClassification")
    assert facts == {"16": {"kind": "images", "examples": 3}}


@pytest.mark.slow
def test_real_examples_are_timed_in_an_exported_file(setups, tmp_path, monkeypatch):
    jobs, real_workers = [], real.timing_workers
    monkeypatch.setattr(real, "timing_workers", lambda *given: jobs.append(given[-1]) or real_workers(*given))
    folder, before, after = setups
    files = real_of_run({"a": before, "b": after}, {name: tmp_path / name for name in "ab"})
    models = {name: Source(str(folder / place), str(tmp_path)) for name, place in (("a", "base"), ("b", "base"))}
    export_onnx(before.model, tmp_path, engines=["onnxruntime"])
    given = {"auto_class": TEXT, "threads": 1, "rounds": 2, "seconds": 0.05}
    found = measure_real(models, ["onnxruntime"], {"a": files["a"], "b": files["a"]}, **given)
    (row,) = found.rows["b"]
    assert (row.engine, row.examples, row.passes, row.tokens) == ("onnxruntime", 7, 14, (5, 8, 10))
    assert found.rows.keys() == {"a", "b"} and row.time_ms > 0 and [job["any_shape"] for job in jobs] == [True]


def test_the_command_line_names_recipe_and_number(setups, command, monkeypatch):  # noqa: F811
    folder, _, _ = setups
    seen = []
    monkeypatch.setattr(benching, "bench_models", lambda *given: seen.append(given[-2:]) or {})
    for more in ((), ("--examples", "6")):
        assert command("bench", folder / "base", "--data", folder / "recipe.yaml", *more)[0] == 0
    assert [(data.recipe.task, count) for data, count in seen] == [("text-classification", n) for n in (100, 6)]
    status, _, errors = command("bench", folder / "base", "--examples", "6")
    assert status == 2 and "--data" in errors


def with_real(kind: str = "texts"):
    """A result with times on 100 real examples beside those on shapes."""
    result = make_result()
    given, rows = FACTS | {"examples": 100, "kind": kind}, {}
    for name in ("baseline", "compressed"):
        times = {row.engine: row.p50_ms / 2 for row in getattr(result, name).latency}
        rows[name] = [
            real_row(engine, given, 1, t * np.linspace(0, 1, 300).reshape(3, 100) ** 2) for engine, t in times.items()
        ]
    models = {
        name: getattr(result, name).model_copy(update={"latency": [*getattr(result, name).latency, *rows[name]]})
        for name in rows
    }
    gains = [*result.speedup, *speedups(rows["baseline"], rows["compressed"])]
    return result.model_copy(update={**models, "speedup": gains})


def test_cards_and_tables_name_the_workload():
    result = with_real()
    rows = {row.name: row for row in table(result)}
    before, after = (
        next(row for row in model.latency if row.examples) for model in (result.baseline, result.compressed)
    )
    name = f"100 real texts, 1 at a time, {engine_name(after.engine)}"
    mean, tail = rows[f"Latency mean, {name}"], rows[f"Latency p50 / p90 / p99, {name}"]
    assert (mean.before, mean.after) == (milliseconds(before.time_ms), milliseconds(after.time_ms))
    assert mean.change == f"{before.time_ms / after.time_ms:.2f}x faster" and tail.after.count("/") == 2
    assert " at 8 × 128 tokens" in render_card(result) and " on 100 real texts, 1 at a time" in render_card(result)
    assert "100 real texts, 1 at a time" in comparison_markdown({"a": result, "b": make_result()}).splitlines()[2]
    assert "Latency (mean), 100 real texts" in " ".join(panel.title for panel in _latencies(result))
    assert shape_name(with_real("images").speedup[-1]) == "100 real images, 1 at a time"
    slow = [s.model_copy(update={"ratio": 0.5}) for s in result.speedup if s.examples]
    assert any("on 100 real texts is slower" in f for f in findings(result.baseline, result.compressed, slow))


def test_the_table_of_bench_says_how_to_read_it():
    result = with_real()
    measured = Bench({"a": result.baseline, "b": result.compressed}, {"b": result.speedup})
    console = Console(width=100, file=io.StringIO())
    console.print(bench_rows(measured))
    said = " ".join(console.file.getvalue().split())
    assert said.count("│ 100 real texts │") == 5 and "percentiles are over texts, ratios of total times" in said
    assert "reads them as 3 to 9 tokens, median 5" in said
    records = bench_records({1: measured})["rows"]
    assert [row["workload"] for row in records[-2:]] == ["real-1"] * 2 and records[-3]["ratio_same_engine"] > 1


def test_a_card_is_checked_on_the_runs_own_examples(tmp_path, monkeypatch):
    result, place, asked = with_real(), RunFolder(tmp_path), []
    timed = Latency({"original": result.baseline.latency, "compressed": result.compressed.latency}, 0.0)
    monkeypatch.setattr(claims_times, "measure_real", lambda models, engines, files, **_: asked.append(files) or timed)
    monkeypatch.setattr(Place, "sources", lambda self, engines: {name: Source(name) for name in timed.rows})
    at = Place(result, place, tmp_path / "model", "original")
    claims = [row for row in result.speedup if row.examples]
    assert claims_times._timed_again(at, claims) == ([], False) and not asked
    place.real.touch()
    again, _ = claims_times._timed_again(at, claims)
    assert claims == [row for row in again if row.examples]
    place.baseline_real.touch()
    claims_times._timed_again(at, claims)
    assert asked == [{"original": own, "compressed": place.real} for own in (place.real, place.baseline_real)]
    (line,) = (claims_times._ratio(row, [], 0.25, False) for row in claims[:1])
    assert line.holds is None and "or no examples" in line.found


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


def test_a_static_openvino_file_is_refused(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    make("bert").save_pretrained(tmp_path)
    (file,) = export_onnx(make("bert"), tmp_path, engines=["openvino"]).values()
    model, data = Source(str(tmp_path)), {"m": examples(tmp_path, 3, 9)}
    check_real({"m": model}, ["openvino"], data, TEXT)
    graph = openvino.Core().read_model(str(file))
    graph.reshape({port.get_any_name(): [1, 8] for port in graph.inputs})
    openvino.save_model(graph, str(tmp_path / "static.xml"))
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], file="static.xml"))
    with pytest.raises(MeasureError, match=r"static.xml takes a length of 8"):
        check_real({"m": model}, ["openvino"], data, TEXT)


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

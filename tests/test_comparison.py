"""Runs side by side: what may be compared stands together, every cell comes from its result, cards are found."""

from __future__ import annotations

import pytest
from test_card import make_result, speedups, write_run
from typer.testing import CliRunner

from hfcompress.cli import app
from hfcompress.core.errors import MeasureError
from hfcompress.core.machine import Stopwatch
from hfcompress.measure.result import StageRecord
from hfcompress.publish.card import render_card
from hfcompress.publish.comparison import compare, comparison_markdown, find_results
from hfcompress.publish.pareto import comparable
from hfcompress.publish.snippet import fastest_onnx


def smaller(result, size):
    return result.model_copy(update={"compressed": result.compressed.model_copy(update={"size_bytes": size})})


def test_a_table_per_model_and_data_with_the_smallest_first():
    text, image = make_result(), make_result(image=True)
    other = image.model_copy(update={"base_model": image.base_model.model_copy(update={"id": "org/vit"})})
    tables = compare({"large": text, "small": smaller(text, 1_000_000), "vit": other})
    assert [[row[0] for row in table.rows] for table in tables] == [["small", "large"], ["vit"]]
    assert tables[0].title == "org/base-model on stanfordnlp/sst2, validation: 90.9 MB, accuracy 87.84"


def with_baseline(result, **changes):
    return result.model_copy(update={"baseline": result.baseline.model_copy(update=changes)})


def of_data(result, **changes):
    return result.model_copy(update={"dataset": result.dataset.model_copy(update=changes)})


def test_runs_of_other_originals_or_other_examples_stand_apart_in_tables_and_figures():
    """Else their rows and points would stand under the first one's numbers."""
    run = with_baseline(make_result(), checksums={"model.safetensors": "a" * 64})
    few = [row.model_copy(update={"examples": 100}) for row in run.difference]
    others = {
        "weights": with_baseline(run, checksums={"model.safetensors": "b" * 64}),
        "config": of_data(run, config="other"),
        "revision": of_data(run, revision="1.0"),
        "examples": run.model_copy(update={"difference": few}),
        "older, of other bytes": with_baseline(run, checksums={}, size_bytes=1),
    }
    for name, other in others.items():
        tables = compare({"run": run, name: other})
        assert [[row[0] for row in table.rows] for table in tables] == [["run"], [name]], name
        assert len({table.title for table in tables}) == 2 and not comparable(run, {name: other}), name


def test_the_same_original_is_one_group_whatever_machine_and_version_measured_it():
    run = with_baseline(make_result(), checksums={"model.safetensors": "a" * 64})
    values = [q.model_copy(update={"value": q.value - 1 / 872}) for q in run.baseline.quality]
    others = {
        "elsewhere": with_baseline(run, quality=values),
        "without checksums": with_baseline(run, quality=values, checksums={}),
    }
    assert list(comparable(run, others)) == list(others)
    for names in (["run", *others], [*others, "run"]):
        (table,) = compare({name: ({"run": run} | others)[name] for name in names})
        assert len(table.rows) == 3


def test_a_row_says_bytes_quality_times_and_minutes():
    (table,) = compare({"run": make_result()})
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["methods"] == "`movement`, `distill`, `quantize_weights`"
    assert row["weight files"] == "11.2 MB, 8.12x"
    assert row["accuracy"] == "87.04, −0.80 (−1.95 to +0.34)" and row["control"] == "88.07"
    # 145.2 ms in PyTorch; 88.6 ms and 20.1 ms in ONNX Runtime int8, before and after
    assert row["8 × 128 tokens"] == "20.1 ms, 7.21x / 4.40x, at 87.16"
    assert row["1 × 32 tokens"] == "0.85 ms, 7.21x / 4.40x, at 87.16" and row["minutes"] == "13.6"


@pytest.mark.parametrize(("worse_by", "counts"), [(0.0029, True), (0.0031, False)])
def test_an_engine_that_answers_worse_than_pytorch_is_not_the_best(worse_by: float, counts: bool):
    """Its time is another model's: 0.3 points of an accuracy are let pass, in the table, the card and its code."""
    result = make_result()
    there = result.compressed.quality_in("pytorch").model_copy(update={"engine": "onnxruntime-int8"})
    there = there.model_copy(update={"value": there.value - worse_by})
    kept = evaluated_in(result.compressed, "onnxruntime")
    result = result.model_copy(update={"compressed": kept.model_copy(update={"quality": [*kept.quality, there]})})
    (table,) = compare({"run": result})
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert ("7.21x" in row["8 × 128 tokens"], "7.21x" in row["1 × 32 tokens"]) == (counts, counts)
    assert result.strays() == ([] if counts else ["onnxruntime-int8"])
    said = (
        "ONNX Runtime int8 is faster and not counted: the metric there is more than 0.3 points worse than in PyTorch."
    )
    assert (said in render_card(result)) != counts
    assert (fastest_onnx(result.compressed) == "onnx/model_quantized.onnx") == counts


def evaluated_in(model, *engines):
    """Return a model evaluated in PyTorch, and with the same metric in `engines`."""
    there = model.quality_in("pytorch")
    rows = [there.model_copy(update={"engine": name}) for name in ("pytorch", *engines)]
    return model.model_copy(update={"quality": rows})


def test_an_engine_that_was_timed_and_not_evaluated_is_not_the_best():
    """Nobody knows what it answers; it is told, in the table, the card and its code, unless nothing was evaluated."""
    result = make_result()
    blind = result.model_copy(update={"compressed": evaluated_in(result.compressed, "onnxruntime")})
    assert {s.engine for s in result.best_speedups()} == {"onnxruntime-int8"}
    assert {s.engine for s in blind.best_speedups()} == {"onnxruntime", "pytorch"}
    assert blind.strays() == ["onnxruntime-int8"] and "7.21x" not in "".join(compare({"run": blind})[0].rows[0])
    assert "ONNX Runtime int8 is faster and not counted: the metric there was not measured." in render_card(blind)
    assert fastest_onnx(blind.compressed) == "onnx/model.onnx"
    assert not blind.compressed.strays_in("openvino"), "it was not timed"
    untold = blind.compressed.model_copy(update={"quality": []})
    assert not untold.strays_in("onnxruntime-int8")


def test_an_engine_that_computes_in_int8_for_the_compressed_model_alone_is_no_gain_of_compression():
    """Its own grids make an engine compute in int8: like for like is the original in int8, or in its fastest engine."""
    result = make_result()
    note = {"onnxruntime-int8": "activations int8, static (37)"}
    small = result.compressed.model_copy(update={"runs_in": {"onnxruntime": "activations int8, static (37)"}})
    fast = [row for row in small.latency if row.engine == "onnxruntime"]
    small = small.model_copy(update={"latency": fast})
    before = result.baseline.model_copy(update={"runs_in": note})
    slow = fast[0].model_copy(update={"p50_ms": 4.0})
    before = before.model_copy(update={"latency": [*before.latency, slow]})
    found = result.model_copy(update={"baseline": before, "compressed": small})
    found = found.model_copy(update={"speedup": speedups(before, small)})
    assert "1.83 ms, 3.35x / 2.04x" in compare({"run": found})[0].rows[0], "the int8 twin takes 3.74 ms"
    alone = found.model_copy(update={"baseline": before.model_copy(update={"runs_in": {}})})
    assert "1.83 ms, 3.35x / 2.04x" in compare({"run": alone})[0].rows[0], "of all engines that is the fastest"
    usual = found.model_copy(update={"compressed": small.model_copy(update={"runs_in": {}})})
    assert "1.83 ms, 3.35x / 2.19x" in compare({"run": usual})[0].rows[0]


def test_times_of_a_busy_machine_are_marked():
    for waiting, mark in ((0.2, "~"), (0.02, ""), (None, "")):
        (table,) = compare({"run": make_result(waiting=waiting)})
        assert f"20.1 ms, {mark}7.21x / {mark}4.40x, at 87.16" in table.rows[0]


def test_times_of_another_processor_are_marked_and_told():
    here = make_result()
    other = smaller(here, 1_000_000).model_copy(
        update={"environment": {**here.environment, "cpu": "EPYC", "cpu_flags": ["avx2"]}}
    )
    (table,) = compare({"a": here, "b": smaller(here, 2_000_000), "c": other})
    times = {row[0]: row[table.columns.index("1 × 32 tokens")] for row in table.rows}
    assert times["c"].startswith("† 0.85 ms") and times["a"].startswith("0.85 ms")
    assert table.notes[0].startswith("† Timed on EPYC (neither AVX-512 nor VNNI). The others on ")
    assert table.notes[0] in comparison_markdown({"a": here, "b": smaller(here, 2_000_000), "c": other})
    assert compare({"a": here})[0].notes == []


def test_minutes_of_a_busy_machine_are_an_upper_bound():
    for waiting, shown in ((0.02, "1.0"), (0.4, "≤ 1.0"), (None, "1.0")):
        stage = StageRecord(name="s", methods={}, seconds=60, waiting=waiting)
        (table,) = compare({"run": make_result(stages=[stage])})
        assert table.rows[0][-1] == shown
    watch = Stopwatch()
    assert sum(range(10**6)) and 0 <= watch.waiting <= 1 and watch.seconds > 0


def test_the_table_is_written_between_markers_and_links_to_cards(tmp_path):
    write_run(tmp_path / "cards" / "one", make_result())
    page = tmp_path / "README.md"
    page.write_text("head\n<!-- runs -->\nold\n<!-- /runs -->\ntail\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["table", str(tmp_path / "cards"), "--write", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert text.startswith("head\n<!-- runs -->\n**org/base-model") and text.endswith("\n<!-- /runs -->\ntail\n")
    assert "[one](cards/one/model/README.md)" in text and "old" not in text
    (tmp_path / "cards/one/README.md").write_text("a card published without its model", encoding="utf-8")
    CliRunner().invoke(app, ["table", str(tmp_path / "cards"), "--write", str(page)])
    assert "[one](cards/one/README.md)" in page.read_text(encoding="utf-8")


def test_runs_whose_folders_share_a_name_are_told_apart_by_their_paths(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    for path in paths:
        write_run(path, make_result())
    assert list(find_results([*paths, paths[0]])) == ["a/run", "b/run", "other"]
    assert list(find_results([tmp_path / "b"])) == ["other", "run"]


def test_folders_without_a_result_and_pages_without_markers_are_told(tmp_path):
    with pytest.raises(MeasureError, match="no result in"):
        find_results([tmp_path])
    write_run(tmp_path / "run", make_result())
    page = tmp_path / "page.md"
    page.write_text("text", encoding="utf-8")
    done = CliRunner().invoke(app, ["table", str(tmp_path / "run"), "--write", str(page)])
    assert done.exit_code != 0 and "no <!-- runs -->" in str(done.exception)
    assert page.read_text(encoding="utf-8") == "text"

"""A comparison of methods by models by seeds: its cells, what they share, what becomes of failures, and its report."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.transforms import Bbox
from project import text_project
from test_card import make_result
from typer.testing import CliRunner

from hfcompress.cli import app
from hfcompress.core.errors import HFCompressError, RecipeError
from hfcompress.core.method import Category
from hfcompress.measure.cells import CELLS, RECORD, CellRecord, State, SuiteRecord, read_suite
from hfcompress.measure.result import read_result
from hfcompress.publish import pareto, suite
from hfcompress.publish.comparison import find_results
from hfcompress.publish.suite import render_report, write_report
from hfcompress.publish.suite_figure import Dot, draw_dots
from hfcompress.recipe.shared import control_key
from hfcompress.recipe.suite import load_suite
from hfcompress.run import child
from hfcompress.run.comparing import run_suite
from hfcompress.run.shelf import Shelf

SHIPPED = sorted((Path(__file__).parent.parent / "recipes" / "suites").glob("*.yaml"))
SURVEY = next(path for path in SHIPPED if path.stem == "survey")
TRAIN = {"num_train_epochs": 1, "per_device_train_batch_size": 8}


def suite_file(folder: Path, **changes: object) -> Path:
    """Write a suite of three methods on the tiny text model: one-shot, and two that train alike."""
    text_project(folder)
    methods = {
        "int8": {"category": "parameter quantization", "stages": [{"methods": {"quantize_weights": {}}}]},
        "pruned": {
            "category": "parameter pruning",
            "stages": [
                {"methods": {"movement": {"heads": 0.5, "ffn": 0.5, "round_to": 4}, "distill": {}}, "train": {}}
            ],
        },
        "hybrid": {
            "category": "hybrid",
            "stages": [{"methods": {"movement": {"ffn": 0.25, "round_to": 4}, "distill": {}}, "train": {}}],
        },
    }
    values = {
        "title": "Tiny",
        "models": {"bert": {"recipe": "recipe.yaml", "train": TRAIN}},
        "methods": methods,
        "benchmark": None,
        **changes,
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_suites_load_and_train_one_control_a_model(path):
    suite = load_suite(path)
    for model in suite.suite.models:  # all that train have the same control, so that it is trained once
        assert len({control_key(cell.loaded.recipe) for cell in suite.cells if cell.model == model} - {None}) == 1


def test_the_survey_shows_all_categories_on_several_models():
    suite = load_suite(SURVEY)
    assert {cell.category for cell in suite.cells} == set(Category)
    assert len({cell.model for cell in suite.cells}) >= 4


def test_a_cell_is_the_union_of_its_model_its_method_and_the_suite(tmp_path):
    path = suite_file(tmp_path, seeds=[1, 2], evaluate={"batch_size": 4})
    cells = {cell.name: cell for cell in load_suite(path).cells}
    assert list(cells) == [f"{m}-bert-{s}" for s in (1, 2) for m in ("int8", "pruned", "hybrid")]
    recipe = cells["pruned-bert-2"].loaded.recipe
    assert recipe.model == str(tmp_path / "base") and recipe.seed == 2 and recipe.benchmark is None
    assert recipe.stages[0].train == TRAIN and recipe.evaluate.control and recipe.evaluate.batch_size == 4
    assert "movement" not in cells["int8-bert-1"].loaded.text


def test_cells_that_train_alike_share_a_control_and_others_do_not(tmp_path):
    path = suite_file(tmp_path, seeds=[1, 2])
    keys = {cell.name: control_key(cell.loaded.recipe) for cell in load_suite(path).cells}
    assert keys["pruned-bert-1"] == keys["hybrid-bert-1"] != keys["pruned-bert-2"]
    assert keys["int8-bert-1"] is None
    for change in ("train.num_train_epochs=2", "methods.distill.temperature=3"):
        other = load_suite(path, [f"methods.pruned.stages.0.{change}"])
        assert {c.name: control_key(c.loaded.recipe) for c in other.cells}["pruned-bert-1"] != keys["pruned-bert-1"]
    without = load_suite(path, ["control=false"])
    assert {control_key(cell.loaded.recipe) for cell in without.cells} == {None}


def test_values_set_for_a_model_stay_out_of_the_text_of_its_recipes(tmp_path):
    (cell, *_) = load_suite(suite_file(tmp_path), ["models.bert.model=/some/where", "benchmark={rounds: 3}"]).cells
    assert cell.loaded.recipe.model == "/some/where" and "/some/where" not in cell.loaded.text
    assert cell.loaded.overrides == ("model=/some/where",) and cell.loaded.recipe.benchmark.rounds == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("methods.int8.stages.0.methods.quantize_weights.bit=4", "int8 on bert: stages.0.methods.quantize_weights.bit"),
        ("methods.int8.models=[brt]", "no model 'brt'. Did you mean 'bert'?"),
        ("models.brt.model=x", "no model 'brt'. Did you mean 'bert'?"),
        ("methods.int8.category=pruning", "methods.int8.category"),
        ("methods.int8.stage=1", "methods.int8.stage: unknown key"),
        ("seeds=[1, 1]", "every seed once"),
        ("models.bert.recipe=rcipe.yaml", "Did you mean"),
    ],
)
def test_a_mistake_names_the_cell_or_the_key(tmp_path, override, words):
    with pytest.raises(RecipeError) as raised:
        load_suite(suite_file(tmp_path), [override])
    assert words in str(raised.value)


def test_one_job_with_shared_controls_kept_cells_and_failures_that_are_told(tmp_path, in_this_process):
    stage = {"methods": {"svd": {"keep": 0.5, "targets": ["nothing"]}}}
    broken = {"category": "low-rank decomposition", "stages": [stage]}
    path = suite_file(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["methods"] = {"broken": broken, **values["methods"]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    out = tmp_path / "out"
    report = run_suite(load_suite(path), out)
    assert in_this_process == ["broken-bert-42", "int8-bert-42", "pruned-bert-42", "hybrid-bert-42"]
    record, results = read_suite(out)
    assert [c.state for c in record.cells] == [State.FAILED, State.DONE, State.DONE, State.DONE]
    text = report.read_text(encoding="utf-8")
    assert "`broken`, seed 42" in text and "nothing" in text and "3 of 4 cells done" in text
    assert record.minutes is not None and "minutes all told" in text
    weights = [out / CELLS / f"{name}-bert-42" / "control" / "model.safetensors" for name in ("pruned", "hybrid")]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino, "the control was trained twice"
    assert results["hybrid-bert-42"].control.value == results["pruned-bert-42"].control.value
    # Again: what failed is tried again, what is done is kept, and one whose recipe changed is done anew.
    in_this_process.clear()
    run_suite(load_suite(path, ["methods.int8.stages.0.methods.quantize_weights.bits=4"]), out)
    assert in_this_process == ["broken-bert-42", "int8-bert-42"]
    again, _ = read_suite(out)
    took = {c.name: c.seconds for c in again.cells}
    assert took["broken-bert-42"] is None, "what it took before it failed is not in its time"
    assert took["hybrid-bert-42"] == record.cells[-1].seconds and again.minutes is None
    assert read_result(out / CELLS / "int8-bert-42").stages[0].methods["quantize_weights"]["bits"] == 4
    # A mistake costs no cell: what is done goes only when what is asked for can be run.
    in_this_process.clear()
    run_suite(load_suite(path, ["models.bert.model=nowhere"]), out)
    record, _ = read_suite(out)
    assert in_this_process == ["broken-bert-42"], "which has nothing to lose"
    assert [c.state for c in record.cells] == [State.FAILED] * 4
    in_this_process.clear()
    assert all("nowhere" in c.reason for c in record.cells)
    run_suite(load_suite(path), out, only=["hybrid"])
    assert in_this_process == [], "the cell was lost"
    run_suite(load_suite(path), out, only=["hybrid"], fresh=True)
    assert in_this_process == ["hybrid-bert-42"]


def test_an_interrupted_job_keeps_its_cells_and_says_how_to_go_on(tmp_path, monkeypatch):
    def run(loaded, folder, quiet):
        method = folder.path.name.partition("-")[0]
        if method == "hybrid":
            return 130, ""
        result = make_result(recipe_hash=loaded.hash)
        (folder.path / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
        return (0, "") if method == "int8" else (2, "error: measured, but its card's code fails")

    monkeypatch.setattr(child, "_in_a_process", run)
    path, out = suite_file(tmp_path), tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", str(path), "--output", str(out)])
    assert done.exit_code == 130 and "repeat the command" in " ".join(done.output.split())
    record = SuiteRecord.model_validate_json((out / RECORD).read_text())
    assert [c.state for c in record.cells] == [State.DONE, State.FAILED, State.WAITING]
    tried = []
    monkeypatch.setattr(
        child, "_in_a_process", lambda loaded, folder, quiet: (2, tried.append(folder.path.name) or "error: again")
    )
    run_suite(load_suite(path), out)
    assert tried == ["pruned-bert-42", "hybrid-bert-42"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path = suite_file(tmp_path)
    with pytest.raises(HFCompressError, match="nothing was touched"):
        run_suite(load_suite(path), tmp_path / "data")
    assert (tmp_path / "data" / "train.csv").exists()
    with pytest.raises(RecipeError, match="Did you mean 'pruned'"):
        run_suite(load_suite(path), tmp_path / "out", only=["prund"])


def test_a_cell_in_a_process_of_its_own_and_why_it_failed(tmp_path):
    (cell, *_) = load_suite(suite_file(tmp_path), ["models.bert.model=no/such-folder"]).cells
    reason = child.execute(cell.loaded, tmp_path / "out", Shelf())
    assert "no/such-folder" in reason and "\n" not in reason
    assert "out of memory" in child._reason(-9, "") and len(child._reason(2, "error: " + "a b " * 900)) <= 300
    assert child._reason(1, "Traceback\nValueError: odd\n") == "exit status 1: ValueError: odd"


def record_of(results, model="bert"):
    """Return the record of done cells called METHOD-SEED."""
    cells = [
        CellRecord(
            name=name, model=model, method=name.rpartition("-")[0], seed=int(name.rpartition("-")[2]),
            category=Category.PRUNING, state=State.DONE,
        )
        for name in results
    ]  # fmt: skip
    return SuiteRecord(title="Report", cells=cells)


def with_accuracy(value):
    result = make_result()
    quality = [q.model_copy(update={"value": value}) for q in result.compressed.quality]
    head = [d.model_copy(update={"value": value - 0.8784}) for d in result.difference]
    compressed = result.compressed.model_copy(update={"quality": quality})
    return result.model_copy(update={"compressed": compressed, "difference": head})


def test_a_row_says_mean_and_spread_over_seeds_and_the_loss_against_the_control():
    results = {"m-1": with_accuracy(0.87), "m-2": with_accuracy(0.86)}
    (row,) = [line for line in render_report(record_of(results), results, {}).splitlines() if "`m`" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "86.50 ± 0.71" and cells[4] == "−1.34 ± 0.71"
    assert cells[5] == "88.07 ± 0.00" and cells[6] == "−1.57 ± 0.71"
    assert cells[7] == "7.21x / 4.40x"  # best engine against PyTorch, and in that engine
    (one,) = [s for s in render_report(record_of({"m-1": results["m-1"]}), results, {}).splitlines() if "`m`" in s]
    assert "(−1.95 to +0.34)" in one and "±" not in one


def test_a_report_is_written_again_from_its_files_alone(tmp_path):
    results = {"m-1": make_result()}
    (tmp_path / CELLS / "m-1").mkdir(parents=True)
    (tmp_path / CELLS / "m-1" / "result.json").write_text(results["m-1"].model_dump_json())
    (tmp_path / RECORD).write_text(record_of(results).model_dump_json())
    page = write_report(tmp_path)
    before = page.read_bytes(), (tmp_path / "bert.png").read_bytes()
    done = CliRunner().invoke(app, ["compare", str(tmp_path), "--report"])
    assert done.exit_code == 0 and (page.read_bytes(), (tmp_path / "bert.png").read_bytes()) == before


def assert_names_are_clear(figure, names):
    """Check that no name covers another, a foreign point or the line, and none leaves its panel."""
    for axis in figure.axes:
        boxes = {t.get_text(): t.get_window_extent() for t in axis.texts if t.get_text() in names}
        assert set(boxes) == set(names)
        dots = [axis.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in axis.lines
                if line.get_marker() == "o" and len(line.get_xdata())]  # fmt: skip
        (dashed,) = (line for line in axis.lines if line.get_linestyle() == "--" and len(line.get_xdata()))
        path = [axis.transData.transform(point) for point in zip(*dashed.get_data(), strict=True)]
        edges = [Bbox([np.minimum(a, b), np.maximum(a, b)]) for a, b in itertools.pairwise(path)]
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
            assert not a.overlaps(b), (one, other)
        for name, box in boxes.items():
            assert not any(box.contains(*dot) for dot in dots), f"{name} covers a point"
            assert not any(box.overlaps(edge) for edge in edges), f"the line runs through {name}"
            assert axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1, name


def test_no_name_overlaps_another_a_point_or_the_line():
    names = [f"method-{i}" for i in range(14)]
    dots = [
        Dot(name, str(list(Category)[i % 7]), 8 + i % 5, value := 0.87 + 0.001 * (i % 3), 0.1 + 0.02 * (i % 4), value)
        for i, name in enumerate(names)
    ]
    figure = draw_dots(dots, make_result())
    assert len(figure.axes) == 2
    assert_names_are_clear(figure, [*names, "original"])


@pytest.mark.parametrize("model", ["sst2", "banking77", "dinov2", "resnet"])
def test_names_are_clear_in_the_survey(model):
    record, results = read_suite(SHIPPED[0].parents[2] / "model_cards" / "survey")
    entries = suite._entries(record, results)[model]
    figure = draw_dots(suite._dots(entries), next(suite._results(entries)))
    assert_names_are_clear(figure, [*(e.method for e in entries if e.results), "original"])


def test_numbers_are_clear_in_the_most_crowded_figure_of_a_card():
    others = find_results([SHIPPED[0].parents[2] / "model_cards"])

    def panels(result):
        runs = {"this run": result} | pareto.comparable(result, others)
        return pareto._sizes(runs), pareto._times(result, runs)

    result = max(others.values(), key=lambda one: sum(map(len, panels(one))))
    drawn = panels(result)
    assert len(drawn[0]) > 20 and len(drawn[1]) > 2
    figure = pareto.draw_pareto(result, others)
    for axis, points in zip(figure.axes[:-1], drawn, strict=True):
        boxes = [t.get_window_extent() for t in axis.texts if t.get_text().strip()]
        assert len(boxes) == len([p for p in points if p.name not in (pareto._OURS, pareto._ORIGINAL)])
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        dots = [line for line in axis.lines if line.get_marker() == "o"]
        places = [axis.transData.transform((d.get_xdata()[0], d.get_ydata()[0])) for d in dots]
        assert not any(box.contains(*place) for box in boxes for place in places)


def test_a_point_in_time_has_the_metric_of_the_engine_that_takes_it():
    result = make_result()  # 87.04 in PyTorch, 87.16 in the engine that is the fastest
    (dot,) = suite._dots(suite._entries(record_of({"m-1": 0}), {"m-1": result})["bert"])
    assert (dot.value, dot.timed_value) == (0.8704, 0.8716) and dot.time == pytest.approx(0.61 / 4.4)
    assert "7.21x / 4.40x, at 87.16" in render_report(record_of({"m-1": 0}), {"m-1": result}, {})
    (_, point) = pareto._times(result, {"this run": result, "other": result})
    assert point.value == pytest.approx(87.16)


def test_what_failed_is_a_row_and_a_missing_seed_is_told():
    record = record_of({"m-1": 0, "m-2": 0, "other-1": 0})
    rows = [line for line in render_report(record, {"m-1": make_result()}, {}).splitlines() if line.startswith("| ")]
    assert any("| `m`, 1 of 2 seeds |" in row for row in rows)
    (failed,) = [row for row in rows if "`other`" in row]
    assert "| none: done |" in failed and failed.count("|") == rows[0].count("|")
    nothing = render_report(record, {}, {})
    assert "| parameter pruning | `other` | none: done |" in nothing


def test_the_readmes_suite_loads(tmp_path):
    root = Path(__file__).parent.parent
    text = (root / "README.md").read_text(encoding="utf-8").split("### Several methods side by side")[1]
    (tmp_path / "recipes").symlink_to(root / "recipes")
    path = tmp_path / "suite.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    cells = {cell.name: cell.loaded.recipe for cell in load_suite(path).cells}
    assert len(cells) == 6 and cells["pruned-mine-3"].stages[0].methods["movement"]["heads"] == 0.5

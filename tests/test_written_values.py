"""Numbers as messages, plans and recipes write them: metrics in the card's unit, shares, workloads."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import text_project
from rich.console import Console

from hfcompress.core.errors import RecipeError
from hfcompress.core.metric import written
from hfcompress.core.shares import share
from hfcompress.measure.workloads import Shape as Workload
from hfcompress.modules.coverage import Left
from hfcompress.recipe import Shape, load_recipe
from hfcompress.recipe.load import recipe_schema
from hfcompress.recipe.shape import split_shape, written_out
from hfcompress.run.benching import parse_shape
from hfcompress.run.setup import open_recipe
from hfcompress.run.show_plan import plan_table


def test_values_that_round_to_none_have_no_sign_and_shares_a_limit():
    assert written(-1e-9, higher=True) == "0.00%" and written(0.5, higher=False) == "0.50", "an error is no share"
    assert share(1e-6, 2) == "less than 0.01%" and share(0, 2) == "0.00%"


def test_tiny_places_are_told_together():
    reasons = {"a": 0.3, "b": 0.0004, "c": 0.0003, "d": 0.02}
    told = str(Left(0.5, reasons))
    assert told == "32.1% of the weights are not covered: 30.0% in a; 2.0% in d; 0.1% in 2 other places"
    assert str(Left(0.5, {"a": 0.3, "b": 0.0004})).endswith("30.0% in a; less than 0.1% in 1 other place")
    many = {f"p{i}": 0.01 for i in range(6)} | {"q": 0.00001}
    assert str(Left(0.5, many)).endswith("1.0% in p3; 2.0% in 3 other places") and "0.0%" not in str(Left(0.5, many))
    assert str(Left(0.5, {"a": 0.01})) == "1.0% of the weights are not covered: 1.0% in a"
    assert str(Left(0.5, {"a": 0.001})) == ""


@pytest.mark.parametrize(("override", "said"), [("true", False), ("false", True)])
def test_a_plan_says_that_the_original_was_not_measured(tmp_path: Path, override: str, said: bool, capsys):
    recipe = load_recipe(text_project(tmp_path), [f"evaluate.allow_trivial={override}"])
    Console(width=300).print(plan_table(open_recipe(recipe).plan))
    printed = capsys.readouterr().out
    assert (
        "`hfcompress run` measures the original first, and ends there if it is no better than a guess" in printed
    ) is said


BASE = {
    "model": "x",
    "task": "text-classification",
    "data": {"path": "d"},
    "stages": [{"methods": {"quantize_weights": {}}}],
}


def _shapes(given):
    return load_recipe({**BASE, "benchmark": {"shapes": given}}).recipe.benchmark.shapes


def test_workloads_may_be_written_in_short():
    assert _shapes(["1x32", " 8×128 ", {"batch": 2}]) == ["1x32", "8×128", Shape(batch=2)]
    assert load_recipe(BASE, ["benchmark.shapes=[1x32]"]).recipe.benchmark.shapes == ["1x32"]
    again = load_recipe({**BASE, "benchmark": {"shapes": ["1x32", {"length": 8}]}})
    assert load_recipe(again.recipe).recipe == again.recipe
    assert written_out("8X128", images=False) == Shape(batch=8, length=128)
    assert written_out("8x224", images=True) == Shape(batch=8, image_size=224)
    assert written_out(Shape(batch=3), images=True) == Shape(batch=3)
    assert parse_shape("8×16", is_image=False) == Workload(8, 16)
    assert [split_shape(text) for text in ("0x3", "3x0", "3", "3x", "x3", "3x3x3", "1e3x3", "٣x٣")] == [None] * 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["1by32"],
            "benchmark.shapes.0: write BATCHxLENGTH, such as 8x128 .*, or {batch: 8, length: 128} .got '1by32'",
        ),
        ([[1, 32]], "benchmark.shapes.0: write BATCHxLENGTH"),
        ([7], "benchmark.shapes.0: write BATCHxLENGTH"),
        ("1x32", r"benchmark.shapes: give a list, such as \[1x32\]"),
        (3, r"benchmark.shapes: give a list, such as \[8x128\]"),
        ([{"len": 3}], "benchmark.shapes.0.len: unknown key"),
        ([], "benchmark.shapes: .*at least 1"),
    ],
)
def test_a_workload_in_another_form_shows_the_right_one(given, message):
    with pytest.raises(RecipeError, match=message):
        _shapes(given)


def test_the_schema_shows_both_forms():
    shapes = recipe_schema()["$defs"]["Benchmark"]["properties"]["shapes"]
    assert "BATCHxLENGTH" in shapes["description"]
    kinds = shapes["anyOf"][0]["items"]["oneOf"]
    assert kinds[0]["type"] == "string" and kinds[1] == {"$ref": "#/$defs/Shape"}


def test_a_run_times_the_workloads_written_in_short(tmp_path: Path):
    path = text_project(tmp_path, benchmark={"engines": ["pytorch"], "shapes": ["2x8", {"batch": 1, "length": 4}]})
    assert open_recipe(load_recipe(path, ["require={speedup_2: '>=0'}"])).shapes == [Workload(2, 8), Workload(1, 4)]

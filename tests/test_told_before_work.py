"""What a user is told of data, shapes and shares, and what a run that stops says of itself."""

from __future__ import annotations

import re

import pytest
from project import NAMES, text_project
from pydantic import ValidationError
from test_leakage import _report, _texts, _write

from hfcompress.core.errors import DataError, HFCompressError, RecipeError
from hfcompress.core.metric import written
from hfcompress.core.shares import share
from hfcompress.measure.unfinished import unfinished
from hfcompress.modules.coverage import Left
from hfcompress.recipe import Benchmark, load_recipe
from hfcompress.recipe.shape import written_out
from hfcompress.run import execute, trivial
from hfcompress.run.execute import run_recipe
from hfcompress.run.setup import open_recipe


def test_repeated_and_contradictory_training_examples_are_counted(tmp_path):
    train = {"text": ["a b", "A  b", "c", "c", "d"], "label": [0, 1, 0, 0, 1]}
    _write(tmp_path, train=train, test=_texts("x", "y"))
    told = " ".join(_report(tmp_path).sentences())
    assert "2 training texts occur more than once (4 rows)" in told
    assert "1 of them with different labels" in told and "row 1 of 'train' and row 2 of 'train'" in told


def test_a_label_without_a_class_is_counted_and_no_class_is_suggested_for_it(tmp_path):
    recipe = text_project(tmp_path)
    with (tmp_path / "data" / "train.csv").open("a") as file:
        file.write("a film,mixed\n" * 3)
    with pytest.raises(DataError) as found:
        open_recipe(load_recipe(recipe))
    said = str(found.value)
    assert re.search(r"No class is left for 'mixed' \('mixed' in .*3 .*'train'.*\)\. Remove these rows", said), said
    assert not any(f"mixed: {name}" in said for name in NAMES)


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch):
    recipe = text_project(tmp_path, evaluate={"allow_trivial": False})
    monkeypatch.setattr(trivial, "trivial_score", lambda *_: 1.0)
    with pytest.raises(DataError, match=r"gets accuracy \d+\.\d\d% .*no better than always .* \(100\.00%\)"):
        run_recipe(load_recipe(recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_folder_of_a_run_that_stopped_says_why_and_how_to_go_on(tmp_path, monkeypatch):
    recipe = text_project(tmp_path)

    def fails(*_):
        raise HFCompressError("the stage fell over")

    monkeypatch.setattr(execute, "run_stages", fails)
    loaded = load_recipe(recipe, ["stages.0.train.max_steps=1"])
    with pytest.raises(HFCompressError, match="fell over"):
        run_recipe(loaded, tmp_path / "out")
    if (tmp_path / "out").exists():
        pytest.fail("a run that is refused before it has made anything leaves nothing")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(execute, "run_stages", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt("SIGTERM")))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(loaded, tmp_path / "out")
    said = unfinished(tmp_path / "out")
    assert "did not finish" in said and "it was interrupted (SIGTERM)" in said
    assert f"--set stages.0.train.max_steps=1 --output {tmp_path / 'out'} --resume" in said


def test_shapes_are_written_in_short():
    benchmark = Benchmark.model_validate({"shapes": ["1x32", "8×128", {"batch": 2, "length": 4}]})
    assert [written_out(one, images=False).model_dump(exclude_none=True) for one in benchmark.shapes or ()] == [
        {"batch": 1, "length": 32},
        {"batch": 8, "length": 128},
        {"batch": 2, "length": 4},
    ]
    assert written_out("1x224", images=True).image_size == 224
    for wrong, words in (("1x32", r"give a list, such as \[1x32\]"), (["1-32"], "BATCHxLENGTH, such as 8x128")):
        with pytest.raises(ValidationError, match=words):
            Benchmark.model_validate({"shapes": wrong})


def test_a_shape_of_pixels_is_refused_for_a_model_of_text(tmp_path):
    shapes = {"shapes": [{"batch": 1, "image_size": 8}], "engines": ["pytorch"]}
    with pytest.raises(RecipeError, match=r"shapes\.0\.image_size: the model reads text: give 'length'"):
        open_recipe(load_recipe(text_project(tmp_path, benchmark=shapes)))


def test_small_places_are_told_together():
    told = str(Left(0.3004, {"a": 0.3, "b": 0.0003, "c": 0.0001}))
    assert told == "30.0% of the weights are not covered: 30.0% in a; less than 0.1% in 2 other places"


@pytest.mark.parametrize(
    ("value", "others", "higher", "text"),
    [(0.9, (), True, "90.00%"), (12.3, (), False, "12.30"), (0.5, (3.0,), True, "0.50"), (-0.2, (), True, "−20.00%")],
)
def test_a_metric_has_the_unit_of_the_card(value, others, higher, text):
    assert written(value, *others, higher=higher) == text


def test_a_share_is_never_rounded_to_none_or_all():
    assert [share(v) for v in (0.0, 0.0001, 0.5, 0.9999, 1.0)] == [
        "0.0%",
        "less than 0.1%",
        "50.0%",
        "more than 99.9%",
        "100.0%",
    ]

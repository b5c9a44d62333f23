"""Recipes, suites and searches made wrong: a message of ordinary length that names what is wrong, and nothing else."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from pathlib import Path

import pytest
import yaml
from mutants import bomb, mutants
from project import text_project
from test_search import search_file
from test_suite import suite_file

from hfcompress import cli
from hfcompress.core.errors import HFCompressError, RecipeError, WriteError
from hfcompress.recipe.load import load_recipe
from hfcompress.recipe.schema import Recipe
from hfcompress.recipe.search import Search, load_search
from hfcompress.recipe.suite import Suite, load_suite
from hfcompress.run.setup import open_recipe

LONGEST = 4000  # bytes


def refusal(load, *given) -> str | None:
    """Return what `load` has against what it is given; anything but a typed error of ordinary length is a failure."""
    try:
        load(*given)
    except HFCompressError as error:
        message = str(error)
        assert len(message.encode()) <= LONGEST and message.strip(), message[:300]
        assert message.isprintable() or not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", message)
        return message
    return None


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Return, by kind, a folder, its file's name, what loads it, and the keys it knows."""
    made = {}
    for kind, make, load, schema in (
        ("recipe", text_project, load_recipe, Recipe),
        ("suite", suite_file, load_suite, Suite),
        ("search", search_file, load_search, Search),
    ):
        folder = tmp_path_factory.mktemp(kind)
        path = make(folder)
        made[kind] = path, yaml.safe_load(path.read_text()), load, list(schema.model_fields)
    return made


def refused(kinds, kind: str, count: int, seed: int) -> int:
    path, good, load, names = kinds[kind]
    found = 0
    for text in itertools.islice(mutants(good, names, seed), count):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            found += refusal(load, path) is not None
        except BaseException:
            print(text[:2000])
            raise
    return found


@pytest.mark.parametrize("kind", ["recipe", "suite", "search"])
def test_a_few_mutants_end_in_a_message(kinds, kind):
    assert refused(kinds, kind, 100, seed=1) > 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["recipe", "suite", "search"])
def test_ten_thousand_mutants_end_in_a_message(kinds, kind, seed):
    assert refused(kinds, kind, 850, seed=100 + seed) > 400


@pytest.mark.slow
def test_mutants_that_load_are_planned_or_end_in_a_message(kinds):
    """What a recipe says is right in itself may still fit no data and no model."""
    path, good, _, names = kinds["recipe"]
    opened = 0
    for text in itertools.islice(mutants(good, names, seed=7), 800):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            loaded = load_recipe(path)
        except HFCompressError:
            continue
        opened += 1
        refusal(open_recipe, loaded)
    assert opened > 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: " + "9" * 5000, "5000 digits"),
        ("seed: " + "9" * 25, "18 digits"),
        ("a: &a [*a]", "alias within what it names"),
        ("a: &a {b: *a}", "alias within what it names"),
        (bomb(), "100,000 values"),
        (bomb(merge=True), "100,000 values"),
        ("[" * 1500, "levels"),
        ("[" * 100 + "]" * 100, "60 levels"),
        ('title: "\\ud800"', "U+D800"),
        ('model: "a\\0b"', "U+0000"),
        ("seed: !!int foo", "not of the kind that its tag says"),
        ("seed: !!timestamp foo", "line 1"),
        ("seed: .inf", "expected a number"),
        ("x" * 1_100_000, "larger than 1 MB"),
    ],
)
def test_what_no_recipe_says_is_told_at_once(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    started = time.process_time()
    assert words in (refusal(load_recipe, path) or "")
    assert time.process_time() - started < 20, "it looked at all that a few letters stand for"


def test_only_files_are_read(tmp_path):
    """A device has no end, and a pipe nobody writes to has no beginning."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for place in ("/dev/zero", tmp_path / "pipe.yaml", tmp_path / "folder.yaml", tmp_path / ("x" * 300), "a\0b"):
        watch = threading.Timer(60, os._exit, (99,))  # a read without an end would fill the memory
        watch.start()
        for load in (load_recipe, load_suite, load_search):
            assert "cannot read the recipe" in (refusal(load, str(place)) or "")
        watch.cancel()
    search = search_file(tmp_path, recipe="/dev/zero")
    assert "/dev/zero" in (refusal(load_search, search) or "")
    suite = suite_file(tmp_path, models={"bert": {"recipe": "/dev/zero"}})
    assert "/dev/zero" in (refusal(load_suite, suite) or "")


@pytest.mark.parametrize(
    "item",
    [
        "seed=" + "9" * 5000,
        "stages." + "9" * 5000 + ".name=x",
        "stages.0." + "x" * 100_000 + "=1",
        "x" * 100_000,
        "seed=&a [*a]",
        "seed=" + bomb().replace("\n", ", "),
        "model=\udcff",
        "title=\udc80",
        "a\0b=1",
        "seed=!!int x",
        "data=[" * 3000,
        "...=1",
        "=1",
        "stages.0.methods=5",
        "stages.0.methods.movement.targets={a: " + "1" * 5000 + "}",
        "model.x.y=1",
    ],
    ids=lambda item: item[:20].encode("ascii", "backslashreplace").decode().replace("\0", "0"),
)
def test_a_value_set_on_the_command_line_ends_in_a_message(kinds, item):
    path, good, _, _ = kinds["recipe"]
    path.write_text(yaml.safe_dump(good))
    assert refusal(load_recipe, path, [item])


def test_a_mapping_from_python_is_held_to_the_same(kinds):
    good = kinds["recipe"][1]
    within = {"a": []}
    within["a"].append(within)
    for values in ({**good, "title": within}, {**good, "seed": 10**5000}, {**good, "model": Path("x")}, {**good, 5: 1}):
        assert refusal(load_recipe, values)


@pytest.mark.parametrize(
    "dataset", ["/", ".", "..", "~", "./data", "C:\\data", "a/b/c", "a b", "*", "sklearn:", "hf://a"]
)
def test_a_data_set_is_named_as_the_hub_does(kinds, dataset):
    good = {**kinds["recipe"][1], "data": {"dataset": dataset}}
    assert "data" in (refusal(lambda: open_recipe(load_recipe(good))) or "")


def test_no_message_is_longer_than_a_screen_and_all_of_it_can_be_printed():
    message = str(RecipeError("é" * 100_000 + "\x1b[31m\udcff"))
    assert len(message.encode()) < LONGEST and "more letters" in message
    assert str(WriteError("a\x1b[31m\udcff\0b")) == "a\\x1b[31m\\udcff\\x00b"
    assert str(HFCompressError("as it is\nin lines, émojis 🎉 too")) == "as it is\nin lines, émojis 🎉 too"


def test_the_command_line_prints_such_a_message_and_no_traceback(kinds, tmp_path, monkeypatch, capsys):
    path = tmp_path / "[red]recipe[bold].yaml"
    path.write_text("model: '" + "[/x]" * 3000 + "'\n")
    for name, *more in (["plan"], ["run", "--set", "title=\udcff"], ["compare"], ["search"]):
        monkeypatch.setattr("sys.argv", ["hfcompress", name, str(path), *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith("error: ") and len(said) < LONGEST

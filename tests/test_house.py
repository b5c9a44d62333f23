"""The house rules: imports run one way, and no method is named outside its own file."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tiny import make

import hfcompress
import hfcompress.methods
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.files import between
from hfcompress.core.registry import _METHODS, list_methods
from hfcompress.measure.cells import read_suite
from hfcompress.measure.findings import findings
from hfcompress.measure.require import check
from hfcompress.measure.result import read_result
from hfcompress.publish.card import figures_beside, render_card
from hfcompress.publish.comparison import find_results
from hfcompress.publish.examples import said_of
from hfcompress.publish.pareto import PARETO, comparable
from hfcompress.publish.suite import render_report
from hfcompress.recipe.load import load_recipe
from hfcompress.recipe.suite import load_suite
from hfcompress.run.show_methods import methods_markdown
from hfcompress.run.table import with_comparison

PACKAGE = Path(hfcompress.__file__).parent
ROOT = PACKAGE.parent
ROOMS = [
    "core",
    "ops",
    "modules",
    "methods",
    "checkpoint",
    "recipe",
    "train",
    "export",
    "measure",
    "publish",
    "run",
    "search",
    "commands",
]
FORBIDDEN = {"export": {"train"}, "measure": {"train"}, "methods": {"methods"}}
FILES = sorted(PACKAGE.rglob("*.py"))
ALSO_WORDS = {
    "channels",
    "cp",
    "ffn",
    "heads",
    "image_size",
    "layers",
    "positions",
    "svd",
    "tucker",
    "vocabulary",
    "width",
}  # methods called by a word that code needs anyway: they are looked for where one is picked


def room(path: Path) -> str:
    """Return the room a file of the package is in; '' for files at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path) -> set[str]:
    """Return the rooms a file imports from, by relative or absolute imports anywhere in it."""
    package = ("hfcompress", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    parts = [n.split(".") for n in names if n.startswith("hfcompress.")]
    return {p[1] for p in parts if p[1] in ROOMS}


def violations(path: Path) -> list[str]:
    """Return the rooms a file may not import from, but does."""
    here = room(path)
    if here == "":
        return []
    allowed = set(ROOMS[: ROOMS.index(here) + 1]) - FORBIDDEN.get(here, set())
    if path.name == "__init__.py":
        allowed |= {here}
    return sorted(imported(path) - allowed)


def test_every_folder_is_a_known_room():
    assert {room(f) for f in FILES} - {""} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    assert not violations(path), f"{path.relative_to(ROOT)} imports from a room below it"


def test_an_arrow_that_runs_back_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_house.PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    bad = tmp_path / "core" / "x.py"
    bad.write_text("from ..train.trainer import HFCompressTrainer\n")
    assert violations(bad) == ["train"]


# a method that is named as a library, a part of one, or a format is: the files that speak to it
LIBRARIES = {
    "bitsandbytes": (
        "modules/bnb.py",
        "modules/bnb_quantized.py",
        "checkpoint/inner.py",
        "commands/shared.py",
        "run/doctor.py",
    ),
    "lora": ("modules/adapters.py", "modules/exact_merges.py"),  # the part of peft
    "gptq": ("export/gptq.py", "run/exporting.py"),  # the checkpoint format of that name
}


@pytest.mark.parametrize("name", list_methods())
def test_no_method_is_named_outside_its_file(name):
    cls = list_methods()[name].__name__
    word = re.compile(rf"(?<![\w-]){name}(?![\w-])|\b{cls}(Config)?\b")
    if name in ALSO_WORDS:
        word = re.compile(rf"\bmethods(\.|\[['\"]){name}\b|\b(create|get)\(['\"]{name}['\"]|\b{cls}Config\b")
    allowed = {PACKAGE / "methods" / f"{name}.py", PACKAGE / "methods" / "__init__.py"}
    allowed |= {PACKAGE / file for file in LIBRARIES.get(name, ())}
    code = {f: _code(f) for f in FILES if f not in allowed}
    assert not [str(f.relative_to(ROOT)) for f, text in code.items() if word.search(text)]


@cache
def _code(path: Path) -> str:
    """Return a file without docstrings and comments: prose and help texts may give examples."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0].value.value = ""
        if isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            node.value = ast.Constant("")
    return ast.unparse(tree)


def test_nothing_unsafe_is_called():
    # the one yaml.load has a subclass of SafeLoader
    calls = (
        r"torch\.load\(|pickle\.|yaml\.load\((?!text, Loader=_Loader\))|(?<![.\w])(eval|exec)\("
        r"|trust_remote_code=True|allow_pickle=True"
    )
    found = [f"{f.name}: {m[0]}" for f in FILES for m in re.finditer(calls, _code(f))]
    assert not found


def test_readme_lists_every_method():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == between(text, "methods", methods_markdown()), "out of date: hfcompress methods --markdown"


def test_the_readmes_example_of_a_method_works(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("<!-- example method -->\n```python\n")[1].split("```\n<!-- /example method -->")[0]
    known, place = set(list_methods()), {"__name__": "example"}
    try:
        exec(compile(code, "README.md", "exec", dont_inherit=True), place)
        model = make("bert")
        assert hfcompress.compress(model, place["RoundFFNConfig"](bits=4)) is model
        save_checkpoint(model, tmp_path)
    finally:
        for name in set(list_methods()) - known:
            del _METHODS[name]
    up = load_model(tmp_path, "AutoModelForSequenceClassification").bert.encoder.layer[0].intermediate.dense
    assert up.grid.bits == 4


def test_numbers_quoted_in_how_to_choose_are_those_of_the_cards():
    """Each number of a row stands in the table that is generated from the results."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = {m[1]: line for line in text.splitlines() if (m := re.match(r"\| \[([\w-]+)\]\(model_cards/", line))}
    rows = [
        line
        for line in text.split("### How to choose")[1].split("###")[0].splitlines()
        if re.match(r"\|.*model_cards/", line)
    ]
    assert len(rows) >= 6
    for row in rows:
        run = re.search(r"model_cards/([\w-]+)/", row)[1]
        for number in re.findall(r"[+−]?\d+\.\d+", row.split("|")[3].split("(")[0]):
            assert number in table[run] or number in text.split(table[run])[0].rsplit("**", 2)[1], (run, number)


def test_every_method_is_in_a_recipe():
    recipes = [load_recipe(path).recipe for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    used = {name for recipe in recipes for stage in recipe.stages for name in stage.methods}
    assert not set(list_methods()) - used, "these have no recipe that shows them at work"


@pytest.mark.parametrize("page", ["README.md", "model_cards/README.md"])
def test_the_measured_table_is_that_of_the_published_results(page):
    folder = ROOT / "model_cards"
    now = with_comparison(find_results([folder]), [folder], ROOT / page)
    assert (ROOT / page).read_text(encoding="utf-8") == now, f"out of date: hfcompress table model_cards --write {page}"


def test_published_findings_and_requirements_are_those_the_numbers_give_today():
    for folder in (path.parent for path in ROOT.glob("model_cards/*/result.json")):
        result = read_result(folder)
        numbers = (result.baseline, result.compressed, result.speedup, result.waiting, result.methods)
        assert result.findings == findings(*numbers), folder.name
        wanted = {line.name: line.wanted for line in result.requirements}
        assert result.requirements == check(result, wanted), folder.name


def test_published_cards_are_rendered_from_their_results():
    others = find_results([ROOT / "model_cards"])
    for result in sorted((ROOT / "model_cards").glob("*/result.json")):
        found = read_result(result)
        figures = figures_beside(found, result.parent)
        same = (result.parent / "README.md").read_text(encoding="utf-8") == render_card(
            found, *figures, examples=said_of(result.parent)
        )
        mend = f"out of date: hfcompress card {result.parent.relative_to(ROOT)} --beside model_cards"
        assert same, mend
        assert (PARETO in figures) == bool(comparable(found, others)), mend
        assert all((result.parent / name).is_file() for name in figures), result.parent.name


@pytest.mark.parametrize("suite", sorted(path.parent.name for path in ROOT.glob("model_cards/*/suite.json")))
def test_a_comparison_is_rendered_from_its_results(suite: str):
    folder = ROOT / "model_cards" / suite
    record, results = read_suite(folder)
    figures = {cell.model: f"{cell.model}.png" for cell in record.cells if cell.name in results}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == render_report(record, results, figures), (
        f"out of date: hfcompress compare model_cards/{suite} --report"
    )
    assert all((folder / name).is_file() for name in figures.values())
    shipped = load_suite(ROOT / "recipes" / "suites" / f"{suite}.yaml")
    assert {cell.name for cell in record.cells} == {cell.name for cell in shipped.cells}, "run it again"

"""A search for sizes: what it proposes, what a trial may see, what is picked, kept, refused, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from project import text_project
from test_card import make_result
from typer.testing import CliRunner

from hfcompress.cli import app
from hfcompress.core.errors import HFCompressError, PublishError, RecipeError
from hfcompress.measure.cells import State
from hfcompress.measure.result import read_result
from hfcompress.measure.trials import RECORD, SIZES, SearchRecord, Size, Trial, read_search
from hfcompress.publish.search import render_report, write_report
from hfcompress.publish.search_figure import draw_trials
from hfcompress.recipe.search import load_search
from hfcompress.run import child, execute
from hfcompress.run.folder import RunFolder
from hfcompress.run.pushing import pushes
from hfcompress.run.shelf import Shelf
from hfcompress.search.execute import run_search
from hfcompress.search.proposing import Proposer

SHIPPED = sorted((Path(__file__).parent.parent / "recipes" / "searches").glob("*.yaml"))
BITS = "stages.0.methods.quantize_weights.bits"


def search_file(folder: Path, **changes: object) -> Path:
    """Write a search over the bits of a one-shot recipe for the tiny text model."""
    text_project(folder, stages=[{"methods": {"quantize_weights": {}}}], publish={"repo_id": "me/tiny"})
    values = {
        "title": "Tiny sizes",
        "recipe": "recipe.yaml",
        "space": {BITS: [8, 4, 2]},
        "trials": 3,
        "sizes": {"small": {"size_ratio": ">=2"}, "smaller": {"size_ratio": ">=4"}},
        **changes,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def pretended(monkeypatch):
    """Let runs leave a result and a fine-tuned model at once; the list holds each folder's name."""
    ran: list[str] = []

    def run(loaded, folder, quiet):
        ran.append(folder.path.name)
        (folder.path / "result.json").write_text(make_result(recipe_hash=loaded.hash).model_dump_json())
        if loaded.recipe.finetune is not None:
            (folder.path / "baseline").mkdir(exist_ok=True)
            weights = folder.path / "baseline" / "model.safetensors"
            if not weights.exists():
                weights.write_text(f"trained in {folder.path.name}")
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)
    return ran


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_searches_load(path):
    search = load_search(path)
    assert search.search.sizes and search.trial(search.first).recipe.data.splits.held_out


def test_a_trial_never_sees_the_split_that_is_reported_and_a_size_is_measured_on_it(tmp_path):
    search = load_search(search_file(tmp_path, trial={"data.max_train": 20}))
    trial, size = search.trial({BITS: 4}).recipe, search.size("small", {BITS: 4}).recipe
    assert trial.data.splits.held_out and trial.benchmark is None and trial.data.max_train == 20 and not trial.publish
    assert not size.data.splits.held_out and size.data.max_train is None and size.require == {"size_ratio": ">=2"}
    assert size.publish.repo_id == "me/tiny-small" and size.title == "Tiny sizes: small"
    assert {r.stages[0].methods["quantize_weights"]["bits"] for r in (trial, size)} == {4}


def test_what_is_traded_is_timed_only_where_a_size_asks_for_time(tmp_path):
    path = search_file(tmp_path, sizes={"fast": {"speedup_1": ">=2"}})
    assert load_search(path, ["benchmark={rounds: 3}"]).trial({BITS: 4}).recipe.benchmark.rounds == 3


def test_the_best_within_each_sizes_bounds_is_run_whole(tmp_path, in_this_process, monkeypatch):
    cards, write = [], execute.write_card
    monkeypatch.setattr(execute, "write_card", lambda folder: cards.append(folder.name) or write(folder))
    sizes = {"small": {"size_ratio": ">=2"}}
    page = run_search(load_search(search_file(tmp_path, space={BITS: [8, 4]}, sizes=sizes)), tmp_path / "out")
    record, results = read_search(tmp_path / "out")
    assert sorted(t.params[BITS] for t in record.trials) == [4, 8], "a combination was tried twice"
    assert record.split == "train (held-out 20%)" and record.examples == 10
    assert in_this_process == ["000", "001", "small"] and cards == ["small"]
    (size,), chosen = record.sizes, record.best("small")
    assert chosen.number == size.trial and "small" in chosen.within and chosen.cost >= 2
    assert all(chosen.value >= t.value for t in record.done if "small" in t.within)
    assert results["small"].stages[0].methods["quantize_weights"]["bits"] == chosen.params[BITS]
    assert results["small"].dataset.split == "validation" and all(r.met for r in results["small"].requirements)
    assert not list((tmp_path / "out" / "trials").rglob("*.safetensors")), "a trial's model was left behind"
    text = page.read_text(encoding="utf-8")
    assert "[small](sizes/small/model/README.md)" in text and (tmp_path / "out" / "trials.png").exists()
    done = CliRunner().invoke(app, ["search", str(tmp_path / "out"), "--report"])
    assert done.exit_code == 0 and page.read_text(encoding="utf-8") == text


def test_a_trial_writes_no_card(tmp_path, monkeypatch):
    class Ended:
        stderr, returncode = None, 0

        def __init__(self, command, **more):
            commands.append(command)

        __enter__, __exit__ = lambda self: self, lambda *_: None

    commands = []
    monkeypatch.setattr("hfcompress.run.child.subprocess.Popen", Ended)
    loaded = load_search(search_file(tmp_path)).trial({BITS: 4})
    for quiet in (True, False):
        assert child.execute(loaded, tmp_path / "run", Shelf(), quiet=quiet) is None
    assert ["--no-card" in command for command in commands] == [True, False]


def test_trials_are_kept_and_more_of_them_or_other_sizes_go_on(tmp_path, pretended):
    path, out = search_file(tmp_path), tmp_path / "out"
    run_search(load_search(path, trials=1), out)
    assert pretended == ["000", "small", "smaller"]
    pretended.clear()
    values = yaml.safe_load(path.read_text())
    values["sizes"] = {"half": {"size_mb": "<=12"}, **values["sizes"]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run_search(load_search(path, trials=2), out)
    assert pretended == ["001", "half"], "what was done is done again"
    record, _ = read_search(out)
    assert (
        record.cost == "size_mb" and record.lower_cost_is_better and record.trials[0].cost == pytest.approx(11.2, 0.1)
    )
    with pytest.raises(RecipeError, match="another space or recipe"):
        run_search(load_search(path, ["seed=7"]), out)
    with pytest.raises(HFCompressError, match="nothing was touched"):
        run_search(load_search(path), tmp_path / "data")


def test_a_search_that_fine_tunes_first_does_so_once_for_trials_and_once_for_sizes(tmp_path, pretended):
    out = tmp_path / "out"
    run_search(load_search(search_file(tmp_path, trials=2), ["finetune={train: {max_steps: 2}}"]), out)
    assert fine_tuned(out) == {"shared": ["000"], "sizes": ["small", "small"]}


def test_trials_that_fine_tune_otherwise_do_not_get_the_model_of_another(tmp_path, pretended):
    rate = "finetune.train.learning_rate"
    path = search_file(tmp_path, space={BITS: [8, 4, 2], rate: [0.001, 0.002]}, trials=6)
    search = load_search(path, ["finetune={train: {max_steps: 2, learning_rate: 0.001}}"])
    run_search(search, tmp_path / "out")
    rates = {f"{trial.number:03}": trial.params[rate] for trial in read_search(tmp_path / "out")[0].trials}
    trained = fine_tuned(tmp_path / "out")["shared"]
    assert sorted(rates[name] for name in trained) == [0.001, 0.002]


def fine_tuned(out: Path) -> dict[str, list[str]]:
    """Return, by the folder of a search, the runs in which the models were fine-tuned that lie there."""
    found: dict[str, list[str]] = {}
    for path in sorted(out.rglob("baseline/model.safetensors")):
        found.setdefault(path.relative_to(out).parts[0], []).append(path.read_text().removeprefix("trained in "))
    return found


def test_each_size_goes_to_its_own_repository(tmp_path, pretended):
    search = load_search(search_file(tmp_path), ["publish.private=true"])
    folders = []
    for name in ("small", "smaller"):
        size, folder = search.size(name, {BITS: 4}), RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.begin(size, resume=False)
        result = make_result(recipe=size.text, overrides=list(size.overrides), recipe_hash=size.hash)
        (folder.path / "result.json").write_text(result.model_dump_json())
        folders.append(folder.path)
    found = pushes(folders, None, None)
    assert [(one.repo_id, one.private) for one in found] == [("me/tiny-small", True), ("me/tiny-smaller", True)]
    with pytest.raises(PublishError, match="2 of these runs go to me/tiny-small, where each would take"):
        pushes([folders[0], folders[0]], None, None)


def test_trials_on_other_files_are_not_taken_for_trials_on_these(tmp_path, pretended, monkeypatch):
    pretend = child._in_a_process

    def run(loaded, folder, quiet):
        folder.begin(loaded, resume=True)
        return pretend(loaded, folder, quiet)

    monkeypatch.setattr(child, "_in_a_process", run)
    path = search_file(tmp_path)
    run_search(load_search(path), tmp_path / "out")
    again = run_search(load_search(path), tmp_path / "out")
    assert again.is_file()
    data = tmp_path / "data" / "train.csv"
    data.write_text(data.read_text() + data.read_text().splitlines()[1] + "\n")
    with pytest.raises(RecipeError, match=r"data\.path: other files lie there than for the trials"):
        run_search(load_search(path), tmp_path / "out")


def test_a_title_may_hold_any_character(tmp_path):
    path = search_file(tmp_path)
    path.write_text(path.read_text().replace("Tiny sizes", "Größen 🤗"), encoding="utf-8")
    assert load_search(path).size("small", {BITS: 4}).recipe.title == "Größen 🤗: small"


def test_a_failed_trial_is_told_and_a_size_that_nothing_reaches_ends_with_status_3(tmp_path, monkeypatch):
    def run(loaded, folder, quiet):
        bits = loaded.recipe.stages[0].methods["quantize_weights"]["bits"]
        if bits == 2:
            return 2, "error: no such luck"
        (folder.path / "result.json").write_text(make_result(recipe_hash=loaded.hash).model_dump_json())
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)
    path = search_file(tmp_path, sizes={"small": {"size_ratio": ">=2"}, "none": {"size_ratio": ">=1000"}})
    done = CliRunner().invoke(app, ["search", str(path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 3, done.output
    record, results = read_search(tmp_path / "out")
    assert [t.state for t in record.trials if t.params[BITS] == 2] == [State.FAILED] and list(results) == ["small"]
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "no such luck" in text and "No `none`: no trial reached size_ratio >=1000; the farthest came to" in text


def test_interrupting_says_how_to_go_on_and_keeps_what_was_tried(tmp_path, monkeypatch):
    def run(loaded, folder, quiet):
        if folder.path.name == "001":
            return 130, ""
        (folder.path / "result.json").write_text(make_result(recipe_hash=loaded.hash).model_dump_json())
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)
    done = CliRunner().invoke(app, ["search", str(search_file(tmp_path)), "--output", str(tmp_path / "out")])
    assert done.exit_code == 130 and "repeat the command" in " ".join(done.output.split())
    record = SearchRecord.model_validate_json((tmp_path / "out" / RECORD).read_text())
    assert [t.number for t in record.trials] == [0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"stages.0.methods.quantize_weights.bit": [8, 4]}}, "Did you mean 'bits'"),
        ({"space": {BITS: [8, 5.5]}}, "5.5"),
        ({"space": {BITS: [8]}}, "at least two values"),
        ({"space": {BITS: {"low": 8, "high": 4}}}, "'low' has to be below 'high'"),
        ({"sizes": {"small": {"size_ratio": "5"}}}, "sizes.small.size_ratio"),
        ({"sizes": {"small": {}}}, "give it a bound"),
        ({"sizes": {"a/b": {"size_ratio": ">=2"}}}, "names a folder"),
        ({"recipe": "recip.yaml"}, "Did you mean"),
        ({"trial": {"data.max_trains": 3}}, "Did you mean 'max_train'"),
        ({"trails": 3}, "Did you mean 'trials'"),
    ],
)
def test_a_mistake_names_the_key_before_anything_runs(tmp_path, changes, words):
    with pytest.raises(RecipeError) as raised:
        load_search(search_file(tmp_path, **changes))
    assert words in str(raised.value)


def test_a_bound_of_nothing_measured_names_the_nearest(tmp_path):
    search = load_search(search_file(tmp_path, sizes={"small": {"size_ration": ">=5"}}))
    with pytest.raises(RecipeError, match=r"sizes\.small\.size_ration.*Did you mean 'size_ratio'"):
        run_search(search, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def record_of(points, **fields):
    trials = [
        Trial(number=i, params={"share": x}, state=State.DONE, value=v, cost=c, within=["s"] if c >= 4 else [])
        for i, (x, v, c) in enumerate(points)
    ]
    given = {
        "title": "T", "hash": "h", "space": {"share": {"low": 0.0, "high": 1.0}}, "cost": "size_ratio",
        "lower_cost_is_better": False, "metric": "accuracy", "trials": trials,
        "sizes": [Size(name="s", bounds={"size_ratio": ">=4"})],
    }  # fmt: skip
    return SearchRecord(**{**given, **fields})


def test_the_best_is_by_the_metric_in_its_direction_and_of_equals_the_cheapest():
    record = record_of([(0.1, 0.9, 2.0), (0.2, 0.8, 4.0), (0.3, 0.8, 5.0), (0.4, 0.7, 9.0)])
    assert record.best("s").number == 2 and record.best("other") is None
    assert record.model_copy(update={"higher_is_better": False}).best("s").number == 3


def test_proposals_are_new_learn_from_what_was_tried_and_do_not_depend_on_an_interruption(tmp_path):
    space = {"seed": {"low": 0, "high": 100}}
    search = load_search(search_file(tmp_path, space=space)).search
    found = []
    for _ in range(40):  # quality falls with the value and nothing else matters: low values are asked for
        trials = [
            Trial(number=i, params={"seed": x}, state=State.DONE, value=-float(x), cost=1.0)
            for i, x in enumerate(found)
        ]
        record = record_of([], trials=trials)
        asked = Proposer(search, record, 1).ask()
        assert asked == Proposer(search, record, 1).ask()
        found.append(asked["seed"])
    assert len(set(found)) == 40
    assert sum(found[20:]) / 20 < sum(found[:10]) / 10, "it did not learn"


def test_numbers_are_proposed_as_people_write_them(tmp_path):
    search = load_search(
        search_file(tmp_path, space={"data.validation_fraction": {"low": 0.1, "high": 0.4, "step": 0.05}})
    )
    trials, asked = [], []
    while (params := Proposer(search.search, record_of([], trials=trials), 1).ask()) is not None:
        asked.append(params["data.validation_fraction"])
        trials.append(Trial(number=len(trials), params=params, state=State.DONE, value=1.0, cost=1.0))
    assert sorted(map(str, asked)) == ["0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4"]


def test_nothing_is_proposed_once_all_was_tried(tmp_path):
    search = load_search(search_file(tmp_path)).search
    trials = [Trial(number=i, params={BITS: b}, state=State.FAILED) for i, b in enumerate((8, 4, 2))]
    assert Proposer(search, record_of([], trials=trials), 1).ask() is None


def test_the_figure_names_what_became_a_size():
    sizes = [Size(name="s", bounds={"size_ratio": ">=4"}, state=State.DONE, trial=2)]
    record = record_of([(0.1, 0.9, 2.0), (0.2, 0.8, 4.0), (0.3, 0.85, 5.0)], sizes=sizes, original=0.91)
    (axis,) = draw_trials(record).axes
    assert [text.get_text() for text in axis.texts] == ["s"]
    assert "| 3 | 0.3 | 5.00 | 85.00 | s |" in render_report(record, {"s": make_result()}, None)


def test_results_of_sizes_come_from_their_files(tmp_path):
    record = record_of([(0.3, 0.85, 5.0)], sizes=[Size(name="s", bounds={}, state=State.DONE, trial=0)])
    (tmp_path / SIZES / "s").mkdir(parents=True)
    (tmp_path / SIZES / "s" / "result.json").write_text(make_result().model_dump_json())
    (tmp_path / RECORD).write_text(record.model_dump_json())
    assert "87.04" in write_report(tmp_path).read_text(encoding="utf-8")
    assert read_result(tmp_path / SIZES / "s").size_ratio > 8


def test_the_readmes_search_loads(tmp_path):
    root = Path(__file__).parent.parent
    text = (root / "README.md").read_text(encoding="utf-8").split("### Several sizes of one model")[1]
    (tmp_path / "recipes").symlink_to(root / "recipes")
    path = tmp_path / "search.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert list(load_search(path).search.sizes) == ["small", "tiny"]

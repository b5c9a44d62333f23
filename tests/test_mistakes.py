"""Each mistake a user can make: one clear message, status 2, no traceback, nothing lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import text_project
from rich.console import Console
from test_card import make_result
from test_run import command  # noqa: F401 - a fixture
from test_search import search_file
from test_suite import suite_file
from tiny import make

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import RecipeError
from hfcompress.measure.result import read_result
from hfcompress.recipe.load import load_recipe
from hfcompress.run import benching
from hfcompress.run.execute import run_recipe
from hfcompress.run.folder import RunFolder, open_folder
from hfcompress.run.lock import sole_writer
from hfcompress.run.reporter import Reporter

MISTAKES = [
    (
        "stages.0.methods.movement.haeds=0.5",
        r"stages.0.methods.movement.haeds: unknown key (got 0.5). Did you mean 'heads'?",
    ),
    ("stages.0.methods.movment.heads=0.5", "stages.0.methods: no method is called 'movment'. Did you mean 'movement'?"),
    ("stages.0.methods.movement.heads=2", "stages.0.methods.movement.heads: input should be less than 1 (got 2)"),
    ("stages.0.train.learning_rat=1", "stages.0.train.learning_rat: TrainingArguments has no such field (got 1)."),
    (
        "evaluate.metric=acuracy",
        "evaluate.metric: text-classification has no metric 'acuracy'. Did you mean 'accuracy'?",
    ),
    ("task=text-clasification", "no task is called 'text-clasification'. Did you mean 'text-classification'?"),
    ("data.columns.text=txt", "data.columns.text: the data has no column 'txt'. Did you mean 'text'?"),
    ("data.path=nowhere", "nowhere"),
    ("model=nowhere", "model: cannot load nowhere with AutoModelForSequenceClassification"),
    ("model=no/where", "There is no folder no/where either."),
    ("model=./nowhere", "model: there is no folder ./nowhere"),
    ("teacher=models/no/where", "teacher: there is no folder models/no/where"),
    ("student=/no/where", "student: there is no folder /no/where"),
    ("processor=/no/where", "(there is no folder /no/where) Set 'processor'"),
    ("require={size_ratoi: '>=2'}", "require.size_ratoi: no such number is measured. Did you mean 'size_ratio'?"),
    ("stages.0.train=null", "distill acts while training: give its stage `train:`"),
    (
        "stages.1.methods.quantize_weights.targets=['re:bert.encodr.*']",
        "quantize_weights.targets: 're:bert.encodr.*' matches no module.",
    ),
    ("stages.1.methods.quantize_weights.ignore=[Linaer]", "'Linaer' matches no module. Did you mean 'Linear'"),
]


def fails(command, *args: object) -> str:  # noqa: F811
    """Run a command that has to end with status 2 and return its message."""
    status, _, errors = command(*args)
    assert status == 2 and "error:" in errors and "Traceback" not in errors, errors
    return errors


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[m[0].split("=")[0] for m in MISTAKES])
def test_mistakes_in_the_recipe(override, message, command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    said = fails(command, "plan", recipe, "--set", override)
    assert message in said
    said = fails(command, "run", recipe, "--output", tmp_path / "out", "--set", override)
    assert message in said


def test_no_such_recipe(command, tmp_path):  # noqa: F811
    text_project(tmp_path)
    assert "Did you mean" in fails(command, "run", tmp_path / "recip.yaml")


def test_a_model_type_that_is_not_known(command, tmp_path):  # noqa: F811
    from transformers import ConvBertConfig, ConvBertForSequenceClassification

    recipe = text_project(tmp_path)
    small = {"hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = ConvBertConfig(vocab_size=99, num_hidden_layers=2, num_labels=3, **small)
    convbert = ConvBertForSequenceClassification(config)
    convbert.config.id2label, convbert.config.label2id = make("bert").config.id2label, make("bert").config.label2id
    save_checkpoint(convbert, tmp_path / "convbert")
    names = json.loads((tmp_path / "base" / "config.json").read_text())
    path = tmp_path / "convbert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {k: names[k] for k in ("id2label", "label2id")}))
    processor = f"processor={tmp_path / 'base'}"
    said = fails(command, "plan", recipe, "--set", f"model={tmp_path / 'convbert'}", "--set", processor)
    assert "model type 'convbert' is not known" in said and "hfcompress.register_family(Family(" in said


def test_labels_that_do_not_fit(command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    for split in ("train", "validation"):
        path = tmp_path / "data" / f"{split}.csv"
        path.write_text(path.read_text().replace("neutral", "mixed"))
    said = fails(command, "plan", recipe)
    assert "mixed" in said and "neutral" in said


def test_empty_data(command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    (tmp_path / "data" / "validation.csv").write_text("text,label\n")
    assert "empty" in fails(command, "plan", recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "kept"), [("0/record.json", 0), ("0/model/model.safetensors", 0), ("1/model/config.json", 1)]
)
def test_a_damaged_stage_is_run_again_with_those_after_it(damaged, kept, command, finished):  # noqa: F811
    recipe, out = finished
    path = out / "stages" / damaged
    path.write_bytes(path.read_bytes()[:-40])
    status, printed, errors = command("run", recipe, "--output", out, "--resume", *FAST)
    assert status == 0 and "is damaged: it and what came of it are made again" in printed, errors
    assert printed.count("done before") == kept
    assert command("run", recipe, "--output", out, "--resume", *FAST)[1].count("done before") == 2


@pytest.mark.parametrize("keep", [-100, 5])
def test_damaged_weights(keep, command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "damaged" in fails(command, "plan", recipe)


def test_an_output_folder_that_is_something_else(command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "nothing was touched" in fails(command, "run", recipe, "--output", precious)
    assert (precious / "thesis.txt").read_text() == "years of work"
    said = fails(command, "run", recipe, "--output", precious / "thesis.txt" / "out")
    assert "cannot use" in said and "Not a directory" in said


FAST = ("--set", "stages.0.train.max_steps=1")


def test_what_a_run_has_made_is_kept_until_another_can_take_its_place(command, tmp_path):  # noqa: F811
    recipe, out = text_project(tmp_path), tmp_path / "out"
    assert "nosuch" in fails(command, "run", recipe, "--output", out, "--set", "data.path=nosuch")
    assert not out.exists(), "nothing came of it"
    assert command("run", recipe, "--output", out, *FAST)[0] == 0
    (out / "notes.txt").write_text("mine")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.rglob("*.safetensors")), "its owner's alone"
    (out / ".model.cut").mkdir()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said = fails(command, "run", recipe, "--output", out, *FAST)
    assert "holds a run of this recipe" in said and "--resume" in said and "--overwrite" in said
    said = fails(command, "run", recipe, "--output", out)
    assert "another recipe" in said and "choose another --output" in said and "--overwrite" in said
    assert "nosuch" in fails(command, "run", recipe, "--output", out, "--overwrite", "--set", "data.path=nosuch")
    said = fails(command, "run", recipe, "--output", out, "--overwrite", "--set", f"model={out / 'model'}")
    assert "model: " in said and "which --overwrite empties" in said
    assert "give one of them" in fails(command, "run", recipe, "--output", out, "--overwrite", "--resume", *FAST)
    (out / "result.json").rename(tmp_path / "result.json")  # an interrupted run's stages are hours of work too
    assert "--resume" in fails(command, "run", recipe, "--output", out, *FAST)
    (tmp_path / "result.json").rename(out / "result.json")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} | {out: 0} == before | {out: 0}
    new = {"finetune": {"train": {"max_steps": 1}}, "evaluate": {"control": True}}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in new.items()]
    assert command("run", recipe, "--output", out, "--overwrite", *FAST, *sets)[0] == 0
    assert (out / "notes.txt").read_text() == "mine" and not (out / ".model.cut").exists()
    assert not any(path.stat().st_mtime_ns == made for path, made in before.items() if path.name == "record.json")
    RunFolder(out).begin(load_recipe(recipe), resume=False)
    assert {path.name for path in out.iterdir()} == {"notes.txt", "hfcompress-run.json", "recipe.yaml"}


def test_brackets_in_names_are_names(command, tmp_path):  # noqa: F811
    folder = tmp_path / "v[v2]"
    folder.mkdir()
    (folder / "model").mkdir()
    (folder / "result.json").write_text(make_result().model_dump_json())
    status, printed, errors = command("card", folder)
    assert status == 0 and f"{folder}/model/README.md" in printed, errors
    assert "v[v2]" in command("table", folder)[1]
    assert "[n, m]: in every row" in command("methods", "wanda")[1]
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=200))
    reporter.heading("Stage 1: [red]prune[/blue]", "(done before)")
    reporter.say("[/x] is [a] :smile:", style="red")
    with reporter.bar("[/x]") as progress:
        progress("[/y] [red]", 1.0)
    for words in ("▸ Stage 1: [red]prune[/blue] (done before)", "  [/x] is [a] :smile:", "[/y] [red]"):
        assert words in said.getvalue()


def test_a_plan_of_a_stage_with_brackets_in_its_name(command, tmp_path):  # noqa: F811
    recipe = text_project(tmp_path)
    status, printed, errors = command("plan", recipe, "--set", 'stages.1.name="[red]int8[/blue]"')
    assert status == 0 and "[red]int8[/blue]" in printed, errors


def test_options_that_would_do_nothing_or_fail_late(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(benching, "bench_models", lambda *_: pytest.fail("measured in vain"))
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file" / "x.json", "exists"), (tmp_path, "it is a folder")):
        assert reason in fails(command, "bench", "some/model", "--json", path)
    (tmp_path / "result.json").write_text(make_result().model_dump_json())
    for option in (["--no-time"], ["--baseline", "x"], ["--set", "data.path=x"]):
        assert "say how to --check" in fails(command, "card", tmp_path, *option)
    said = fails(command, "push", tmp_path, "--repo-id", "bad//id", "--dry-run")
    assert "--repo-id bad//id: write it as user/name" in said
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        run_recipe(tmp_path / "nosuch.yaml", tmp_path / "out")


HOLD = """
import sys
from pathlib import Path
from hfcompress.run.lock import sole_writer
from hfcompress.run.reporter import Reporter
with sole_writer(Path(sys.argv[1]), "", ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["run", "compare", "search"])
def test_two_at_once_in_one_folder(name, command, tmp_path):  # noqa: F811
    write = {"run": text_project, "compare": suite_file, "search": search_file}[name]
    asked, out = write(tmp_path), tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        said = fails(command, name, asked, "--output", out)
        assert f"another run (process {holder.pid}) is writing into {out}" in said
    finally:
        holder.kill()
        holder.communicate()
    with sole_writer(out, "", ""):  # it has died, and so has its lock
        pass
    assert not list(out.iterdir())


def test_resuming_another_recipe(command, finished):  # noqa: F811
    recipe, out = finished
    said = fails(command, "run", recipe, "--output", out, "--resume")
    assert "another recipe" in said
    assert (out / "model" / "README.md").exists()


def test_resuming_on_other_files(tmp_path):
    """Stages done before would be of the old ones, all that is measured of the new."""
    loaded = load_recipe(text_project(tmp_path))
    folder = RunFolder(tmp_path / "out")
    folder.path.mkdir()
    folder.begin(loaded, resume=False)
    with open_folder(folder.path, loaded, resume=True):
        pass
    (tmp_path / "base" / "README.md").write_text("a card written anew is no other model")
    with open_folder(folder.path, loaded, resume=True):
        pass
    for key, changed in (("model", tmp_path / "base/config.json"), ("data.path", tmp_path / "data/train.csv")):
        before = changed.read_text()
        changed.write_text(before + "\n")
        with (
            pytest.raises(RecipeError, match=f"^{key}: other files lie there than when the run .*--overwrite"),
            open_folder(folder.path, loaded, resume=True),
        ):
            pass
        changed.write_text(before)
    with open_folder(folder.path, loaded, resume=True):
        pass


def test_resuming_to_measure_more_keeps_the_stages(command, finished):  # noqa: F811
    recipe, out = finished
    weights = out / "stages" / "0" / "model" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    more = ["--set", "evaluate.control=true", "--set", 'require.size_ratio=">=1"']
    done = command("run", recipe, "--output", out, "--resume", *FAST, *more)
    assert done[0] == 0, done
    assert weights.stat().st_mtime_ns == made
    result = read_result(out)
    assert result.control is not None and [line.name for line in result.requirements] == ["size_ratio"]


def test_a_full_disk(tmp_path):
    """A limit on file size stands in for a full disk: writing fails half-way through the weights."""
    recipe, out = text_project(tmp_path), tmp_path / "out"
    limit = 40_000  # bytes: enough for the small files, not for the weights
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; from hfcompress.cli import main; main()", "run", recipe, "--output", out],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "File too large" in done.stderr
    assert not list(out.rglob("*.safetensors")), "half a file was left"


def test_pushing_without_a_token_or_a_run(command, finished, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    _, out = finished
    assert "no result" in fails(command, "push", tmp_path, "--repo-id", "user/name")
    assert "--repo-id" in fails(command, "push", out)
    said = fails(command, "push", out, "--repo-id", "user/name")
    assert "token" in said and "hf auth login" in said
    assert Path(out / "model" / "README.md").exists()

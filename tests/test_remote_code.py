"""Python code that lies beside a model, a tokenizer, a data set or a metric is never run, whatever stdin says."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
from project import text_project
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BertModel

import hfcompress
from hfcompress import cli
from hfcompress.checkpoint import load_model
from hfcompress.core.errors import CheckpointError, RecipeError, RemoteCodeError
from hfcompress.core.pretrained import from_pretrained
from hfcompress.train.tasks import get_task

PACKAGE = Path(hfcompress.__file__).parent
HOME = PACKAGE / "core" / "pretrained.py"
OWN_MODEL = """
from pathlib import Path
Path({mark!r}).write_text("the code of the folder ran")
from transformers import {base}
class Own{base}({base}):
    model_type = "own"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    return text_project(folder)


@pytest.fixture
def yes(monkeypatch):
    """Answer every question with yes, as `yes y |` does."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))


def with_own_code(base: Path, folder: Path, file: str, name: str, base_class: str, **more: str) -> Path:
    """Copy a model folder and let `file` in it ask for code of its own; return where that code would leave a mark."""
    shutil.copytree(base, folder)
    mark = folder / "ran"
    (folder / "own.py").write_text(OWN_MODEL.format(mark=str(mark), base=base_class))
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    reference = f"own.Own{base_class}"
    values["auto_map"] = {name: [reference, None] if name == "AutoTokenizer" else reference}
    (folder / file).write_text(json.dumps({**values, **more}))
    return mark


def command(*arguments: str, monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["hfcompress", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


def test_plan_and_inspect_refuse_a_model_that_wants_its_own_code(project, tmp_path, yes, monkeypatch, capsys):
    folder = tmp_path / "own"
    mark = with_own_code(
        project.parent / "base", folder, "config.json", "AutoConfig", "PreTrainedConfig", model_type="own"
    )
    for call in (["plan", str(project), "--set", f"model={folder}"], ["inspect", str(folder)]):
        status, said = command(*call, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 2, said
        said = " ".join(said.split())
        assert "Python code of its own" in said and "hfcompress runs no code" in said and "own" in said
        assert "trust_remote_code=True" not in said
    assert not mark.exists()


def test_plan_refuses_a_tokenizer_that_wants_its_own_code(project, tmp_path, yes, monkeypatch, capsys):
    folder = tmp_path / "own"
    mark = with_own_code(
        project.parent / "base",
        folder,
        "tokenizer_config.json",
        "AutoTokenizer",
        "PreTrainedTokenizerFast",
        tokenizer_class="OwnTokenizer",
    )
    # no model type to take the tokenizer of
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    for key in ("processor", "teacher"):
        setting = f"{key}={folder}"
        status, said = command("plan", str(project), "--set", setting, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 2, said
    with pytest.raises(RemoteCodeError, match="AutoTokenizer"):
        from_pretrained(AutoTokenizer, folder)
    assert not mark.exists()


def test_an_image_processor_and_a_head_of_its_own_are_refused(project, tmp_path, yes):
    base = project.parent / "base"
    mark = with_own_code(
        base,
        tmp_path / "a",
        "preprocessor_config.json",
        "AutoImageProcessor",
        "BaseImageProcessor",
        image_processor_type="Own",
    )
    with pytest.raises(RemoteCodeError, match="AutoImageProcessor"):
        from_pretrained(AutoImageProcessor, tmp_path / "a")
    assert not mark.exists()
    # transformers knows the config, but not that head on it
    mark = with_own_code(base, tmp_path / "b", "config.json", "AutoModelForImageClassification", "BertModel")
    with pytest.raises(CheckpointError, match="runs no code"):
        load_model(tmp_path / "b", "AutoModelForImageClassification")
    assert not mark.exists()


def test_a_class_that_transformers_has_is_taken_in_place_of_the_folders_own(project, tmp_path, yes):
    mark = with_own_code(project.parent / "base", tmp_path / "own", "config.json", "AutoModel", "BertModel")
    assert type(from_pretrained(AutoConfig, tmp_path / "own")).model_type == "bert"
    assert type(load_model(tmp_path / "own", "AutoModel")) is BertModel
    assert not mark.exists()


def test_a_metric_is_never_fetched_by_the_name_of_a_folder_without_a_script(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda path: pytest.fail(f"evaluate looked for {path}"))
    (tmp_path / "accuracy").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"there is no file accuracy/accuracy\.py"):
        get_task("text-classification").metric("accuracy/")


KNOW_NO_CODE = {"peft.PeftModel.from_pretrained"}  # it puts classes of peft's own on a model that is there


def unguarded(text: str) -> list[str]:
    """Return the calls in a file that load, or build, what may bring its own code without refusing that."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if called in KNOW_NO_CODE:
            continue
        if called != "from_pretrained" and name in {"from_pretrained", "get_config_dict", "pipeline"}:
            found.append(called)
        elif name in {"load_dataset", "load_dataset_builder", "from_config"} and "Quantizer" not in called:
            says = {k.arg or ast.unparse(k.value): ast.unparse(k.value) for k in node.keywords}
            if says.get("trust_remote_code") != "False" and "NO_REMOTE_CODE" not in says:
                found.append(called)
    return found


def test_everything_is_loaded_through_the_one_place_that_runs_no_code():
    files = [path for path in PACKAGE.rglob("*.py") if path != HOME]
    assert not {str(path): calls for path in files if (calls := unguarded(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize(
    "call",
    [
        "AutoConfig.from_pretrained(x)",
        "type(t).from_pretrained(x, trust_remote_code=False)",
        "load_dataset(x)",
        "datasets.load_dataset(x, trust_remote_code=True)",
        "task.model_class.from_config(c)",
    ],
)
def test_an_unguarded_load_is_found(call):
    assert unguarded(call)

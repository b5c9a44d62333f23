"""What is imported when: the package and its help cost no torch, and each part no more than it needs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import logits, make
from transformers import AutoModelForSequenceClassification
from transformers.quantizers import auto

import hfcompress
from hfcompress.checkpoint import loader, save_checkpoint
from hfcompress.core.after_import import _Finder
from hfcompress.registration import HOME, QUANT_METHOD, ConfigStandIn, QuantizerStandIn, register

PACKAGE = Path(hfcompress.__file__).parent
LIGHT = {"typer", "click", "rich", "pydantic", "yaml"}  # what the command line may import to write its help
# what `compress` and the methods may import, each where it is needed, but not with themselves
HEAVY = {
    *("accelerate", "bitsandbytes", "codecarbon", "datasets", "evaluate", "matplotlib", "nncf", "onnx", "onnxruntime"),
    *("onnxscript", "openvino", "optimum", "optuna", "pandas", "peft", "pyarrow", "scipy", "sklearn", "torch_pruning"),
}
TRAINING = {"transformers.Trainer", "transformers.TrainingArguments"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with a structure that only the loader can build, and what it answers."""
    folder = tmp_path_factory.mktemp("packed")
    model = make("bert")
    hfcompress.compress(model, hfcompress.QuantizeWeightsConfig())
    save_checkpoint(model, folder)
    return folder, logits(model, "bert")


def same(folder: Path, answers: torch.Tensor) -> bool:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return torch.allclose(logits(model, "bert"), answers, atol=1e-6)


SESSION = """
import sys
import hfcompress

def loaded():
    heavy = ("torch", "transformers", "numpy", "datasets", "sklearn", "scipy", "matplotlib", "peft")
    return [name for name in heavy if name in sys.modules]

print("import:", loaded())
from hfcompress import cli
for words in (["--help"], ["doctor", "--help"], ["run", "--help"], ["search", "--help"]):
    sys.argv = ["hfcompress", *words]
    try:
        cli.main()
    except SystemExit as stopped:
        print("help:", stopped.code, loaded())
from transformers import AutoModelForSequenceClassification
from hfcompress.core.after_import import _Finder
from hfcompress.registration import QuantizerStandIn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as mapping
print("stand-in:", mapping["hfcompress"] is QuantizerStandIn)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
print("loaded:", type(model.bert.encoder.layer[0].intermediate.dense).__name__, mapping["hfcompress"].__name__)
"""


@pytest.mark.own_interpreter
def test_neither_the_package_nor_its_help_imports_torch_and_loading_works_after_it(checkpoint):
    code = SESSION.replace("FOLDER", repr(str(checkpoint[0])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [
        line for line in done.stdout.splitlines() if line.partition(":")[0] in ("import", "help", "stand-in", "loaded")
    ]
    assert said[:6] == ["import: []", *["help: 0 []"] * 4, "stand-in: True"]
    assert said[6].startswith("loaded: Packed") and said[6].endswith("HFCompressQuantizer")


def test_transformers_imported_after_the_package_knows_our_checkpoints(monkeypatch):
    """Run the module of the mappings once more, beside the one that is there."""
    monkeypatch.delitem(sys.modules, HOME)
    monkeypatch.delitem(sys.modules, loader.__name__)
    again = importlib.import_module(HOME)
    assert again is not auto
    assert again.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] is ConfigStandIn
    assert again.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] is QuantizerStandIn
    spec = again.__spec__
    assert "AUTO_QUANTIZER_MAPPING" in spec.loader.get_source(HOME), "what the module's own loader can, it still does"


def test_transformers_imported_before_the_package_knows_our_checkpoints(monkeypatch, checkpoint):
    for mapping in (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(mapping, QUANT_METHOD)
    with monkeypatch.context() as first:
        first.delitem(sys.modules, loader.__name__)
        register()
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] is ConfigStandIn
    assert auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] is QuantizerStandIn
    assert same(*checkpoint)


AFTER = """
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as mapping
assert "hfcompress" not in mapping
import hfcompress
model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
print("loaded:", type(model.bert.encoder.layer[0].intermediate.dense).__name__)
"""


def test_the_package_imported_last_in_a_new_process_loads_a_checkpoint(checkpoint):
    code = AFTER.replace("FOLDER", repr(str(checkpoint[0])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "loaded: Packed" in done.stdout, done.stderr


def test_registering_again_keeps_the_real_classes_and_one_finder(checkpoint):
    register()
    assert auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] is loader.HFCompressQuantizer
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] is loader.HFCompressConfig
    assert len([finder for finder in sys.meta_path if isinstance(finder, _Finder)]) == 1
    assert loader.QUANT_METHOD == QUANT_METHOD
    assert same(*checkpoint)


def loads(module: str) -> dict[str, str]:
    """Return what importing a module of the package imports of other packages, by the file that does."""
    found: dict[str, str] = {}
    left, seen = [module], set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        left += [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 1)]
        for imported in imports_at_once(name):
            if imported.startswith("hfcompress"):
                left.append(imported if file_of(imported) else imported.rpartition(".")[0])
            else:
                found.setdefault(imported, name)
    return found


def file_of(module: str) -> Path | None:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def imports_at_once(module: str) -> Iterator[str]:
    """Return the dotted names a module imports when it is itself imported, not in functions or for types only."""
    file = file_of(module)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    left = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def foreign(found: dict[str, str]) -> set[str]:
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names


def test_the_command_line_imports_what_a_command_needs_when_it_runs():
    assert foreign(loads("hfcompress.cli")) <= LIGHT


@pytest.mark.parametrize("module", ["methods", "run.show_methods", "train.compress", "checkpoint", "core.families"])
def test_compressing_and_loading_import_no_training_stack(module):
    found = loads(f"hfcompress.{module}")
    assert not {name: file for name, file in found.items() if name.partition(".")[0] in HEAVY or name in TRAINING}


def test_the_trainer_adds_to_transformers_own_only_what_it_reads_data_with():
    found = loads("hfcompress.train.trainer")
    assert foreign(found) & HEAVY <= {"accelerate", "datasets", "pyarrow"}, "the stock Trainer imports these too"


def test_what_is_imported_in_a_function_or_for_types_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("test_light_imports.PACKAGE", tmp_path / "hfcompress")
    (tmp_path / "hfcompress").mkdir()
    (tmp_path / "hfcompress" / "__init__.py").write_text("")
    lines = ["if TYPE_CHECKING:", "    import scipy", "def f():", "    import peft"]
    lines += ["try:", "    import onnx", "finally:", "    from .b import c"]
    (tmp_path / "hfcompress" / "a.py").write_text("\n".join(lines))
    (tmp_path / "hfcompress" / "b.py").write_text("import sklearn.metrics\n")
    assert foreign(loads("hfcompress.a")) == {"onnx", "sklearn"}

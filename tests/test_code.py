"""Models that carry their loader: loaded with transformers alone, pushed, and the same as with this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_server import TOKEN
from project import text_project
from safetensors.torch import load_file, save_file
from test_card import make_result, save_text_model, write_run
from test_hub import REPO, hub  # noqa: F401 - a fixture
from test_run import command  # noqa: F401 - a fixture
from tiny import auto_class, batch, calibration, corpus, logits, make
from transformers import dynamic_module_utils
from transformers.dynamic_module_utils import get_relative_import_files

import hfcompress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import PublishError
from hfcompress.core.registry import create
from hfcompress.measure.batches import write_batches
from hfcompress.measure.result import read_result
from hfcompress.measure.size import checksum
from hfcompress.publish import alone as alone_module
from hfcompress.publish import code as code_module
from hfcompress.publish.alone import Load, check_code, difference, load_alone, staged
from hfcompress.publish.code import code_for, is_code, libraries, loader_files
from hfcompress.run.claims import find_place
from hfcompress.run.claims_text import text_claims
from hfcompress.train.compress import run_oneshot
from hfcompress.train.stages import StageMethods

SMALLER: dict[str, Any] = {"heads": {"remove": 0.5}, "ffn": {"remove": 0.5, "round_to": 4}}
PACKED: dict[str, Any] = {"quantize_weights": {}}
SPLIT: dict[str, Any] = {"svd": {"keep": 0.6, "round_to": 2}}
KINDS: dict[str, tuple[str, list[dict[str, Any]]]] = {  # the tiny model, and its stages
    "shrunk and packed": ("bert", [SMALLER, PACKED]),
    "shared": ("bert", [{"share_layers": {"group": 2}}]),
    "factors, packed": ("bert", [SPLIT, PACKED]),
    "sparse and packed": ("bert", [{"magnitude": {"sparsity": 0.7}}, PACKED]),
    "shrunk, coded": ("vit", [SMALLER, {"entropy_coding": {}}]),
    "shared, coded": ("bert", [{"share_layers": {}}, {"entropy_coding": {}}]),
    "sparse floats": ("distilbert", [{"magnitude": {"sparsity": 0.5}}]),
    "codebooks": ("roberta", [{"cluster_weights": {"clusters": 8, "rows": None}}]),
    "hashed": ("bert", [{"hash_embeddings": {"buckets": 9}}]),
    "static inputs": ("bert", [{"smooth_quant": {}}]),
    "bitsandbytes": ("bert", [{"bitsandbytes": {"mode": "nf4"}}]),
    "bitsandbytes, 8 bits": ("bert", [SMALLER, {"bitsandbytes": {"mode": "int8"}}]),
    "image, shrunk": ("vit", [SMALLER]),
    "image, merging": ("vit", [{"token_merging": {"remove": 2}}, PACKED]),
    "image, windows": ("swin", [SMALLER, PACKED]),
    "convolutions": ("resnet", [{"tucker": {"keep": 0.5}}, {"fold_batchnorm": {}}, PACKED]),
    "causal": ("gpt2-lm", [SMALLER, PACKED]),
    "tied": ("llama-lm", [SPLIT, PACKED]),
    "encoder and decoder": ("t5", [{"ffn": SMALLER["ffn"]}, PACKED]),
}


def compressed(name: str, stages: list[dict[str, Any]]) -> torch.nn.Module:
    """Return the tiny model after these stages."""
    model = make(name)
    for settings in stages:
        stage = StageMethods("test", [create(*each) for each in settings.items()], None)
        run_oneshot(model, stage, calibration=calibration(name), corpus=corpus(name))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return a saved model of every kind; tests only read them."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_checkpoint(compressed(*made), folder / kind) for kind, made in KINDS.items()}


@pytest.fixture(scope="module")
def alone(models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Load]:
    """Load all of them in one process that cannot import this package."""
    folder = tmp_path_factory.mktemp("alone")
    loads = {}
    for kind, (name, _) in KINDS.items():
        inputs, output, place = (folder / f"{kind}.{part}" for part in ("inputs", "output", "model"))
        save_file(batch(name), inputs)
        with staged(models[kind], code_for(models[kind], auto_class(name))) as one:
            one.rename(place)
            one.mkdir()
        loads[kind] = Load(str(place), auto_class(name), "float32", str(inputs), str(output))
    load_alone(list(loads.values()))
    return loads


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_without_the_package(kind, models, alone):
    name = KINDS[kind][0]
    model = load_model(models[kind], auto_class(name))
    assert difference(model, alone[kind]) is None
    assert not torch.allclose(logits(model, name), logits(make(name), name)), "it is not even compressed"
    assert not [path.name for path in models[kind].iterdir() if path.suffix == ".py"]


def test_a_difference_is_found(models, alone, tmp_path):
    load, found = alone["image, merging"], load_file(alone["image, merging"].output)
    model = load_model(models["image, merging"], auto_class("vit"))
    for name, text in (("logits", "logits differ"), ("state.vit.layernorm.weight", "vit.layernorm.weight is another")):
        save_file({**found, name: found[name] + 0.1}, tmp_path / "changed")
        assert text in str(difference(model, replace(load, output=str(tmp_path / "changed"))))
    save_file({n: t for n, t in found.items() if "layernorm" not in n}, tmp_path / "changed")
    assert "other tensors" in str(difference(model, replace(load, output=str(tmp_path / "changed"))))


SESSION = """
import sys
sys.modules["hfcompress"] = None
import torch, transformers
from pathlib import Path
from transformers.quantizers import auto

def same(one, two):
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

def forget():  # as in another process
    del auto.AUTO_QUANTIZER_MAPPING["hfcompress"], auto.AUTO_QUANTIZATION_CONFIG_MAPPING["hfcompress"]

folder, repo, place = sys.argv[1:]
Auto, Stock = transformers.AutoModelForImageClassification, transformers.ViTForImageClassification
try:
    Auto.from_pretrained(folder)
    print("loads without trust")
except Exception as error:
    print("refused:", type(error).__name__)
one = Auto.from_pretrained(folder, trust_remote_code=True)
one.save_pretrained(place + "/again")
print("architecture:", one.config.architectures, isinstance(one, Stock), Stock._auto_class)
base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, add_pooling_layer=False)
print("base:", same(base, one.vit))
forget()
print("again:", same(one, Auto.from_pretrained(place + "/again", trust_remote_code=True)))
forget()
pulled = transformers.AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True)
pulled.save_pretrained(place + "/pulled")
"""


def session(code: str, *arguments: Any, **environment: str) -> str:
    """Run `code` in a process of its own and return what it prints."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_with_the_package_its_own_loader_is_used(alone, models, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    load = alone["shrunk and packed"]
    auto = getattr(transformers, load.auto_class)
    assert difference(auto.from_pretrained(load.folder, trust_remote_code=True).eval(), load) is None
    ours = [n for n in sys.modules if n.startswith("transformers_modules.") and "checkpoint_loader" in n]
    assert not ours
    plain = auto.from_pretrained(load.folder).eval()
    assert type(plain).__module__.startswith("transformers.models.") and difference(plain, load) is None
    saved = save_checkpoint(plain, tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    assert "auto_map" not in config and config == json.loads((models["shrunk and packed"] / "config.json").read_text())


def test_files_are_flat_and_complete(alone):
    folder = Path(alone["shared"].folder)
    files = {path.name for path in folder.glob("*.py")}
    assert files == {*loader_files(), "modeling_hfcompress.py"} and all(map(is_code, files))
    assert {Path(path).name for path in get_relative_import_files(folder / "modeling_hfcompress.py")} < files
    for name, text in loader_files().items():
        source = Path(hfcompress.__file__).parents[1] / text.split()[1]
        assert f"of hfcompress {hfcompress.__version__}, licensed under Apache-2.0" in text.splitlines()[0]
        changed = set(text.splitlines()[1:]) ^ set(source.read_text(encoding="utf-8").splitlines())
        assert all(line.lstrip().startswith("from .") for line in changed), name
    assert not is_code("modeling_bert.py") and not is_code("docs/hfcompress_notes.py")
    assert libraries(loader_files().values()) == ("pydantic", "torch", "zstandard")


def test_the_loader_stays_small():
    """What is loaded does not import what makes it: methods, training, searches for what to compress."""
    names = {name.removeprefix("hfcompress_").partition("_")[0] for name in loader_files()}
    assert names == {"checkpoint", "core", "modules", "ops"}
    assert len(loader_files()) <= 44
    assert not loader_files().keys() & {f"hfcompress_core_{name}.py" for name in ("method", "registry", "layer_map")}


def test_an_import_that_cannot_be_flat_is_named(tmp_path, monkeypatch):
    bad = tmp_path / "checkpoint" / "loader.py"
    bad.parent.mkdir()
    bad.write_text("from . import save\n")
    monkeypatch.setattr(code_module, "_PACKAGE", tmp_path)
    monkeypatch.setattr(code_module, "_LOADER", bad)
    with pytest.raises(PublishError, match=r"loader\.py, line 1: .* not folders"):
        loader_files()


def test_code_that_fails_keeps_the_model_here(models, monkeypatch):
    monkeypatch.setattr(alone_module, "render", lambda name: "raise ValueError('broken')")
    folder = models["shared"]
    with pytest.raises(PublishError, match=r"by its code alone fails, so the model must not go out(.|\n)*broken"):
        check_code(folder, code_for(folder, auto_class("bert")), auto_class("bert"), "float32", batch("bert"))


def test_code_that_gives_another_model_keeps_it_here(models, alone, monkeypatch):
    folder, other = models["shared"], alone["shared, coded"].output
    monkeypatch.setattr(alone_module, "load_alone", lambda loads: shutil.copy(other, loads[0].output))
    with pytest.raises(PublishError, match="another model than hfcompress itself"):
        check_code(folder, code_for(folder, auto_class("bert")), auto_class("bert"), "float32", batch("bert"))


@pytest.fixture
def run(models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return what a run leaves, with a recipe that asks for code; that it gives its own numbers is not tried again."""
    out = write_run(tmp_path / "out", make_result())
    shutil.copytree(models["shrunk and packed"], out / "model")
    write_batches(out / "evaluation.safetensors", [batch("bert") | {"labels": torch.zeros(4)}])
    recipe = text_project(tmp_path, publish={"repo_id": REPO, "code": True})
    shutil.copy(recipe, out / "recipe.yaml")
    monkeypatch.setattr("hfcompress.run.pushing.verify_run", lambda folder: read_result(folder.path))
    return out


def test_a_run_goes_up_with_its_code_and_loads_by_name(hub, command, run, alone, tmp_path):  # noqa: F811
    status, printed, _ = command("push", run, "--dry-run")
    assert status == 0 and "modeling_hfcompress.py" in printed and "hfcompress_checkpoint_loader.py" in printed
    status, printed, errors = command("push", run)
    assert status == 0, printed + errors
    files = hub.content(REPO)
    assert {*loader_files(), "modeling_hfcompress.py"} == {name for name in files if name.endswith(".py")}
    card = files["README.md"].decode()
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in card and "pydantic, torch, zstandard" in card
    for name, data in files.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    assert text_claims(find_place(tmp_path / "got", None, ()))[0].holds, "card --check takes it for another's"
    local = [path.name for path in (run / "model").iterdir()]
    assert not [name for name in local if name.endswith(".py")] and "auto_map" not in _text(run / "model/config.json")
    assert "trust_remote_code" not in _text(run / "model/README.md")
    _check_alone(hub, run, Path(alone["image, shrunk"].folder), tmp_path)
    assert command("push", run, "--without-code")[0] == 0
    files = hub.content(REPO)
    assert not [name for name in files if name.endswith(".py")] and b"auto_map" not in files["config.json"]


def _check_alone(hub, run: Path, folder: Path, place: Path) -> None:  # noqa: F811
    """Trust is asked for, models are those of transformers, and a save takes the code along, here and from the Hub."""
    home = {"HF_HOME": str(place / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    printed = session(SESSION, folder, REPO, place, **home, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0")
    assert "refused:" in printed and "loads without trust" not in printed
    assert "architecture: ['ViTForImageClassification'] True None" in printed
    assert "base: True" in printed and "again: True" in printed
    for saved in (place / "again", place / "pulled"):
        assert {path.name for path in saved.glob("*.py")} == {*loader_files(), "modeling_hfcompress.py"}
    theirs, ours = (load_model(path, auto_class("bert")).state_dict() for path in (place / "pulled", run / "model"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_code_that_is_refused_stops_the_push(hub, command, run, monkeypatch):  # noqa: F811
    def fails(loads):
        raise PublishError("it does not load")

    monkeypatch.setattr(alone_module, "load_alone", fails)
    status, _, errors = command("push", run)
    assert status == 2 and "it does not load" in errors and not hub.repos


def test_a_stock_model_needs_no_code(command, tmp_path):  # noqa: F811
    result = make_result(loads_with="transformers")
    save_text_model(tmp_path / "run" / "model")
    told = {"model.safetensors": checksum(tmp_path / "run" / "model" / "model.safetensors")}
    result = result.model_copy(update={"compressed": result.compressed.model_copy(update={"checksums": told})})
    run = write_run(tmp_path / "run", result)
    status, printed, errors = command("push", run, "--repo-id", REPO, "--with-code", "--dry-run")
    assert status == 0, errors
    assert "loads with transformers alone and needs no code" in printed and ".py" not in printed


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")

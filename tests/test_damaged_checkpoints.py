"""A damaged checkpoint never loads as something else: missing, renamed, retyped, reshaped or changed, it is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import damage
import pytest
import torch
from damage import Trials
from damage_subjects import SUBJECTS
from safetensors.torch import load_file, save_file
from tiny import auto_class, make
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.checkpoint.verify import damaged_parts, digests_of
from hfcompress.cli import app
from hfcompress.core.errors import CheckpointError, PublishError
from hfcompress.measure.size import checksum
from hfcompress.methods.bitsandbytes import BitsandbytesConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.run.folder import RunFolder
from hfcompress.run.undamaged import require_undamaged
from hfcompress.run.verify import verify_run

QUERY = "bert.encoder.layer.0.attention.self.query"
Change = Callable[[dict[str, Tensor]], object]


FEW = ["8 bits", "4 bits, zero points", "pruned weights", "coded", "factors", "shared", "pruned heads", "tied", "nf4"]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Trials:
    return Trials(tmp_path_factory.mktemp("trials"), FEW)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Return a checkpoint of packed layers, of every kind of tensor that goes with them, to be copied."""
    model = compress(make("bert"), QuantizeWeightsConfig(bits=4, symmetric=False, embedding_bits=8))
    return save_checkpoint(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_tensors(folder: Path, change: Change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ------------------------------------------------------------------ at random


def none_loads_as_another(trials: Trials, seeds: range) -> None:
    outcomes = [trials.run(seed) for seed in seeds]
    assert not [(i, o) for i, o in zip(seeds, outcomes, strict=True) if o.wrong]
    assert sum(o.said != "loaded" for o in outcomes) > len(seeds) / 2  # most are refused, so the damage is real


def test_of_some_damaged_checkpoints_none_loads_as_another(trials):
    none_loads_as_another(trials, range(60))


@pytest.mark.slow
def test_of_a_thousand_damaged_checkpoints_none_loads_as_another(tmp_path):
    none_loads_as_another(Trials(tmp_path), range(10_000, 11_000))


@pytest.mark.slow
def test_the_trials_see_what_is_wrong(trials, monkeypatch):
    """What is loaded is compared with what was saved: with the checks of this package off, faults are found."""
    for check in ("read_contents", "require_all", "require_dtype"):
        monkeypatch.setattr(f"hfcompress.checkpoint.loader.{check}", lambda *args: None)
    monkeypatch.setattr("hfcompress.checkpoint.loader.HFCompressConfig.require_unchanged", lambda *args: None)
    found = [trials.damaged("8 bits", kind, random.Random(seed)).wrong for seed in range(6) for kind in (damage._drop,)]
    assert any(found)


# ------------------------------------------------------------------ tensors


@pytest.mark.parametrize("part", ["weight_codes", "weight_scale", "weight_zero", "weight", "bias"])
def test_a_packed_layer_without_one_of_its_tensors_is_refused_by_from_pretrained(part, folder):
    change_tensors(folder, lambda state: state.pop(f"{QUERY}.{part}"))
    with pytest.raises(CheckpointError, match=rf"has no {QUERY}.{part}.*download or copy it again"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_shard_without_its_tensors_is_refused(folder):
    model = load_model(folder, auto_class("bert"))
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert AutoModelForSequenceClassification.from_pretrained(folder).num_labels == 3 and not damaged_parts(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != index["weight_map"][f"{QUERY}.bias"]}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="the checkpoint has no "):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("sizes", [{}, {"ignore_mismatched_sizes": True}])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({f"{QUERY}.weight_codes": s[f"{QUERY}.weight_codes"].view(torch.int8)}),
            "saved as uint8",
        ),
        (lambda s: s.update({f"{QUERY}.weight_scale": s[f"{QUERY}.weight_scale"].view(torch.bfloat16)}), "is bfloat16"),
        (lambda s: s.update({f"{QUERY}.bias": s[f"{QUERY}.bias"].half()}), "is float16 .* saved as float32"),
        (
            lambda s: s.update({f"{QUERY}.weight_scale": s[f"{QUERY}.weight_scale"][:, None]}),
            r"has the shape \[32, 1\]",
        ),
        (lambda s: s.update({f"{QUERY}.weight": torch.zeros(32, 32)}), r"has the shape \[32, 32\]"),
        (lambda s: s.update({f"{QUERY}.weight_mask": torch.zeros(3, dtype=torch.uint8)}), "has no such tensor"),
        (lambda s: s.pop("bert.encoder.layer.1.output.LayerNorm.weight"), "has no bert.encoder.layer.1.output.Layer"),
    ],
)
def test_what_does_not_fit_the_structure_is_refused_before_it_is_read(change, message, sizes, folder):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        BertForSequenceClassification.from_pretrained(folder, **sizes)


def test_a_tied_tensor_that_is_stored_twice_is_refused(trials, tmp_path):
    subject, place, _, _ = trials.subjects["shared"]
    folder = Path(shutil.copytree(place, tmp_path / "model"))
    ties = json.loads((folder / "config.json").read_text())["quantization_config"]["ties"]
    target, source = next((t, s) for t, s in ties.items() if t.endswith("dense.weight"))
    change_tensors(
        folder,
        lambda state: state.update({f"bert.{target}": torch.ones(32, 32), f"bert.{source}": torch.zeros(32, 32)}),
    )
    assert subject.model == "bert"
    with pytest.raises(CheckpointError, match=r"one tensor, and stored as two|has the shape|is float32 in"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_what_the_saved_class_has_may_not_be_missing_in_another(folder):
    change_tensors(folder, lambda state: state.pop("bert.encoder.layer.1.output.LayerNorm.weight"))
    with pytest.raises(CheckpointError, match=r"has no bert\.encoder\.layer\.1\.output\.LayerNorm\.weight"):
        AutoModelForTokenClassification.from_pretrained(folder)


def test_what_another_class_has_of_its_own_may_be_missing(folder):
    assert AutoModelForTokenClassification.from_pretrained(folder).num_labels == 3
    base = BertModel.from_pretrained(folder)
    base.save_pretrained(folder / "body")
    assert AutoModelForSequenceClassification.from_pretrained(folder / "body").num_labels == 3
    base.pooler = None
    base.save_pretrained(folder / "without")
    assert BertModel.from_pretrained(folder / "without").pooler is not None
    change_tensors(folder, lambda state: [state.pop(f"classifier.{n}") for n in ("weight", "bias")])
    with pytest.raises(CheckpointError, match=r"has no classifier\.bias|has no classifier\.weight"):
        AutoModelForSequenceClassification.from_pretrained(folder)


# ------------------------------------------------------------------ the structure


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules", {"path": "x"}), ("modules", {"encoder.layer.0": 3}), ("modules", "x"), ("modules", [1]),
        ("modules", {"encoder": {}}), ("modules", {"encoder": {"kind": ["linear"]}}), ("coded", {"x": 1}),
        ("coded", {QUERY: {"bytes": 3, "dtype": "float3"}}), ("ties", {"a": None}), ("ties", {"a": {"b": "c"}}),
        ("dtypes", {"*": "int3"}), ("dtypes", 4), ("counts", {"num_attention_heads": True}),
        ("weights_sha256", {"embeddings": "x"}), ("structure_sha256", 5), ("version", True), ("version", 1.0),
        ("version", [1]), ("inner", "x"), ("inner", {"quant_method": 1}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_typed_error(key, value, folder):
    change_config(folder, lambda config: config["quantization_config"].update({key: value}))
    with pytest.raises(CheckpointError) as caught:
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8, "symmetric": False}, "changed after|has the shape"),
        ({"bits": 4, "symmetric": True}, "changed after|no such tensor"),
        ({"bits": 4, "symmetric": False, "group_size": 10**30}, "more rows or columns"),
        ({"bits": 4, "symmetric": False, "group_size": 64}, "changed after"),
        ({"bits": 4.0, "symmetric": False}, "is none that is known"),
    ],
)
def test_a_layer_described_otherwise_is_refused(change, message, folder):
    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"]["modules"]["encoder.layer.0.attention.self.query"]["grid"] = change

    change_config(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(("key", "value"), [("num_attention_heads", 2), ("num_hidden_layers", 2), ("dtype", "float16")])
def test_what_shapes_the_model_and_no_tensor_is_in_the_structure(key, value, folder):
    change_config(folder, lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=f"{key}|which this model does not have"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_checkpoint_of_an_earlier_release_loads(folder):
    before = load_model(folder, auto_class("bert")).state_dict()
    new = ("counts", "dtypes", "weights_sha256", "structure_sha256")
    change_config(folder, lambda config: [config["quantization_config"].pop(key) for key in new])
    after = load_model(folder, auto_class("bert")).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    with pytest.raises(CheckpointError, match="saved by an earlier release"):
        damaged_parts(folder)
    with pytest.raises(CheckpointError, match="nothing to compare with"):
        require_undamaged(folder, None)
    change_tensors(folder, lambda state: state.pop(f"{QUERY}.weight_codes"))
    with pytest.raises(CheckpointError, match="has no"):
        AutoModelForSequenceClassification.from_pretrained(folder)


# ------------------------------------------------------------------ digests


def test_every_way_of_saving_states_digests_that_hold(trials, tmp_path):
    for name, (_, folder, _, _) in trials.subjects.items():
        assert not damaged_parts(folder), name
    model = load_model(trials.subjects["8 bits"][1], auto_class("bert"))
    args = TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True)
    Trainer(model=model, args=args).save_model(str(tmp_path / "trainer"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    model.half().save_pretrained(tmp_path / "halved")
    model.classifier.float()
    model.save_pretrained(tmp_path / "two dtypes")
    for folder in (tmp_path / "trainer", tmp_path / "sharded", tmp_path / "halved", tmp_path / "two dtypes"):
        assert digests_of(folder) and not damaged_parts(folder), folder
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    stated = json.loads((tmp_path / "two dtypes" / "config.json").read_text())["quantization_config"]["dtypes"]
    assert stated == {"*": "float16", "/classifier.bias": "float32", "/classifier.weight": "float32"}


def test_a_second_save_states_the_same(folder, tmp_path):
    load_model(folder, auto_class("bert")).save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def flip_a_bit(state: dict[str, Tensor]) -> None:
    state[f"{QUERY}.weight_codes"][-1].bitwise_xor_(1)


def change_places(state: dict[str, Tensor]) -> None:
    names = [f"{QUERY}.weight_codes", f"{QUERY.replace('.0.', '.1.')}.weight_codes"]
    state.update(zip(names, [state[names[1]], state[names[0]]], strict=True))


@pytest.mark.parametrize(
    ("change", "parts"), [(flip_a_bit, ["encoder.layer.0"]), (change_places, ["encoder.layer.0", "encoder.layer.1"])]
)
def test_values_that_changed_are_named_by_their_part(change, parts, folder):
    assert not damaged_parts(folder)
    change_tensors(folder, change)
    assert damaged_parts(folder) == parts
    with pytest.raises(CheckpointError, match=rf"the weights of {', '.join(parts)} (is|are) not those that were saved"):
        require_undamaged(folder, None)


def test_inspect_verifies(folder, tmp_path):
    done = CliRunner().invoke(app, ["inspect", str(folder), "--verify"])
    assert done.exit_code == 0 and "As saved: " in done.output and "parts by config.json" in done.output
    change_tensors(folder, lambda state: state["bert.encoder.layer.2.output.dense.weight_codes"][0].bitwise_xor_(1))
    done = CliRunner().invoke(app, ["inspect", str(folder), "--verify"])
    assert isinstance(done.exception, CheckpointError) and "encoder.layer.2 is not those" in str(done.exception)
    assert CliRunner().invoke(app, ["inspect", str(folder)]).exit_code == 0  # only when asked: it takes time
    save_checkpoint(make("bert"), tmp_path / "stock")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "stock"), "--verify"])
    assert "nothing to compare with" in str(done.exception)


def test_push_refuses_files_that_are_not_what_the_run_saved(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    model = save_checkpoint(make("bert"), run.model)  # one that loads with transformers alone
    told = {"model.safetensors": checksum(model / "model.safetensors")}
    result = SimpleNamespace(compressed=SimpleNamespace(checksums=told))
    assert require_undamaged(model, result) == "1 weight file(s) by result.json"
    monkeypatch.setattr("hfcompress.run.verify.read_result", lambda path: result)
    change_tensors(model, lambda state: state["classifier.bias"].add_(1e-7))
    with pytest.raises(PublishError, match=r"nothing was pushed: .*model\.safetensors is not what the run saved"):
        verify_run(run)


def test_layers_of_another_library_are_in_the_digest(tmp_path):
    folder = save_checkpoint(compress(make("bert"), BitsandbytesConfig(mode="nf4")), tmp_path)
    assert not damaged_parts(folder)
    change_tensors(folder, lambda state: state[f"{QUERY}.weight.absmax"][:1].mul_(1.001))
    assert damaged_parts(folder) == ["encoder.layer.0"]


def test_the_subjects_are_of_every_form():
    assert len(SUBJECTS) >= 15 and {s.model for s in SUBJECTS.values()} >= {"bert", "vit", "gpt2-lm", "distilbert"}

"""Convolutional networks: channels leave and nothing else changes, norms fold, what has no place there is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from cases import CASES, VARIANTS, MethodCase
from contract import CHECKS, Subject
from tiny import CONVOLUTIONAL, Examples, auto_class, calibration, logits, make
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from hfcompress import HFCompressTrainer, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, RecipeError, TargetError
from hfcompress.core.registry import create, list_methods
from hfcompress.export.onnx import export_onnx
from hfcompress.modules.channel_choice import batch_norms
from hfcompress.modules.channels import channels_of, keep_channels_of_

WORKING = ("channels", "quantize_weights", "qat")


def apply(name: str, model: nn.Module, method: str, **settings) -> nn.Module:
    return compress(model, create(method, settings).config, calibration=calibration(name))


def reloaded(model: nn.Module, name: str, folder) -> nn.Module:
    loaded = load_model(save_checkpoint(model, folder), auto_class(name))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)
    return loaded


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_cost_is_that_of_the_network_that_is_left(name):
    model = make(name)
    channels = channels_of(model, 32)
    kept = [group.width // 2 for group in channels.groups]
    for group, count in zip(channels.groups, kept, strict=True):
        keep_channels_of_(model, group, torch.arange(group.width) < count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert channels.cost(kept, "flops") == counter.get_total_flops() // 2
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert channels.cost(kept, "parameters") == weights


def test_channels_that_nothing_reads_leave_without_a_trace():
    model, untouched = make("resnet"), make("resnet")
    group = next(g for g in channels_of(model, 32).groups if not g.residual)
    keep = torch.arange(group.width) % 2 == 0
    with torch.no_grad():
        for path in group.readers:
            untouched.get_submodule(path).weight[:, ~keep] = 0
    keep_channels_of_(model, group, keep)
    assert torch.allclose(logits(model, "resnet"), logits(untouched, "resnet"), atol=1e-5)
    assert not torch.allclose(logits(model, "resnet"), logits(make("resnet"), "resnet"), atol=1e-3)


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_even_widths_are_a_stock_model(name, tmp_path):
    model = make(name)
    for group in channels_of(model, 32).groups:
        keep_channels_of_(model, group, torch.arange(group.width) < group.width // 2)
    reloaded(model, name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config and config["hidden_sizes"] == [8, 16]


@pytest.mark.parametrize(
    "settings", [{"residual": True, "importance": "l1"}, {"importance": "slimming", "scope": "layer"}]
)
def test_the_budget_is_kept(settings, tmp_path):
    model = apply("resnet", make("resnet"), "channels", remove=0.4, round_to=2, refit=False, **settings)
    before, after = (channels_of(m, 16) for m in (make("resnet"), model))
    ratio = after.cost([g.width for g in after.groups], "flops") / before.cost(
        [g.width for g in before.groups], "flops"
    )
    assert 0.45 < ratio <= 0.6
    reloaded(model, "resnet", tmp_path)


def test_refitting_leaves_less_error():
    def error(refit: bool) -> float:
        model = apply("resnet", make("resnet"), "channels", remove=0.3, round_to=2, refit=refit, recalibrate=False)
        return float((logits(model, "resnet") - logits(make("resnet"), "resnet")).square().mean())

    assert error(True) < 0.8 * error(False)


def test_too_much_and_no_norm_are_refused():
    with pytest.raises(TargetError, match=r"channels.remove: at most \d+% of the flops can go"):
        apply("resnet", make("resnet"), "channels", remove=0.99)
    with pytest.raises(TargetError, match="no BatchNorm follows it"):
        apply("convnext", make("convnext"), "channels", remove=0.2, importance="slimming")
    with pytest.raises(TargetError, match="remove channels before layers are packed"):
        apply("resnet", apply("resnet", make("resnet"), "quantize_weights"), "channels", remove=0.2)


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_folded_norms_leave_the_answers_as_they_are(name, tmp_path):
    folded = apply(name, make(name), "fold_batchnorm")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert torch.allclose(logits(folded, name), logits(make(name), name), atol=1e-5)
    reloaded(folded, name, tmp_path)


def test_norms_fold_in_16_bits():
    folded = apply("resnet", make("resnet").bfloat16(), "fold_batchnorm")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) and folded.dtype is torch.bfloat16


def test_pruned_folded_clustered_loads_and_exports(tmp_path):
    model = apply("resnet", make("resnet"), "channels", remove=0.4, round_to=2)
    model = apply("resnet", apply("resnet", model, "fold_batchnorm"), "cluster_weights", clusters=16)
    loaded = reloaded(model, "resnet", tmp_path / "model")
    export_onnx(loaded, tmp_path / "model.onnx", image_size=32)  # raises where its answers are others


def test_a_coded_classifier_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.label_layers", lambda model: set())  # earlier releases coded heads
    model = make("resnet")
    with torch.no_grad():
        model.classifier[1].weight = nn.Parameter(torch.zeros(3, 32))  # a stream is much shorter
    reloaded(apply("resnet", model, "entropy_coding"), "resnet", tmp_path)
    assert any(
        "classifier" in key
        for key in json.loads((tmp_path / "config.json").read_text())["quantization_config"]["coded"]
    )


@pytest.mark.parametrize(
    "method", ["heads", "ffn", "movement", "width", "layers", "share_layers", "factorize_embeddings"]
)
def test_what_has_no_place_in_a_convolutional_network_is_refused(method):
    case = CASES[method]
    with pytest.raises(TargetError, match=r"convolutional network|no token table"):
        Subject(list_methods()[method], case, "resnet", None).prepared(make("resnet"))


def slimmed(penalty: float, folder) -> tuple[nn.Module, nn.Module, list[float]]:
    """Return a tiny ResNet at the end of training with the penalty, the same finalized, and the mean scale by step."""
    config = {"remove": 0.3, "round_to": 2, "importance": "slimming", "penalty": penalty}
    args = TrainingArguments(
        str(folder), max_steps=6, learning_rate=0.05, logging_steps=1, save_strategy="no", report_to="none"
    )
    trainer = HFCompressTrainer(
        make("resnet"), args, train_dataset=Examples("resnet"), recipe=create("channels", config).config
    )
    kept: list[nn.Module] = []
    finalize = trainer.lifecycle.finalize
    trainer.lifecycle.finalize = lambda m: (kept.append(copy.deepcopy(m).eval()), finalize(m))[1]
    trainer.train()
    scales = [entry["channels/scale"] for entry in trainer.state.log_history if "channels/scale" in entry]
    return kept[0], trainer.model.eval(), scales


def test_a_penalty_shrinks_the_scales_and_the_smallest_channels_go_when_training_ends(tmp_path):
    _, _, plain = slimmed(1e-9, tmp_path)
    model, done, scales = slimmed(0.02, tmp_path)
    assert len(scales) == 6 and scales[0] == plain[0] and scales[-1] < 0.9 * plain[-1]
    groups = [group for group in channels_of(make("resnet"), 16).groups if not group.residual]
    ours, left = ([norm.weight.detach() for norm in batch_norms(of, groups)] for of in (model, done))
    removed = sum(map(len, ours)) - sum(map(len, left))
    assert 0 < removed == sum(int((scale == 0).sum()) for scale in ours)
    assert torch.allclose(logits(model, "resnet"), logits(done, "resnet"), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"importance": "l1"}, "importance: slimming"), ({"importance": "slimming", "refit": True}, "calibration data")],
)
def test_a_penalty_goes_with_slimming_in_a_stage_that_trains(settings, told):
    with pytest.raises(RecipeError, match=told):
        create("channels", {"remove": 0.3, "penalty": 1e-4, **settings})
    with pytest.raises(LifecycleError, match="acts while training"):
        apply("resnet", make("resnet"), "channels", remove=0.3, importance="slimming", penalty=1e-4)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("method", [*WORKING, "fold_batchnorm", "slimming"])
def test_the_contract_holds_for_a_resnet(method, tmp_path):
    case: MethodCase = VARIANTS["channels"]["slimming"] if method == "slimming" else CASES[method]
    method = "channels" if method == "slimming" else method
    subject = Subject(list_methods()[method], case, "resnet", tmp_path)
    for check in CHECKS:
        if check.__name__ != "check_report":
            check(subject)


@pytest.mark.parametrize("method", ["n_m", "wanda", "sparsegpt", "gptq", "svd"])
def test_methods_of_linear_layers_say_that_convolutions_are_none(method):
    settings = CASES[method].settings
    with pytest.raises(
        TargetError, match=rf"{method} acts on linear layers, and the blocks of a ResNet.* convolutions"
    ):
        apply("resnet", make("resnet"), method, **settings)
    with pytest.raises(TargetError, match=rf"{method}.targets: 'Conv2d' names convolutions"):
        apply("convnext", make("convnext"), method, **settings, targets=["Conv2d"])


def test_pruning_single_weights_finds_convolutions_where_blocks_have_nothing_else(tmp_path):
    model, before = apply("resnet", make("resnet"), "magnitude", sparsity=0.75), make("resnet")
    kernels = [path for path, module in before.named_modules() if isinstance(module, nn.Conv2d)]
    shares = [(model.get_submodule(path).dequantized() == 0).float().mean() for path in kernels]
    assert kernels and all(abs(share - 0.75) < 0.02 for share in shares)
    assert torch.equal(model.classifier[1].weight, before.classifier[1].weight)
    reloaded(model, "resnet", tmp_path)


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_kernels_of_single_channels_stay_as_they_are(method):
    model, before = make("convnext"), make("convnext")
    groups = {path: m.groups for path, m in before.named_modules() if isinstance(m, nn.Conv2d)}
    apply("convnext", model, method, keep=0.6)
    assert {count > 1 for count in groups.values()} == {True, False}
    assert all((type(model.get_submodule(path)) is nn.Conv2d) == (count > 1) for path, count in groups.items())
    with pytest.raises(TargetError, match=r"channels are in \d+ groups"):
        apply("convnext", make("convnext"), method, keep=0.6, targets=[max(groups, key=groups.get)])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_hidden_states_of_fewer_channels_are_projected_to_the_teachers(name, tmp_path):
    student, teacher = make(name), make(name)
    for group in channels_of(student, 32).groups:
        keep_channels_of_(student, group, torch.arange(group.width) < group.width // 2)
    args = TrainingArguments(str(tmp_path), max_steps=2, remove_unused_columns=False, save_strategy="no", seed=0)
    common = {"args": args, "train_dataset": Examples(name), "teacher": teacher}
    settings = {"hidden": 1.0, "cosine": {"weight": 0.5, "layers": "uniform"}}
    trainer = HFCompressTrainer(model=student, recipe=create("distill", settings).config, **common)
    with torch.no_grad():
        sizes = [
            [state.shape[1] for state in m(pixel_values=torch.zeros(1, 3, 16, 16), output_hidden_states=True)[-1]]
            for m in (student.eval(), teacher)
        ]
    (projections,) = student.training_companions.values()
    differ = [pair for pair in zip(*sizes, strict=True) if pair[0] != pair[1]]
    assert [(p.weight.shape[1], p.weight.shape[0]) for p in projections] == differ != []
    before = copy.deepcopy(projections.state_dict())
    trainer.train()
    assert any(not torch.equal(before[key], value) for key, value in projections.state_dict().items())
    assert not hasattr(student, "training_companions")
    nearest = create("distill", {"hidden": {"weight": 1, "layers": "nearest"}}).config
    with pytest.raises(LifecycleError, match=r"distill\.hidden\.layers: nearest compares every layer"):
        HFCompressTrainer(model=student, recipe=nearest, **common)
    depth = len(sizes[0]) - 1
    crossed = {"hidden": {"weight": 1, "layers": {0: depth - 1}, "embeddings": False}}
    with pytest.raises(LifecycleError, match=r"distill\.hidden: the student has \d+ tokens here, the teacher \d+"):
        HFCompressTrainer(model=student, recipe=create("distill", crossed).config, **common)

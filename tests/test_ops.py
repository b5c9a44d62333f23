"""The tensor functions, against independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hfcompress.core.errors import TargetError, nearest
from hfcompress.core.schedule import Schedule
from hfcompress.core.targets import select
from hfcompress.modules.gate import ColumnGate
from hfcompress.modules.parametrizations import attach, detach, find, wrapped
from hfcompress.modules.rounding import RoundedWeight
from hfcompress.ops.losses import hidden_mse, soft_cross_entropy
from hfcompress.ops.masks import keep_top
from hfcompress.ops.quantization import Grid, quantize


def test_keep_top_ranks_all_layers_together():
    scores = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])]
    together = keep_top(scores, 0.5)
    assert [m.tolist() for m in together] == [[True] * 4, [False, False, False, True]]  # one is kept in every layer
    apart = keep_top(scores, 0.5, per_tensor=True)
    assert [m.tolist() for m in apart] == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize(("density", "kept"), [(0.5, 8), (0.4, 8), (0.3, 4), (0.01, 4), (1.0, 16)])
def test_keep_top_rounds_to_a_multiple(density, kept):
    assert int(keep_top([torch.arange(16.0)], density, multiple=4)[0].sum()) == kept


def test_keep_top_breaks_ties_by_index():
    assert keep_top([torch.zeros(4)], 0.5)[0].tolist() == [True, True, False, False]


def test_quantization_error_is_at_most_half_a_step_and_a_second_pass_changes_nothing():
    weight = torch.randn(64, 32) * torch.logspace(-4, 2, 64)[:, None]
    stored = quantize(weight, Grid(8))
    back = stored.dequantize()
    assert stored.codes.dtype == torch.int8 and stored.scale.dtype == torch.bfloat16
    assert int(stored.codes.abs().max()) == 127
    step = stored.scale.float()
    assert ((back - weight).abs() <= 0.5001 * step).all()
    again = quantize(back, Grid(8))
    assert torch.equal(again.codes, stored.codes) and torch.equal(again.scale, stored.scale)


def test_soft_cross_entropy_is_hintons():
    student, teacher, temperature = torch.randn(5, 3), torch.randn(5, 3), 2.0
    p, q = (torch.softmax(x / temperature, -1) for x in (teacher, student))
    expected = sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(5) for j in range(3)) / 5 * temperature**2
    assert soft_cross_entropy(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-4)
    assert soft_cross_entropy(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)
    tokens = soft_cross_entropy(student[:, None].expand(5, 4, 3), teacher[:, None].expand(5, 4, 3), temperature)
    assert tokens.item() == pytest.approx(expected.item(), rel=1e-4)  # a mean over tokens, not a sum


def test_hidden_mse_ignores_padding():
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    teacher[0, 2] = 100
    assert hidden_mse(student, teacher, torch.tensor([[1, 1, 0]])).item() == pytest.approx(1.0)


def test_the_gate_passes_movement_scores():
    """dL/dscore is the sum of dL/dW' * W over the group's columns, closed groups included (Sanh 2020, eq. 6)."""
    layer, x = nn.Linear(4, 3, bias=False), torch.randn(2, 4)
    weight = layer.weight.detach().clone()
    gate = attach(nn.Sequential(layer), "0", ColumnGate(2, 2))
    gate.mask[1] = False
    out = layer(x)
    assert torch.allclose(out, x[:, :2] @ weight[:, :2].T)
    grad_out = torch.randn(2, 3)
    out.backward(grad_out)
    expected = (grad_out.T @ x * weight).sum(0).view(2, 2).sum(1)
    assert torch.allclose(gate.scores.grad, expected, atol=1e-6)


def test_wrappers_come_off_one_by_one():
    model = nn.Sequential(nn.Linear(4, 3))
    attach(model, "0", ColumnGate(4, 1))
    rounding = attach(model, "0", RoundedWeight())
    detach(model, "0", ColumnGate)
    assert find(model, "0", RoundedWeight) is rounding and wrapped(model) == ["0"]
    detach(model, "0", RoundedWeight)
    assert not wrapped(model) and type(model[0]) is nn.Linear


@pytest.mark.parametrize("shape", ["cubic", "linear", "constant"])
def test_schedules_rise_from_zero_to_one(shape):
    schedule = Schedule(shape=shape, start=0.2, end=0.6)
    values = [schedule(i / 100) for i in range(101)]
    assert values == sorted(values) and values[60:] == [1.0] * 41
    assert shape == "constant" or values[:21] == [0.0] * 21
    if shape == "cubic":
        assert schedule(0.4) == pytest.approx(1 - 0.5**3)  # Zhu & Gupta 2017, eq. 1
    with pytest.raises(ValidationError, match="must not lie after end"):
        Schedule(start=0.9, end=0.1)


def test_select_takes_paths_patterns_and_classes():
    model = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2), nn.Linear(2, 2))
    modules = [(p, m) for p, m in model.named_modules() if p]
    assert [p for p, _ in select(modules, ["Linear"], ["2"])] == ["0"]
    assert [p for p, _ in select(modules, ["re:[01]"])] == ["0", "1"]
    for bad in (["3"], ["re:x"], ["Conv2d"]):
        with pytest.raises(TargetError, match="matches no module"):
            select(modules, bad)
    with pytest.raises(TargetError, match="not a valid regular expression"):
        select(modules, ["re:("])


def test_nearest_names_one_or_lists_some():
    assert nearest("haeds", ["heads", "ffn"]) == " Did you mean 'heads'?"
    assert nearest("zzz", ["heads", "ffn"]) == " Known: ffn, heads."
    assert "(8 more)" in nearest("zzz", [f"key{i}" for i in range(20)])


def test_keep_top_takes_equal_scores_from_every_layer_in_turn():
    assert [int(m.sum()) for m in keep_top([torch.zeros(4), torch.zeros(4)], 0.5)] == [2, 2]

"""One entry per method: how the contract test sets it up and counts what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hfcompress.core.families import blocks_of, family_of

Report = Mapping[str, float]


@dataclass(frozen=True)
class MethodCase:
    """Settings for the tiny models, and an independent count of what the method reports."""

    settings: dict[str, Any] = field(default_factory=dict)
    expected_report: Callable[[nn.Module, nn.Module], Report] = lambda base, model: {}
    refuses: Mapping[str, str] = field(default_factory=dict)  # tiny model: what the reason for refusing it has to match
    same_answers: bool = False  # what it removes was not used by the test's inputs


def count_structure(base: nn.Module, model: nn.Module) -> Report:
    """Count heads and units from the shapes in the state dict."""

    def sizes(of: nn.Module) -> tuple[list[int], list[int]]:
        blocks, state = blocks_of(of, family_of(of)), of.state_dict()
        heads = [state[f"{b.query}.weight"].shape[0] // b.head_size for b in blocks]
        return heads, [state[f"{b.down}.weight"].shape[1] for b in blocks]

    (heads, units), (heads_left, units_left) = sizes(base), sizes(model)
    return {
        "heads_before": sum(heads),
        "heads_after": sum(heads_left),
        "units_before": sum(units),
        "units_after": sum(units_left),
        **{f"layer{i}_heads": n for i, n in enumerate(heads_left)},
        **{f"layer{i}_units": n for i, n in enumerate(units_left)},
    }


def count_packed(base: nn.Module, model: nn.Module) -> Report:
    """Count the codes in the state dict, and compare their number with the layers of the base model."""
    state = model.state_dict()
    packed = [name for name in state if name.endswith(".weight_codes")]
    layers = [m for m in base.modules() if isinstance(m, nn.Linear | nn.Embedding | nn.Conv2d)]
    outputs = [m for m in layers if getattr(m, "out_features", 0) == base.config.num_labels]
    assert len(packed) == len(layers) - len(outputs)
    weights = sum(m.weight.numel() for m in layers) - sum(m.weight.numel() for m in outputs)
    stored = sum(state[name].nbytes for name in packed)
    stored += sum(state[name.replace("_codes", "_scale")].nbytes for name in packed)
    return {"layers": len(packed), "weights": weights, "bits_per_weight": round(8 * stored / weights, 4)}


CASES: dict[str, MethodCase] = {
    "movement": MethodCase({"heads": 0.5, "ffn": 0.5, "score_learning_rate": 0.1, "round_to": 4}, count_structure),
    "distill": MethodCase({"logits": 0.5, "hidden": 0.5}),
    "quantize_weights": MethodCase({}, count_packed),
}

"""Tensors that transformers keep as one in a file and as several in memory, which therefore have to stay alike."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter


def joined_names(model: nn.Module) -> list[re.Pattern[str]]:
    """Return patterns of the names, in file and in memory, of tensors that are cut or joined between the two."""
    return [re.compile(pattern) for c in _converters(model) for pattern in (*c.source_patterns, *c.target_patterns)]


def joined_layers(model: nn.Module) -> list[list[str]]:
    """Return the paths of layers, several each time, whose weights are one tensor in a file."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if name.endswith(".weight")]
    groups: dict[tuple[int, str], list[str]] = {}
    for index, converter in enumerate(_converters(model)):
        for pattern in converter.target_patterns if len(converter.target_patterns) > 1 else ():
            for name in names:
                if match := re.search(pattern, name):
                    where = (index, name[: match.start()])
                    groups.setdefault(where, []).append(name.removesuffix(".weight"))
    return [paths for paths in groups.values() if len(paths) > 1]


def _converters(model: nn.Module) -> list[WeightConverter]:
    if not isinstance(model, PreTrainedModel):
        return []
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    return [c for c in conversions if isinstance(c, WeightConverter)]

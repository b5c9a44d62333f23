"""Which method works on which family: found out by trying each on the smallest model of every family.

`python -m hfcompress.run.families_table --write README.md` puts the table between the README's markers anew.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from .. import methods as _builtin  # noqa: F401 - importing it fills the registry
from ..core import registry
from ..core.errors import HFCompressError
from ..core.families import families, family_named
from ..core.lifecycle import Lifecycle

BEGIN, END = "<!-- families -->", "<!-- /families -->"


def smallest(model_type: str, auto_class: str | None = None, **config: Any) -> nn.Module:
    """Return the smallest model of a family, with random weights, as the class that `auto_class` makes of its config.

    `config` goes over the family's own tiny config; by default it is a model for classification.
    """
    family = family_named(model_type)
    values = AutoConfig.for_model(model_type, **{**family.tiny, **config})
    known = getattr(transformers, auto_class or family.auto_class)._model_mapping[type(values)]
    return (known[0] if isinstance(known, tuple) else known)(values)


def support() -> dict[str, dict[str, str]]:
    """Return, by method (and what it acts on, where that matters), the reason why a family is refused; "" if it is not.

    Methods that read calibration data are only prepared, the others made permanent. Raises what a method raises that is
    no refusal: the table must not hide a fault.
    """
    models = {name: smallest(name) for name in families()}
    rows = {}
    for name, method in registry.list_methods().items():
        for part, settings in (method.info.examples or {"": {}}).items():
            label = f"`{name}`" + (f" ({part})" if part else "")
            rows[label] = {family: _reason(name, settings, model) for family, model in models.items()}
    return rows


def _reason(name: str, settings: Mapping[str, Any], model: nn.Module) -> str:
    method, model, teacher = registry.create(name, settings), copy.deepcopy(model), model
    try:
        lifecycle = Lifecycle([method], training=not method.needs.calibration)
        lifecycle.prepare(model, teacher=teacher)
        if not method.needs.calibration:
            lifecycle.finalize(model)
    except HFCompressError as error:
        return str(error)
    return ""


def families_markdown() -> str:
    """Return the table as markdown: a row per method, with the families it refuses and why."""
    names = ", ".join(f"`{name}`" for name in families())
    lines = [f"All: {names}.", "", "| method | works on | refuses, because |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {label} | {_cells(reasons)} |" for label, reasons in support().items()])


def _cells(reasons: Mapping[str, str]) -> str:
    """Return what works and what does not, the shorter of the two lists in full."""
    fine = [f"`{family}`" for family, reason in reasons.items() if not reason]
    refused: dict[str, list[str]] = {}
    for family, reason in reasons.items():
        if reason:
            refused.setdefault(reason.replace("|", "/"), []).append(f"`{family}`")
    why = "<br>".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())
    if len(fine) > len(reasons) / 2:
        return f"{'all others' if refused else 'all'} | {why}"
    return f"{', '.join(fine) or 'none'} | {why}"


def with_table(text: str, table: str) -> str:
    """Return `text` with what stands between the markers replaced; ValueError when it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN} … {END} to write the table to")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def main() -> None:
    """Print the table, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="file with the markers")
    path = parser.parse_args().write
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    table = families_markdown()
    if path is None:
        sys.stdout.write(f"{table}\n")
    else:
        path.write_text(with_table(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()

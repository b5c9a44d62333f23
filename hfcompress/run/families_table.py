"""Which method works on which family: found out by trying each on the smallest model of every family.

`python -m hfcompress.run.families_table --write README.md` puts the table between the README's markers anew.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, BertTokenizer, ViTImageProcessorPil

from .. import methods as _builtin  # noqa: F401 - importing it fills the registry
from ..core import registry
from ..core.errors import HFCompressError
from ..core.families import families, family_named
from ..core.files import between
from ..core.foreign_internals import model_classes
from ..core.lifecycle import Lifecycle
from ..core.method import Corpus
from ..export.inputs import example_inputs, is_image, spec_of

MARKER = "families"
_LANGUAGE = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def smallest(model_type: str, auto_class: str | None = None, **config: Any) -> nn.Module:
    """Return the smallest model of a family, with random weights, as the class that `auto_class` makes of its config.

    `config` goes over the family's own tiny config; by default it is a model for classification.
    """
    family = family_named(model_type)
    values = AutoConfig.for_model(model_type, **{**family.tiny, **config})
    known = model_classes(auto_class or family.auto_class)[type(values)]
    return (known[0] if isinstance(known, tuple) else known)(values)


def support() -> dict[str, dict[str, str]]:
    """Return, by method (and what it acts on, where that matters), what `reason_of` says for every family.

    A method that refuses a family's classifier is tried on its language model too: some act on what only that has.
    """
    torch.manual_seed(0)
    models = {name: [smallest(name).eval(), *_language_models(name)] for name in families()}
    rows = {}
    for name, method in registry.list_methods().items():
        for part, settings in (method.info.examples or {"": {}}).items():
            label = f"`{name}`" + (f" ({part})" if part else "")
            rows[label] = {family: _reason(name, settings, tries) for family, tries in models.items()}
    return rows


def _reason(name: str, settings: Mapping[str, Any], tries: Sequence[nn.Module]) -> str:
    """Return why the method refuses the first model, unless it takes another."""
    first = reason_of(name, settings, tries[0])
    return "" if first and not all(reason_of(name, settings, model) for model in tries[1:]) else first


def _language_models(model_type: str) -> list[nn.Module]:
    """Return the family's smallest model with logits per token, untied where its config lets it be; none for images."""
    config = type(AutoConfig.for_model(model_type))
    for auto_class in _LANGUAGE:
        if config in model_classes(auto_class):
            return [smallest(model_type, auto_class, tie_word_embeddings=False).eval()]
    return []


def reason_of(name: str, settings: Mapping[str, Any], model: nn.Module) -> str:
    """Return the reason why a method refuses the model, "" if it does not.

    It goes through a whole stage without training, and the result has to give finite numbers. Raises what the method
    raises that is no refusal: the table must not hide a fault.
    """
    method, teacher = registry.create(name, settings, "MethodInfo.examples"), model
    model, batch = copy.deepcopy(model), _batch(model)
    try:
        lifecycle = Lifecycle([method], training=method.needs.training)
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            lifecycle.prepare(model, teacher=teacher, processor=_processor(model), corpus=_corpus(batch))
            lifecycle.observe(model, lambda: [batch])
            lifecycle.finalize(model)
    except HFCompressError as error:
        return str(error).replace(f"a {type(model).__name__}", "this model")  # the same reason reads the same
    with torch.no_grad():
        if not model(**_batch(model)).logits.isfinite().all():  # inputs of the size it takes now
            raise ValueError(f"{name} makes a {type(model).__name__} that gives no finite numbers")
    return ""


def _batch(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return random inputs with labels."""
    config: Any = model.config
    inputs = example_inputs(spec_of(model, one_graph=False), 4)
    if getattr(config, "is_encoder_decoder", False):  # it classifies what it makes of the end of a sequence
        ids, end = inputs["input_ids"], int(config.eos_token_id)
        ids[ids == end] += 1
        ids[:, -1] = end
    mappings = [model_classes(name) for name in _LANGUAGE]
    per_token = any(type(model) in mapping.values() for mapping in mappings)
    return inputs | {"labels": inputs["input_ids"] if per_token else torch.zeros(4, dtype=torch.long)}


def _processor(model: nn.Module) -> Any:
    """Return a tokenizer, or what gives images of the size of the model's examples."""
    if is_image(model):
        height, width = spec_of(model).image_size
        return ViTImageProcessorPil(size={"height": height, "width": width})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), "word"]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def _corpus(batch: Mapping[str, torch.Tensor]) -> Corpus:
    """Return a corpus of one word, as long as the batch's examples, or of images half the size of the batch's."""
    inputs = next(iter(batch.values()))
    size = (inputs.shape[-2] // 2, inputs.shape[-1] // 2) if inputs.ndim == 4 else None
    return Corpus(lambda: ["word"], lambda: [] if size else inputs.tolist(), lambda: size)


def families_markdown(reasons: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return `reasons`, by default those of `support`, as markdown: a row per method, what it refuses and why."""
    names = ", ".join(f"`{name}`" for name in families())
    lines = [f"All: {names}.", "", "| method | works on | refuses, because |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {label} | {_cells(row)} |" for label, row in (reasons or support()).items()])


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


def main() -> None:
    """Print the table, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="file with the markers")
    path = parser.parse_args().write
    transformers.logging.set_verbosity_error()
    table = families_markdown()
    if path is None:
        sys.stdout.write(f"{table}\n")
    else:
        path.write_text(between(path.read_text(encoding="utf-8"), MARKER, table), encoding="utf-8")


if __name__ == "__main__":
    main()

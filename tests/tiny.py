"""Tiny models of every family, made in memory, with inputs and a data set for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hfcompress.core.families import family_named
from hfcompress.core.method import Corpus
from hfcompress.modules.pixels import pixels_of
from hfcompress.run.families_table import smallest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS, HEADS, LAYERS, UNITS, WIDTH = 3, 4, 3, 64, 32
_TEXT = {
    "vocab_size": 99,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "max_position_embeddings": 40,
    "num_labels": LABELS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    # weights as wide as those of a trained model: with the default 0.02 a tiny model answers the same to everything
    "initializer_range": 0.2,
}
_IMAGE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": LABELS,
    "initializer_range": 0.2,
}


def _distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=99,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=UNITS,
        max_position_embeddings=40,
        num_labels=LABELS,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.2,
    )
    return DistilBertForSequenceClassification(config)


def _dinov2(**more: Any) -> nn.Module:
    config = {k: v for k, v in _IMAGE.items() if k != "intermediate_size"} | {"mlp_ratio": 2, **more}
    return Dinov2ForImageClassification(Dinov2Config(**config))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**_TEXT)),
    "distilbert": _distilbert,
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**_TEXT, pad_token_id=1)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**_IMAGE)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**_IMAGE)),
    "dinov2": _dinov2,
    "dinov2-swiglu": lambda: _dinov2(use_swiglu_ffn=True, image_size=32),
}
_NO_DROPOUT = dict.fromkeys(
    [
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout_prob",
        "classifier_dropout",
        "dropout_rate",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "attention_dropout",
        "drop_path_rate",
        "pooler_dropout",
    ],
    0.0,
)


def _more(model_type: str, auto: str | None = None, **config: Any) -> Callable[[], nn.Module]:
    """Return the maker of a family's smallest model, without dropout and with nothing at zero or one."""

    @torch.no_grad()
    def build() -> nn.Module:
        known = AutoConfig.for_model(model_type).to_dict()
        dropout = {k: v for k, v in _NO_DROPOUT.items() if k in known}
        model = smallest(model_type, auto, num_labels=LABELS, initializer_range=0.2, **dropout, **config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative" in name:
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return build


_CONVOLUTIONAL: dict[str, dict[str, Any]] = {
    "resnet": {},
    "convnext": {"layer_scale_init_value": 1.0},
    "mobilenet_v2": {},
}
CONVOLUTIONAL = tuple(_CONVOLUTIONAL)

# more families, not in `MODELS` so that not every test runs on all of them
MORE: dict[str, Callable[[], nn.Module]] = {
    **{
        name: _more(name)
        for name in (
            "xlm-roberta electra mpnet albert deberta-v2 gpt2 llama qwen2 qwen3 t5 beit swin".split()  # noqa: SIM905
        )
    },
    **{name: _more(name, **more) for name, more in _CONVOLUTIONAL.items()},
    "gpt2-lm": _more("gpt2", "AutoModelForCausalLM"),
    "llama-lm": _more("llama", "AutoModelForCausalLM"),
}

TRANSFORMERS = tuple(name for name in (*MODELS, *MORE) if name not in CONVOLUTIONAL)
WITH_LINEAR = (*TRANSFORMERS, "convnext")  # the models whose blocks hold linear layers


def make(name: str, seed: int = 0) -> nn.Module:
    """Build the tiny model `name`, the same for the same seed, in evaluation mode."""
    torch.manual_seed(seed)
    return (MODELS | MORE)[name]().eval()


def is_causal(name: str) -> bool:
    """Say whether the model predicts the next token."""
    return name.endswith("-lm")


def is_image(name: str) -> bool:
    """Say whether the model takes images."""
    return auto_class(name) == "AutoModelForImageClassification"


def auto_class(name: str) -> str:
    """Return the Auto class of the model."""
    if is_causal(name):
        return "AutoModelForCausalLM"
    return family_named(name.removesuffix("-swiglu")).auto_class


class Examples(Dataset):
    """A small learnable data set: the label is read off the input."""

    def __init__(self, name: str, size: int = 24) -> None:
        generator = torch.Generator().manual_seed(7)
        self.labels = torch.arange(size) % LABELS
        if is_image(name):
            self.key = "pixel_values"
            self.inputs = torch.randn(size, 3, 16, 16, generator=generator) + self.labels.view(-1, 1, 1, 1)
        else:
            self.key = "input_ids"
            self.inputs = torch.randint(10, 99, (size, 9), generator=generator)
            self.inputs[:, 0] = self.labels + 3
            if name == "t5":
                self.inputs[:, -1] = 1  # the end of a sequence, whose vector it classifies
            if is_causal(name):
                self.labels = self.inputs

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.key: self.inputs[index], "labels": self.labels[index]}


def batch(name: str, size: int = 4) -> dict[str, torch.Tensor]:
    """Return one batch of inputs, without labels."""
    examples = Examples(name, size)
    return {examples.key: examples.inputs}


def calibration(name: str) -> list[dict[str, torch.Tensor]]:
    """Return a few batches with labels, as calibration sees them."""
    examples = Examples(name, 16)
    return [{examples.key: examples.inputs[i : i + 4], "labels": examples.labels[i : i + 4]} for i in range(0, 16, 4)]


def processor(name: str) -> Any:
    """Return the tokenizer of the tiny text model, or an image processor that gives images as the examples are."""
    return ViTImageProcessorPil(size={"height": 16, "width": 16}) if is_image(name) else tokenizer(name)


def tokenizer(name: str) -> Any:
    """Return a tokenizer with one word for each id of the tiny text model, or None for a model that takes images."""
    if is_image(name):
        return None
    config = make(name).config
    words = [f"w{i}" for i in range(config.vocab_size)]
    for i, special in zip([j for j in range(6) if j != config.pad_token_id], SPECIAL[1:], strict=False):
        words[i] = special
    words[config.pad_token_id] = SPECIAL[0]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def corpus(name: str) -> Corpus:
    """Return the ids that the examples consist of, as methods that fit a model's tables to its data read them."""
    return Corpus() if is_image(name) else Corpus(token_ids=lambda: Examples(name).inputs.tolist())


@torch.no_grad()
def logits(model: nn.Module, name: str, reader: Any = None) -> torch.Tensor:
    """Return the model's logits on the standard batch, read by `reader` if a method changed its processor."""
    inputs = batch(name)
    if reader is not None and is_image(name):
        inputs["pixel_values"] = nn.functional.interpolate(inputs["pixel_values"], pixels_of(reader))
    elif reader is not None:
        ids = inputs["input_ids"]
        words = processor(name).convert_ids_to_tokens(ids.flatten().tolist())
        inputs["input_ids"] = torch.tensor(reader.convert_tokens_to_ids(words)).view_as(ids)
    return model.eval()(**inputs).logits


def as_written(file: Path, inputs: Mapping[str, Any]) -> Any:
    """Return the logits of an ONNX file by the reference implementation of its operators: the same on any processor.

    Integer products of an engine saturate on x86 without VNNI where weights use all 8 bits.
    """
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(file))
    return session.run(None, {name: inputs[name] for name in session.input_names})[0]

"""Checkpoints are opened with the head they were saved with: its class, its inputs, all of its outputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hfcompress.core.errors import CheckpointError, ExportError, MeasureError
from hfcompress.core.model_classes import class_of
from hfcompress.export.agreement import errors
from hfcompress.export.inputs import example_inputs, spec_from, spec_of
from hfcompress.export.opening import head_names, joined, open_onnx, open_pytorch
from hfcompress.export.runtime import Source
from hfcompress.export.trace import Logits
from hfcompress.measure.bench import Settings, describe
from hfcompress.measure.onnx_file import read_onnx
from hfcompress.measure.workloads import Shape, checkpoint_spec, common_spec
from hfcompress.run.benching import _source
from hfcompress.run.exporting import export_checkpoint
from hfcompress.run.inspect import auto_class_of

SMALL = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


def saved(cls, folder) -> str:
    torch.manual_seed(0)
    cls(BertConfig(**SMALL)).save_pretrained(folder / cls.__name__)
    return str(folder / cls.__name__)


CLASSES = {
    BertForMultipleChoice: "BertForMultipleChoice",
    BertForQuestionAnswering: "BertForQuestionAnswering",
    BertForTokenClassification: "BertForTokenClassification",
    BertForNextSentencePrediction: "BertForNextSentencePrediction",
    BertForMaskedLM: "AutoModelForMaskedLM",
    BertModel: "AutoModel",
}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_checkpoint_is_opened_with_its_head(cls, tmp_path):
    folder = saved(cls, tmp_path)
    source = _source(folder)
    assert source.auto_class == auto_class_of(folder) == CLASSES[cls]
    assert class_of(source.auto_class, AutoConfig.from_pretrained(folder)) is cls
    model = cls.from_pretrained(folder).eval()
    given = example_inputs(checkpoint_spec(source, "AutoModel"), 3, 9)
    inputs = {name: tensor.numpy() for name, tensor in given.items()}
    with torch.no_grad():
        made = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    if cls is BertForQuestionAnswering:
        wanted = torch.stack([made.start_logits, made.end_logits], 1)
    else:
        wanted = made.last_hidden_state if cls is BertModel else made.logits
    found = open_pytorch(source, 1, source.auto_class)(inputs)
    assert np.allclose(found, wanted.numpy(), atol=1e-5)
    assert describe(source, Settings("AutoModel", [Shape(1, 9)], ("pytorch",))).flops["1x9"] > 0


@pytest.mark.parametrize(
    ("cls", "outputs"),
    [
        (BertForMultipleChoice, ["logits"]),
        (BertForQuestionAnswering, ["start_logits", "end_logits"]),
        (BertModel, ["last_hidden_state"]),
    ],
)
def test_what_is_traced_is_the_whole_head(cls, outputs):
    plain = Logits(cls(BertConfig(**SMALL)).eval(), spec_of(cls(BertConfig(**SMALL))).names)
    assert plain.output_names(*example_inputs(plain.model, 2).values()) == outputs
    broken = Logits(torch.nn.Linear(2, 2), ("input_ids",))
    with pytest.raises(ExportError, match="can't be run on input_ids alone"):
        broken.output_names(torch.zeros(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "outputs"),
    [(BertForMultipleChoice, ["logits"]), (BertForQuestionAnswering, ["start_logits", "end_logits"])],
)
def test_an_export_has_the_whole_head(cls, outputs, tmp_path):
    """Multiple choice was exported without its head, and question answering with the first half of its own."""
    folder = saved(cls, tmp_path)
    (file,), _ = export_checkpoint(folder, ["onnxruntime"], None)
    assert [output.name for output in onnx.load(str(file)).graph.output] == outputs
    model = cls.from_pretrained(folder).eval()
    for batch, length, choices in ((3, 9, 2), (1, 5, 3)):
        spec = spec_of(model)
        spec = replace(spec, choices=spec.choices and choices)
        inputs = example_inputs(spec, batch, length, mask_zeros=True)
        with torch.no_grad():
            made = model(**inputs)
        wanted = joined([made[name].numpy() for name in outputs])
        found = open_onnx(file, 1)({name: tensor.numpy() for name, tensor in inputs.items()})
        assert np.allclose(found, wanted, atol=1e-4)
    assert read_onnx(file).spec.choices == spec_of(model).choices


def test_the_agreement_sees_every_output_of_a_head():
    model = BertForQuestionAnswering(BertConfig(**SMALL)).eval()

    def run(inputs):
        with torch.no_grad():
            made = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return np.stack([made.start_logits.numpy(), made.end_logits.numpy() + 1], 1)

    assert errors(Logits(model, spec_of(model).names), spec_of(model), run).max() > 0.1


def test_which_outputs_are_a_heads():
    assert head_names(["loss", "logits", "pred_boxes", "last_hidden_state"]) == ["logits", "pred_boxes"]
    assert head_names(["start_logits", "end_logits", "hidden_states"]) == ["start_logits", "end_logits"]
    assert head_names(["last_hidden_state", "pooler_output"]) == ["last_hidden_state"]
    assert joined([np.zeros((2, 3)), np.zeros((2, 3, 4))]).shape == (2, 15)


def test_a_config_that_does_not_say_what_the_model_is_is_refused(tmp_path):
    folder = saved(BertForQuestionAnswering, tmp_path)
    config = json.loads((tmp_path / "BertForQuestionAnswering" / "config.json").read_text())
    for architectures, message in ((["Nope"], "names the class Nope"), (None, "names no class")):
        written = {**config, "architectures": architectures}
        (tmp_path / "BertForQuestionAnswering" / "config.json").write_text(json.dumps(written))
        for use in (_source, auto_class_of, lambda name: export_checkpoint(name, ["onnxruntime"], tmp_path / "x")):
            with pytest.raises(CheckpointError, match=message):
                use(folder)
    assert not (tmp_path / "x").exists()


def test_what_is_no_one_graph_is_refused(tmp_path):
    config = T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ExportError, match="writes text"):
        spec_from(config, T5ForConditionalGeneration)
    with pytest.raises(ExportError, match="takes 'input_values'"):
        spec_from(Wav2Vec2Config(), Wav2Vec2ForSequenceClassification)
    choice, answer = (spec_from(BertConfig(**SMALL), cls) for cls in (BertForMultipleChoice, BertForQuestionAnswering))
    with pytest.raises(MeasureError, match="several choices"):
        common_spec([choice, answer])
    with pytest.raises(CheckpointError, match="knows no model of the type"):
        class_of("AutoModelForImageClassification", config)
    assert Source(str(tmp_path)).auto_class is None

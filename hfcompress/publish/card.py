"""The model card: a pure function of the run's result, and the function that puts it beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..core.errors import PublishError
from ..core.files import write_text
from ..measure.result import Result, Source, StageRecord, read_result
from . import rows
from .figures import FIGURE, write_figure
from .shifts import shift_lines
from .snippet import loading_snippet, onnx_snippet
from .template import render

LOCAL = "./model"  # as seen from the run folder; a leading dot cannot be taken for a Hub id


def write_card(folder: Path, repo_id: str | None = None) -> Path:
    """Write `model/README.md` and its figure from `folder/result.json`; return the card's path.

    `repo_id` is where the model is (to be) published: the card's code then loads from there, otherwise from the folder.
    Raises MeasureError when there is no valid result, HFCompressError when the folder cannot be written.
    """
    result = read_result(folder / "result.json")
    model = folder / "model"
    write_figure(result, model / FIGURE)
    write_text(model / "README.md", render_card(result, FIGURE, repo_id=repo_id))
    return model / "README.md"


def render_card(result: Result, *figures: str, repo_id: str | None = None) -> str:
    """Return the text of README.md, metadata included; `figures` are paths relative to it.

    Raises PublishError when the model was not evaluated.
    """
    if not result.difference:
        raise PublishError("the result holds no paired difference of the metric: a card needs an evaluated model")
    location = repo_id or LOCAL
    body = render(
        "card.md.jinja",
        result=result,
        figures=figures,
        repo_id=repo_id,
        base=_link(result.base_model, "https://huggingface.co/"),
        dataset=_link(result.dataset, "https://huggingface.co/datasets/"),
        table=rows.table(result),
        code=loading_snippet(result, location),
        onnx_code=onnx_snippet(result, location, hub=repo_id is not None),
        environment=list(_flatten(result.environment)),
        rows=rows,
        shifts=shift_lines(result),
        settings=_settings,
    )
    return f"---\n{metadata(result, repo_id).to_yaml()}\n---\n\n{body}"


def metadata(result: Result, repo_id: str | None = None) -> ModelCardData:
    """Return the card's Hub metadata; what is not known, such as the licence, is left out."""
    base = result.base_model.id if result.base_model.hub else None
    relation: dict[str, Any] = {"base_model_relation": _relation(result)} if base else {}
    return ModelCardData(
        base_model=base,
        **relation,
        library_name="transformers",
        pipeline_tag=result.task,
        tags=_tags(result),
        datasets=[result.dataset.id] if result.dataset.hub else None,
        metrics=list(dict.fromkeys(q.metric for q in result.compressed.quality)) or None,
        model_name=repo_id.rpartition("/")[2] if repo_id else result.title,
        eval_results=list(_eval_results(result)),
    )


def _relation(result: Result) -> str:
    """Return the Hub's word for how the model derives from its base: quantized if any method is, else a finetune."""
    return "quantized" if any("quantization" in method.category for method in result.methods) else "finetune"


def _tags(result: Result) -> list[str]:
    categories = [method.category.replace(" ", "-") for method in result.methods]
    return list(dict.fromkeys(["hfcompress", "compression", *categories, *(m.name for m in result.methods)]))


def _eval_results(result: Result) -> Iterator[EvalResult]:
    """Yield the metric in every engine, then size, parameters and times, as entries of the model-index."""
    for quality in result.compressed.quality:
        name = f"{quality.metric.capitalize()} ({rows.engine_name(quality.engine)})"
        yield _eval_result(result, quality.metric, name, quality.value)
    yield _eval_result(result, "size_bytes", "Weight files (bytes)", result.compressed.size_bytes)
    yield _eval_result(result, "parameters", "Parameters", result.compressed.parameters)
    for row in result.compressed.latency:
        name = f"Latency p50 (ms), {rows.shape_name(row)}, {rows.engine_name(row.engine)}"
        yield _eval_result(result, "latency_p50_ms", name, row.p50_ms)


def _eval_result(result: Result, kind: str, name: str, value: float) -> EvalResult:
    data = result.dataset
    return EvalResult(
        task_type=result.task,
        dataset_type=data.id,
        dataset_name=data.id,
        dataset_config=data.config,
        dataset_split=data.split,
        dataset_revision=data.revision,
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 6),
    )


def _link(source: Source, prefix: str) -> str:
    return f"[{source.id}]({prefix}{source.id})" if source.hub else f"`{source.id}`"


def _settings(stage: StageRecord) -> str:
    """Return a stage's settings as YAML, one line per method."""
    settings: dict[str, Any] = {"methods": stage.methods}
    if stage.train is not None:
        settings["train"] = stage.train
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``(dotted.key, text)`` for every leaf of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""The model card: a pure function of the run's result, and the function that puts it beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..core.errors import PublishError
from ..core.files import write_text
from ..measure.result import Result, Source, StageRecord, read_result
from . import rows
from .examples import GRID, write_grid
from .figures import FIGURE, write_figure
from .layers_figure import LAYERS, describe_layers, write_layers
from .pareto import PARETO, comparable, write_pareto
from .shifts import shift_lines
from .snippet import fastest_where, loading_snippet, onnx_snippet
from .template import code, linked, render

LOCAL = "./model"  # as seen from the run folder; a leading dot cannot be taken for a Hub id


def write_card(
    folder: Path,
    repo_id: str | None = None,
    others: Mapping[str, Result] | None = None,
    revision: str | None = None,
) -> Path:
    """Write `model/README.md` and its figures from `folder/result.json`; return the card's path.

    A folder that holds a card beside its result and no model, as those published without weights, keeps it there.
    `repo_id` is where the model is (to be) published: the card's code then loads from there (`revision`: from that
    branch), otherwise from the folder.
    `others` are runs by name, of which those of the same model and data are drawn beside this one.
    Raises MeasureError when there is no valid result, HFCompressError when the folder cannot be written.
    """
    result = read_result(folder / "result.json")
    model = folder if (folder / "README.md").is_file() and not (folder / "model").exists() else folder / "model"
    figures = write_figures(result, model, others)
    examples = write_grid(folder, model)
    card = render_card(result, *figures, repo_id=repo_id, revision=revision, examples=examples)
    write_text(model / "README.md", card)
    return model / "README.md"


def write_figures(result: Result, folder: Path, others: Mapping[str, Result] | None = None) -> list[str]:
    """Draw what there is to draw into `folder` and return the files' names, as `render_card` takes them."""
    write_figure(result, folder / FIGURE)
    if result.compressed.layout:
        write_layers(result, folder / LAYERS)
    if comparable(result, others or {}):
        write_pareto(result, others or {}, folder / PARETO)
    return figures_beside(result, folder)


def figures_beside(result: Result, folder: Path) -> list[str]:
    """Return the names of the figures a card in `folder` shows: those of every result, and the others that are there.

    A figure of other runs cannot be drawn from this result alone, so it stays as long as it lies there.
    """
    names = [FIGURE] + [LAYERS] * bool(result.compressed.layout)
    return names + [PARETO] * (folder / PARETO).is_file()


def render_card(
    result: Result,
    *figures: str,
    repo_id: str | None = None,
    revision: str | None = None,
    examples: str | None = None,
    libraries: Sequence[str] | None = None,
) -> str:
    """Return the text of README.md, metadata included; `figures` are names of files beside it.

    `examples` is what to say of the grid of examples beside it, if there is one. `libraries` are what the loader's code
    needs where that lies beside the weights, None where it does not.
    Raises PublishError when the model was not evaluated.
    """
    if not result.difference:
        raise PublishError("the result holds no paired difference of the metric: a card needs an evaluated model")
    result = result.without_local_paths()
    location = repo_id or LOCAL
    body = render(
        "card.md.jinja",
        result=result,
        figures={name: text for name, text in _alternatives(result).items() if name in figures},
        examples=examples,
        grid=GRID,
        repo_id=repo_id,
        base=_link(result.base_model, "https://huggingface.co/"),
        dataset=_link(result.dataset, "https://huggingface.co/datasets/"),
        table=rows.table(result),
        code=loading_snippet(result, location, revision),
        libraries=libraries,
        location=location,
        revision=revision,
        onnx_code=onnx_snippet(result, location, hub=repo_id is not None, revision=revision),
        onnx_files=sum(name.endswith(".onnx") for name in result.compressed.exports),
        onnx_where=fastest_where(result.compressed),
        environment=list(_flatten(result.environment)),
        rows=rows,
        shifts=shift_lines(result),
        settings=_settings,
    )
    return f"---\n{metadata(result, repo_id).to_yaml()}\n---\n\n{body}"


def _alternatives(result: Result) -> dict[str, str]:
    """Return what each figure shows, in words, for those who cannot see it."""
    metric = result.headline().metric
    return {
        FIGURE: f"Size, latency and {metric} of the original and the compressed model",
        LAYERS: f"Layer by layer: {describe_layers(result)}" if result.compressed.layout else "",
        PARETO: f"{metric.capitalize()} against bytes and time, of this run and of others of the same model",
    }


def metadata(result: Result, repo_id: str | None = None) -> ModelCardData:
    """Return the card's Hub metadata; what is not known, such as the licence, is left out."""
    base = _bases(result.base_model)
    relation: dict[str, Any] = {"base_model_relation": _relation(result)} if base else {}
    return ModelCardData(
        base_model=base,
        **relation,
        library_name="transformers",
        pipeline_tag=result.task,
        tags=_tags(result),
        datasets=[result.dataset.id] if result.dataset.hub else None,
        metrics=list(dict.fromkeys(q.metric for q in result.compressed.quality)) or None,
        **_index(result, repo_id.rpartition("/")[2] if repo_id else result.title),
    )


def _index(result: Result, name: str) -> dict[str, Any]:
    """Return the model-index, only for a data set the Hub can find again: one of its own, by id, config and split.

    A local folder's name would be taken for the id of somebody's data set.
    """
    data = result.dataset
    if not (data.hub and data.config and data.split):
        return {}
    return {"model_name": name, "eval_results": list(_eval_results(result))}


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


def _bases(source: Source) -> Any:
    """Return the ids of what the model was made of, as far as they are repositories; a list where they are several."""
    found = [one.id for one in (source, source.base) if one is not None and one.hub]
    return found if len(found) > 1 else next(iter(found), None)


def _link(source: Source, prefix: str) -> str:
    link = linked(source.id, f"{prefix}{source.id}") if source.hub else code(source.id)
    return link if source.base is None else f"{_link(source.base, prefix)} with the adapter {link} merged into it"


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

"""Putting together the Result from what a run did and measured."""

from __future__ import annotations

import datetime
from pathlib import Path

from ..checkpoint.structure import Modules
from ..core.registry import list_methods
from ..measure.bench import Bench
from ..measure.environment import environment
from ..measure.findings import findings
from ..measure.require import check
from ..measure.result import Method, Quality, Result, Source, StageRecord
from .measuring import BASELINE, COMPRESSED, base_name, bench_settings
from .setup import Setup


def assemble(
    setup: Setup,
    measured: tuple[Bench, Quality | None],
    records: list[StageRecord],
    structure: Modules,
    *,
    stock: bool,
    trivial: float | None = None,
) -> Result:
    """Return the complete record of the run, its requirements checked.

    `stock`: transformers alone loads the model. `trivial`: the metric of a guess that looks at no example.
    """
    bench, control = measured
    recipe = setup.recipe
    baseline, small = bench.models[BASELINE], bench.models[COMPRESSED]
    speedup = bench.speedup[COMPRESSED]
    methods = _methods(records)
    result = Result(
        title=recipe.title or f"{baseline.name}, compressed",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task=setup.task.name,
        auto_class=setup.task.auto_class,
        loads_with="transformers" if stock else "hfcompress",
        dtype=recipe.dtype,
        base_model=_base_model(setup),
        dataset=_dataset(setup),
        methods=methods,
        stages=records,
        baseline=baseline,
        compressed=small,
        control=control,
        difference=bench.difference[COMPRESSED],
        speedup=speedup,
        waiting=bench.waiting,
        structure=structure,
        findings=findings(baseline, small, speedup, bench.waiting, methods, trivial),
        data=setup.data_report,
        data_notes=setup.plan.notes,
        unknown_tokens=setup.unknown_tokens,
        trivial=trivial,
        environment=environment(bench_settings(setup).threads),
        seed=recipe.seed,
        recipe=setup.loaded.text,
        overrides=[_shortened(item) for item in setup.loaded.overrides],
        recipe_hash=setup.loaded.hash,
    )
    return result.model_copy(update={"requirements": check(result, recipe.require)}).without_local_paths()


def _methods(records: list[StageRecord]) -> list[Method]:
    table = list_methods()
    infos = [
        table[name].info for name in dict.fromkeys(n for record in records for n in record.methods) if name in table
    ]
    return [Method(name=i.name, title=i.title, category=str(i.category), papers=list(i.papers)) for i in infos]


def _base_model(setup: Setup) -> Source:
    model = setup.recipe.model
    if isinstance(model, dict):
        return Source(id=f"{model['model_type']} from scratch")
    base = None
    if adapter := setup.adapters.get("model"):
        there = Path(adapter.base).is_absolute() or Path(adapter.base).exists()
        base = Source(id=Path(adapter.base).name if there else adapter.base, hub=not there)
    return Source(id=base_name(model), hub=not Path(model).exists(), revision=setup.recipe.revision, base=base)


def _dataset(setup: Setup) -> Source:
    data = setup.recipe.data
    source = data.path or data.dataset or ""
    hub = data.dataset is not None and ":" not in data.dataset
    config = data.config or (setup.splits.evaluate.config_name if hub else None)  # the default's name
    return Source(
        id=base_name(source), hub=hub, revision=data.revision, config=config, split=setup.splits.evaluate_split
    )


def _shortened(override: str) -> str:
    """Return an override with a local path cut to its last part: where things lie is nobody's business."""
    key, _, value = override.partition("=")
    if key.startswith("publish."):  # a repository's name, whatever folder is called so
        return override
    return f"{key}={Path(value).name}" if _exists(value) else override


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for the name of a file
        return False

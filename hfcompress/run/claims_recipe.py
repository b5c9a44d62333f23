"""What a result says was done, and on what, compared with the recipe it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import HFCompressError
from ..core.registry import create, list_methods
from ..measure.result import Result
from ..publish.rows import engine_name
from ..recipe.data import Data
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe
from ..train.data import EVALUATION_NAMES
from ..train.tasks import get_task, metric_key
from .claimed import recipe_of
from .claims import COMPRESSED, ORIGINAL, Check, Place, first_line, unread
from .measuring import base_name

OF, DONE, ASKED, HASH = (
    f"{what} its recipe"
    for what in ("model, data and metric are those of", "stages are those of", "all is there that is asked for by",
                 "the hash is that of")
)  # fmt: skip
_PLACES = ("model", "processor", "teacher", "student", "path", "dataset", "metric")  # keys that may name a local path
_CUT = "paths in it were cut short, its data was named anew, or another version of this package resolved it"
_DEFAULTS = "left to defaults, which are others now"
Said = tuple[str, object, Collection[object]]  # what is claimed, its value, and what the recipe lets that be


def recipe_claims(at: Place, overrides: Sequence[str]) -> list[Check]:
    """Compare a result with its recipe; `overrides` say where the data lies now, and change nothing but its hash."""
    result = at.result
    try:
        loaded = recipe_of(result, result.overrides)
        recipe = loaded.recipe
        found = [_agree(OF, _measured(result, recipe)), _stages(result, recipe), _asked(result, recipe)]
        return [*found, _hash(result, recipe_of(result, [*result.overrides, *overrides]), bool(overrides))]
    except HFCompressError as error:
        return unread([(name, "yes") for name in (OF, DONE, ASKED, HASH)], first_line(error))


def _agree(name: str, said: Iterable[Said]) -> Check:
    for what, claimed, allowed in said:
        if claimed not in allowed:
            return Check(name, "yes", f"{what}: {claimed}, not {' or '.join(map(str, allowed))}", False)
    return Check(name, "yes", "yes", True)


def _measured(result: Result, recipe: Recipe) -> Iterator[Said]:
    data, claimed, task = recipe.data, result.dataset, get_task(recipe.task)
    if isinstance(recipe.model, dict):
        yield "base model", result.base_model.id, [f"{recipe.model['model_type']} from scratch"]
    else:
        yield "base model", result.base_model.id, _names(recipe.model)
        yield "its revision", result.base_model.revision, [recipe.revision]
    hub = data.dataset is not None and ":" not in data.dataset
    yield "data on the Hub", claimed.hub, [hub]
    yield "data set", claimed.id, _names(data.path or data.dataset or "")
    yield "its config", claimed.config, [data.config] if data.config or not hub else [claimed.config]
    yield "its revision", claimed.revision, [data.revision]
    yield "split", claimed.split, _splits(data)
    yield "metric", result.headline().metric, [metric_key(recipe.evaluate.metric or task.default_metric)]
    yield "task", result.task, [task.name]
    yield "type of the weights", result.dtype, [recipe.dtype]
    yield "seed", result.seed, [recipe.seed]


def _names(source: str) -> list[str]:
    """Return what a source may be called: of a local path only the last part is told."""
    return list(dict.fromkeys([source, base_name(source), Path(source).name]))


def _splits(data: Data) -> list[str]:
    held_out = f"{data.splits.train} (held-out {data.validation_fraction:.0%})"
    if data.splits.held_out:
        return [held_out]
    return [data.splits.evaluate] if data.splits.evaluate else [*EVALUATION_NAMES, held_out]


def _stages(result: Result, recipe: Recipe) -> Check:
    """Compare what the recipe gives of each stage; a default that is another now speaks for no one."""
    done = result.stages[1:] if recipe.student is not None else result.stages
    given: list[Said] = [("stages", len(done), [len(recipe.stages)])]
    left: list[Said] = []
    for stage, record in zip(recipe.stages, done, strict=False):
        given.append(("stage", record.name, [stage.title]))
        given.append((f"methods of {record.name}", list(record.methods), [list(stage.methods)]))
        given.append((f"training of {record.name}", record.train, [stage.train]))
        for name, told in record.methods.items():
            for key, value in _settings(name, stage.methods.get(name, {})).items():
                said: Said = (f"{key} of {name}", told.get(key, value), [value])
                (given if key in stage.methods.get(name, {}) else left).append(said)
    known = dict.fromkeys(name for record in result.stages for name in record.methods if name in list_methods())
    given.append(("methods", [method.name for method in result.methods], [list(known)]))
    found = _agree(DONE, given)
    if found.holds and _agree(DONE, left).holds is False:
        return Check(DONE, "yes", f"{_agree(DONE, left).found}: {_DEFAULTS}", None, _DEFAULTS)
    return found


def _settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return create(name, given).config.model_dump(mode="json") if name in list_methods() else {}


def _asked(result: Result, recipe: Recipe) -> Check:
    """Look for what a run of this recipe measures: who leaves it out hides it."""
    engines = recipe.benchmark.engines if recipe.benchmark else ["pytorch"]
    models = {ORIGINAL: result.baseline, COMPRESSED: result.compressed}
    lacking = [
        f"the {label}'s metric, {engine_name(name)}"
        for name in engines
        for label, model in models.items()
        if model.quality_in(name) is None
    ]
    told = {row.engine for row in result.difference}
    lacking += [f"difference, {engine_name(name)}" for name in engines if name not in told]
    trains = any(stage.train is not None for stage in recipe.stages)
    lacking += ["control"] * (recipe.evaluate.control and trains and result.control is None)
    return Check(ASKED, "yes", f"missing: {lacking[0]}" if lacking else "yes", not lacking)


def _hash(result: Result, loaded: LoadedRecipe, renamed: bool) -> Check:
    told, found = result.recipe_hash[:12], loaded.hash[:12]
    if loaded.hash == result.recipe_hash:
        return Check(HASH, told, found, True)
    keys = [item.partition("=")[0].rpartition(".")[2] for item in result.overrides]
    other = result.environment.get("hfcompress") != __version__
    if renamed or other or result.recipe_cut or any(key in _PLACES for key in keys):
        return Check(HASH, told, found, None, _CUT)
    return Check(HASH, told, found, False)

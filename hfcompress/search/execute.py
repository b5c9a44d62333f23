"""Executing a search: trials one by one, the best within each size's bounds, and those as whole runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from ..core.disk import room_needed
from ..core.errors import MeasureError, RecipeError
from ..core.files import remove, write_text
from ..core.metric import written
from ..measure.cells import State
from ..measure.require import check, parse_requirement
from ..measure.result import Result, read_result
from ..measure.trials import RECORD, SIZES, SearchRecord, Size, Trial
from ..publish.search import write_report
from ..recipe.load import LoadedRecipe
from ..recipe.search import LoadedSearch, Params
from ..recipe.shared import baseline_key
from ..run import child
from ..run.child import AGAIN
from ..run.folder import RunFolder, changed_inputs
from ..run.lock import sole_writer
from ..run.reporter import Reporter
from ..run.shelf import Shelf
from ..train.tasks import get_task
from ..train.tasks.base import metric_key
from .proposing import Proposer, require_optuna

_TRIALS, _SHARED = "trials", "shared"
_SEARCH = "search.yaml"


@dataclass
class _Progress:
    """What is known while a search runs."""

    search: LoadedSearch
    folder: Path
    record: SearchRecord
    shelf: Shelf
    reporter: Reporter

    def write(self) -> None:
        """Write search.json."""
        write_text(self.folder / RECORD, self.record.model_dump_json(indent=2) + "\n")

    def update(self, **fields: object) -> None:
        """Change the record, and write it."""
        self.record = self.record.model_copy(update=fields)
        self.write()


def run_search(search: LoadedSearch, output: str | Path, *, reporter: Reporter | None = None) -> Path:
    """Run the trials that are still to be run, then the model of each size; return the report's path.

    Trials done before, of the same space and recipe, are kept. Raises HFCompressError when `output` holds something
    else, another process writes there, or optuna is missing; RecipeError when it holds another search.
    """
    require_optuna()
    folder = Path(output)
    with room_needed(folder, AGAIN), sole_writer(folder, RECORD, "a search's"):
        progress = _open(search, folder, reporter or Reporter())
        _try_all(progress)
        for name in search.search.sizes:
            _make(progress, name)
        return write_report(folder)


def _open(search: LoadedSearch, folder: Path, reporter: Reporter) -> _Progress:
    path = folder / RECORD
    record = _new_record(search)
    if path.exists():
        before = SearchRecord.model_validate_json(path.read_text(encoding="utf-8"))
        if before.hash != record.hash:
            raise RecipeError(
                f"{folder} holds the trials of another space or recipe (or other --set values): go on with the same "
                "ones (trials and sizes may differ), or choose another --output"
            )
        _refuse_changed(search, folder, before)
        kept = {"trials": [_measured_against(trial, search, folder) for trial in before.trials]}
        same = ("metric", "higher_is_better", "original", "split", "examples")
        record = record.model_copy(update={**kept, **{name: getattr(before, name) for name in same}})
    progress = _Progress(search, folder, record, Shelf(), reporter)
    progress.write()
    write_text(folder / _SEARCH, search.text)
    return progress


def _refuse_changed(search: LoadedSearch, folder: Path, before: SearchRecord) -> None:
    """Raise RecipeError where the files a trial has read are no longer what they were."""
    for trial in before.done:
        if changed := changed_inputs(_place(folder, trial.number), search.trial(trial.params).recipe):
            raise RecipeError(
                f"{' and '.join(changed)}: other files lie there than for the trials in {folder}: choose another "
                "--output"
            )


def _place(folder: Path, number: int) -> Path:
    return folder / _TRIALS / f"{number:03}"


def _new_record(search: LoadedSearch) -> SearchRecord:
    given = search.search
    bounds = next(iter(given.sizes.values()))
    cost, text = next(iter(bounds.items()))
    _check_bounds(search)
    return SearchRecord(
        title=given.title,
        notes=given.notes,
        hash=search.hash,
        space=given.model_dump(mode="json", exclude_none=True)["space"],
        cost=cost,
        lower_cost_is_better=text.startswith("<"),
        sizes=[Size(name=name, bounds=wanted) for name, wanted in given.sizes.items()],
    )


def _check_bounds(search: LoadedSearch) -> None:
    recipe = search.trial(search.first).recipe
    metric = metric_key(recipe.evaluate.metric or get_task(recipe.task).default_metric)
    for size, bounds in search.search.sizes.items():
        for name, bound in bounds.items():
            try:
                parse_requirement(name, bound, metric)
            except RecipeError as error:
                raise RecipeError(str(error).replace("require.", f"sizes.{size}.", 1)) from error


# ---------------------------------------------------------------------------------------------------------- trials


def _try_all(progress: _Progress) -> None:
    record, wanted = progress.record, progress.search.search.trials
    progress.reporter.heading(
        f"{wanted} trials" + (f", {len(record.trials)} of them done before" if record.trials else "")
    )
    while len(progress.record.trials) < wanted:
        params = _next(progress)
        if params is None:
            progress.reporter.say("every combination was tried")
            return
        trial = _try(progress, params)
        progress.update(trials=[*progress.record.trials, trial])
        progress.reporter.say(_line(trial, progress.record, wanted))


def _next(progress: _Progress) -> Params | None:
    """Return what to try: the first values to begin with, which also tell the metric and its direction."""
    if not progress.record.trials:
        return progress.search.first
    first = progress.search.trial(progress.search.first)
    return Proposer(progress.search.search, progress.record, first.recipe.seed).ask()


def _try(progress: _Progress, params: Params) -> Trial:
    """Run one trial and keep its result; what it wrote beside that goes, but for what the next ones share."""
    number, started = len(progress.record.trials), time.perf_counter()
    loaded = progress.search.trial(params)
    path = _place(progress.folder, number)
    reason = child.execute(loaded, path, progress.shelf, quiet=True)
    seconds = round(time.perf_counter() - started, 1)
    if reason is not None:
        return Trial(number=number, params=params, state=State.FAILED, reason=reason, seconds=seconds)
    run, result = RunFolder(path), read_result(path)
    _keep_shared(progress, run, loaded)
    _tidy(run)
    if progress.record.metric is None:
        progress.update(**_about(result))
    return _measured(Trial(number=number, params=params, state=State.DONE, seconds=seconds), result, progress.search)


def _keep_shared(progress: _Progress, run: RunFolder, loaded: LoadedRecipe) -> None:
    """Keep the fine-tuned model and what was computed of it: the trial's own folder will not last."""
    shared = RunFolder(progress.folder / _SHARED / baseline_key(loaded.recipe)[:12])  # the space may reach what it is
    shared.path.mkdir(parents=True, exist_ok=True)
    run.share(shared, "baseline")
    progress.shelf.keep(shared, loaded.recipe)


def _tidy(run: RunFolder) -> None:
    for entry in run.path.iterdir():
        if entry.is_dir():
            remove(entry)
        elif entry.suffix not in (".json", ".yaml"):
            entry.unlink()


def _about(result: Result) -> dict[str, object]:
    head = result.headline()
    before = result.baseline.quality_in(head.engine)
    return {
        "metric": head.metric,
        "higher_is_better": head.higher_is_better,
        "original": before.value if before else None,
        "split": result.dataset.split,
        "examples": head.examples,
    }


def _measured(trial: Trial, result: Result, search: LoadedSearch) -> Trial:
    """Return the trial with what its result says of quality, cost and sizes."""
    sizes = search.search.sizes
    checked = {name: check(result, bounds) for name, bounds in sizes.items()}
    cost = next(iter(checked.values()))[0].measured
    quality = result.compressed.quality_in(result.headline().engine)
    within = [name for name, lines in checked.items() if all(line.met for line in lines)]
    return trial.model_copy(update={"value": quality.value if quality else None, "cost": cost, "within": within})


def _measured_against(trial: Trial, search: LoadedSearch, folder: Path) -> Trial:
    """Hold a trial done before against the sizes asked for now."""
    if trial.state is not State.DONE:
        return trial
    return _measured(trial, read_result(_place(folder, trial.number)), search)


def _line(trial: Trial, record: SearchRecord, wanted: int) -> Text:
    values = ", ".join(f"{'.'.join(key.split('.')[-2:])} {value}" for key, value in trial.params.items())
    line = Text(f"{trial.number + 1}/{wanted}  {values}: ")
    if trial.state is State.FAILED:
        return line.append("failed: ", "red").append(str(trial.reason))
    quality = "" if trial.value is None else written(trial.value, higher=record.higher_is_better)
    line.append(f"{record.metric} {quality}, {record.cost} {trial.cost:.4g}")
    best = [size.name for size in record.sizes if record.best(size.name) == trial]
    return line.append(f"  best {', '.join(best)} so far", "green") if best else line


# ----------------------------------------------------------------------------------------------------------- sizes


def _make(progress: _Progress, name: str) -> None:
    """Run the recipe whole with the best values within a size's bounds: all training data, measured where it says."""
    best = progress.record.best(name)
    if best is None:
        _note(progress, name, state=State.FAILED, reason=_nearest_miss(progress.record, name))
        return
    loaded = progress.search.size(name, best.params)
    path = progress.folder / SIZES / name
    progress.reporter.heading(f"{name}: the values of trial {best.number + 1}, run whole")
    if not _is_done(path, loaded):
        reason = child.execute(loaded, path, progress.shelf)
        if reason is not None:
            _note(progress, name, state=State.FAILED, trial=best.number, reason=reason)
            return
    progress.shelf.keep(RunFolder(path), loaded.recipe)
    _note(progress, name, state=State.DONE, trial=best.number)


def _note(progress: _Progress, name: str, **fields: object) -> None:
    sizes = [size.model_copy(update=fields) if size.name == name else size for size in progress.record.sizes]
    progress.update(sizes=sizes)
    if "reason" in fields:
        progress.reporter.say(f"{name}: {fields['reason']}", style="red")


def _nearest_miss(record: SearchRecord, name: str) -> str:
    bounds = next(size.bounds for size in record.sizes if size.name == name)
    asked = ", ".join(f"{key} {bound}" for key, bound in bounds.items())
    costs = [trial.cost for trial in record.done if trial.cost is not None]
    if not costs:
        return f"no trial was measured, so none reached {asked}"
    reached = min(costs) if record.lower_cost_is_better else max(costs)
    return f"no trial reached {asked}; the farthest came to {record.cost} {reached:.4g}. Widen `space`, or try more"


def _is_done(path: Path, loaded: LoadedRecipe) -> bool:
    try:
        same = read_result(path).recipe_hash == loaded.hash and RunFolder(path).has_all()
        return same and not changed_inputs(path, loaded.recipe)
    except MeasureError:
        return False

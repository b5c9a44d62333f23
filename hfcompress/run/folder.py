"""The run folder: what a run leaves, and what tells a resumed run how far the last one came."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import HFCompressError, RecipeError
from ..core.files import remove, unfinished_folder, write_text, writing, writing_folder
from ..measure.examples import EXAMPLES, IMAGES
from ..measure.unfinished import MARK, RECIPE, read_mark
from ..recipe.load import LoadedRecipe
from ..recipe.plan import Plan
from ..recipe.schema import Recipe
from .inputs import inputs_of
from .lock import sole_writer


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder; every file in it is written whole or not at all."""

    path: Path
    new: bool = False  # no run had begun here before this one

    @property
    def model(self) -> Path:
        """The compressed checkpoint, its exports and its card."""
        return self.path / "model"

    @property
    def baseline(self) -> Path:
        """The fine-tuned model, when the recipe fine-tunes first."""
        return self.path / "baseline"

    @property
    def stages(self) -> Path:
        """The folders of the stages, and that of the student they start from."""
        return self.path / "stages"

    @property
    def student(self) -> Path:
        """The folder of the student as it was before any stage, if the recipe names one."""
        return self.stages / "student"

    @property
    def control(self) -> Path:
        """The uncompressed model after the same training."""
        return self.path / "control"

    @property
    def control_parts(self) -> Path:
        """The same after each training but the last, until that is done."""
        return self.path / "control-parts"

    @property
    def baseline_exports(self) -> Path:
        """Exports of the baseline, which are only for comparison."""
        return self.path / "exports" / "baseline"

    @property
    def batches(self) -> Path:
        """The evaluation split as the compressed model reads it, in every engine."""
        return self.path / "evaluation.safetensors"

    @property
    def baseline_batches(self) -> Path:
        """The same as the baseline reads it, when the compressed model has a tokenizer of its own."""
        return self.path / "evaluation-baseline.safetensors"

    @property
    def calibration(self) -> Path:
        """Training examples, as the compressed model reads them, on which exports are calibrated."""
        return self.path / "calibration.safetensors"

    @property
    def baseline_calibration(self) -> Path:
        """The same as the baseline reads them."""
        return self.path / "calibration-baseline.safetensors"

    @property
    def real(self) -> Path:
        """Examples of the evaluation split one at a time, as the compressed model reads them, to be timed on."""
        return self.path / "real.safetensors"

    @property
    def baseline_real(self) -> Path:
        """The same as the baseline reads them, when the compressed model has a processor of its own."""
        return self.path / "real-baseline.safetensors"

    @property
    def measured(self) -> Path:
        """What models put out on the evaluation split and took to open, by engine and by what their files hold."""
        return self.path / "measured"

    @property
    def labels(self) -> Path:
        """The labels of the evaluation split."""
        return self.path / "labels.safetensors"

    @property
    def examples(self) -> Path:
        """What both models say of a few examples that can be shown; their images lie beside it."""
        return self.path / EXAMPLES

    def stage(self, index: int) -> Path:
        """The folder of one stage."""
        return self.stages / str(index)

    def log(self, **entry: Any) -> None:
        """Append one line to log.jsonl."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **entry}, default=str) + "\n")

    def share(self, other: RunFolder, part: str) -> None:
        """Give `other` this run's `part` (baseline or control) with all that was computed of it; one copy on disk."""
        for source, target in (
            (self.path / part, other.path / part),
            (self.path / "exports" / part, other.path / "exports" / part),
        ):
            if source.is_dir() and not target.exists():
                with writing_folder(target) as unfinished:
                    shutil.copytree(source, unfinished, copy_function=_link, dirs_exist_ok=True)
        other.measured.mkdir(exist_ok=True)
        for source in self.measured.glob("[!.]*"):  # named by what they depend on: none is taken for another
            if not (target := other.measured / source.name).exists():
                with writing(target) as unfinished:
                    unfinished.unlink()
                    _link(source, unfinished)

    def written(self) -> list[Path]:
        """Return all that a run may have left here but its mark and recipe; what else lies beside it is the user's."""
        named = [self.model, self.baseline, self.control, self.control_parts, self.stages, self.measured, self.batches,
                 self.baseline_batches, self.calibration, self.baseline_calibration, self.real, self.baseline_real,
                 self.labels, self.examples]  # fmt: skip
        others = ("result.json", "plan.json", "log.jsonl", "exports", IMAGES)
        named += [*(self.path / name for name in others), *map(scratch_of, (self.baseline, self.control))]
        return named + [cut for path in named for cut in self.path.glob(f".{path.name}.*")]

    def has_all(self) -> bool:
        """Say whether a run that wrote its result came to its end, the card; the model may have been removed since."""
        return (self.model / "README.md").is_file() or not self.model.exists()

    def clean(self) -> None:
        """Remove the checkpoints of trainings that are done, also of those after which the run was killed."""
        trained = [self.baseline, self.control, *self.control_parts.glob("*")]
        for path in (*map(scratch_of, trained), self.control_parts, *self.stages.glob("*/trainer")):
            remove(path)

    def has_work(self) -> bool:
        """Say whether there is a result here, or a model or checkpoint of one that a run has made."""
        made = (file for file in self.path.glob("*/**/*.safetensors") if self.measured not in file.parents)
        return (self.path / "result.json").exists() or any(made)

    @contextlib.contextmanager
    def before_it_begins(self) -> Iterator[Path]:
        """Yield an empty folder in this one for what is worked out before it is known whether the run may begin."""
        place = unfinished_folder(self.path / MARK)  # called so, it is removed by the next run if this one is killed
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def keep_measured(self, place: Path) -> None:
        """Take over what was measured into the folder `place`."""
        for source in place.glob("[!.]*"):
            self.measured.mkdir(exist_ok=True)
            source.replace(self.measured / source.name)

    def begin(self, loaded: LoadedRecipe, *, resume: bool) -> None:
        """Delete what an earlier run left here, unless that is taken up again, and note whose run this is."""
        for path in () if resume else self.written():
            remove(path)
        mark = {
            "stages_hash": loaded.stages_hash,
            "inputs": inputs_of(loaded.recipe),
            "overrides": list(loaded.overrides),
        }
        self._mark(mark)
        write_text(self.path / RECIPE, loaded.text)

    def note_stop(self, why: str) -> None:
        """Note why the run stopped, until it begins again."""
        if mark := read_mark(self.path):
            self._mark({**mark, "stopped": why})

    def forget(self) -> None:
        """Remove all that a run has written here."""
        for path in (*self.written(), self.path / RECIPE, self.path / MARK):
            remove(path)

    def _mark(self, mark: dict[str, Any]) -> None:
        write_text(self.path / MARK, json.dumps(mark) + "\n")

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json."""
        write_text(self.path / "plan.json", plan.model_dump_json(indent=2) + "\n")


@contextlib.contextmanager
def open_folder(
    path: str | Path, loaded: LoadedRecipe, *, resume: bool, overwrite: bool = False
) -> Iterator[RunFolder]:
    """Hold the run folder for this process alone, once it is known that `loaded` may run there; nothing is deleted yet.

    Raises RecipeError when `resume` meets another recipe, HFCompressError when the folder is not a run's, cannot be
    written, is being written by another process, or holds what a run has made and neither flag says what to do with it.
    """
    folder = RunFolder(Path(path), new=not (Path(path) / MARK).exists())
    with sole_writer(folder.path, MARK, "a run folder"):
        _refuse_loss(folder, loaded, resume=resume, overwrite=overwrite)
        yield folder


def scratch_of(target: Path) -> Path:
    """Return where the checkpoints of a training lie whose model will be saved to `target`."""
    return target.with_name(f"{target.name}-trainer")


def holds(path: Path, loaded: LoadedRecipe) -> bool:
    """Return whether `path` holds a run, done or not, whose stages are those of this recipe, on the same files."""
    return read_mark(path).get("stages_hash") == loaded.stages_hash and not changed_inputs(path, loaded.recipe)


def changed_inputs(path: Path, recipe: Recipe) -> list[str]:
    """Return the keys of `recipe` that name other files, or files with other contents, than when the run began."""
    before = read_mark(path).get("inputs")
    if before is None:  # of an earlier version, which did not look
        return []
    now = inputs_of(recipe)
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or where the disk knows no such thing a copy: nothing writes into a file there is."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _refuse_loss(folder: RunFolder, loaded: LoadedRecipe, *, resume: bool, overwrite: bool) -> None:
    path, same = folder.path, holds(folder.path, loaded)
    if resume:
        if (path / MARK).exists() and not same:
            if read_mark(path).get("stages_hash") == loaded.stages_hash:
                changed = " and ".join(changed_inputs(path, loaded.recipe))
                raise RecipeError(
                    f"{changed}: other files lie there than when the run in {path} began: start anew by --overwrite, "
                    "or choose another --output"
                )
            raise RecipeError(
                f"{path} holds a run of another recipe (or other --set values); resume with the same ones (benchmark, "
                "require, publish, evaluate.control and evaluate.allow_trivial may differ), or choose another --output"
            )
    elif overwrite:
        _refuse_own_source(folder, loaded.recipe)
    elif folder.has_work():
        raise HFCompressError(
            f"{path} holds a run of this recipe: go on with it by --resume, which keeps what is done, choose another "
            "--output, or start anew by --overwrite, which deletes it; nothing was touched"
            if same
            else f"{path} holds a run of another recipe (or other --set values): choose another --output, go on with "
            "that recipe by --resume, or delete its run by --overwrite; nothing was touched"
        )


def _refuse_own_source(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError where the recipe reads what is about to be deleted."""
    written = [made.resolve() for made in folder.written()]
    for key in ("model", "processor", "teacher", "student"):
        source = getattr(recipe, key)
        place = Path(source).expanduser().resolve() if isinstance(source, str) else None
        if place and any(place.is_relative_to(made) for made in written):
            raise RecipeError(
                f"{key}: {source} lies in {folder.path}, which --overwrite empties: choose another --output"
            )

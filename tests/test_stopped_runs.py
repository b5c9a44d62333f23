"""What a run that was refused, stopped or killed leaves, and what other commands say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import NAMES, text_project

from hfcompress.commands.publishing import card
from hfcompress.core.errors import CheckpointError, DataError, HFCompressError, MeasureError
from hfcompress.core.interrupt import Interrupted
from hfcompress.measure.unfinished import MARK, read_mark
from hfcompress.publish.comparison import find_results
from hfcompress.recipe.load import load_recipe
from hfcompress.run import execute, trivial
from hfcompress.run.folder import RunFolder
from hfcompress.run.inspect import checkpoint_of
from hfcompress.run.pushing import pushes

ONE_SHOT = [{"methods": {"quantize_weights": {}}}]


def _project(folder: Path, **recipe: Any) -> Path:
    return text_project(folder, stages=ONE_SHOT, **recipe)


def _run(recipe: Path, out: Path, *overrides: str, **options: Any) -> Any:
    return execute.run_recipe(load_recipe(recipe, overrides), out, **options)


def _answers(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    """Let the baseline answer right, or with the next class."""
    monkeypatch.setattr(trivial, "outputs", lambda s, e, label, data, *_: np.eye(3)[(data.labels + shift) % len(NAMES)])


def _stop(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def stages(*_: Any) -> None:
        raise error

    monkeypatch.setattr(execute, "run_stages", stages)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


REFUSALS = {
    "leakage": ("data.allow_leakage=false", "are also trained on"),
    "labels": ("data.labels={neutral: none}", "has no class 'none'"),
    "trivial": ("evaluate.allow_trivial=false", "no better than"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refused_run_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str) -> None:
    _answers(monkeypatch, 1)
    override, message = REFUSALS[what]
    with pytest.raises(HFCompressError, match=message):
        _run(_project(tmp_path), tmp_path / "out" / "deeper" / "run", override)
    assert not (tmp_path / "out").exists(), "folders above it are gone too"
    (tmp_path / "mine").mkdir()
    with pytest.raises(HFCompressError, match=message):
        _run(tmp_path / "recipe.yaml", tmp_path / "mine", override)
    assert list((tmp_path / "mine").iterdir()) == [], "a folder that was there stays, as it was"


def test_a_refusal_leaves_an_earlier_run_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", _project(tmp_path)
    _stop(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, out, "finetune={train: {max_steps: 1}}")
    before = _tree(out)
    assert "baseline/model.safetensors" in before
    _answers(monkeypatch, 1)
    with pytest.raises(DataError, match="no better than"):
        _run(recipe, out, "evaluate.allow_trivial=false", overwrite=True)
    assert _tree(out) == before


def test_a_stage_that_refuses_before_it_has_made_anything_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _stop(monkeypatch, HFCompressError("a method refuses"))
    with pytest.raises(HFCompressError, match="a method refuses"):
        _run(_project(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_fine_tuned_is_kept_and_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The way out that the message names, `allow_trivial`, goes on with what was trained."""
    out, recipe = tmp_path / "out", _project(tmp_path)
    _answers(monkeypatch, 1)
    more = ("finetune={train: {max_steps: 1}}",)
    with pytest.raises(DataError, match="no better than"):
        _run(recipe, out, *more, "evaluate.allow_trivial=false")
    weights = out / "baseline" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    with pytest.raises(MeasureError) as refused:
        find_results([out])
    assert "It stopped: evaluate: before any compression the model gets accuracy 0.00%" in str(refused.value)
    _stop(monkeypatch, Interrupted(15))
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, out, *more, "evaluate.allow_trivial=true", resume=True)
    assert weights.stat().st_mtime_ns == written and "SIGTERM" in read_mark(out)["stopped"]


def test_commands_say_of_a_run_that_stopped_why_and_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "o ut", _project(tmp_path)
    _stop(monkeypatch, RuntimeError("out of luck, hf_abcdefghijklmnopqrstuvwxyz012345"))
    with pytest.raises(RuntimeError):
        _run(recipe, out, "title=a b")
    wanted = (
        f"{out}: the run did not finish, so it has no result.json. It stopped: RuntimeError: out of luck, .*\n"
        f"To go on: hfcompress run '{out}/recipe.yaml' --set 'title=a b' --output '{out}' --resume"
    )
    asks: list[tuple[type[HFCompressError], Any]] = [
        (MeasureError, lambda: card(out)),
        (MeasureError, lambda: card(out, check=True)),
        (MeasureError, lambda: pushes([out], "me/it", None)),
        (MeasureError, lambda: find_results([out])),
        (CheckpointError, lambda: checkpoint_of(str(out))),
    ]
    for kind, ask in asks:
        with pytest.raises(kind, match=wanted) as refused:
            ask()
        assert "hf_abc" not in str(refused.value)
    assert "hf_abc" not in (out / MARK).read_text()
    mark = read_mark(out)
    del mark["stopped"]
    RunFolder(out)._mark(mark)  # as one that was killed leaves it
    with pytest.raises(MeasureError, match=r"Why is not known: it is still running, or was killed\.\nTo go on: "):
        card(out)
    (out / "model").mkdir()
    with pytest.raises(MeasureError, match="the run did not finish"):
        card(out / "model")
    with pytest.raises(MeasureError, match="no result at"):
        card(tmp_path / "base")


def test_a_run_that_goes_on_forgets_why_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, recipe, marks = tmp_path / "out", _project(tmp_path), []

    def stages(*_: Any) -> None:
        marks.append(read_mark(out))
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run_stages", stages)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            _run(recipe, out, resume=resume)
        assert "SIGINT" in read_mark(out)["stopped"]
    assert len(marks) == 2 and not any("stopped" in mark for mark in marks)
    (out / "result.json").write_text("{}")  # a run that came to its end is not one that stopped
    with pytest.raises(MeasureError, match="is not a result of this package"):
        pushes([out], None, None)


def test_the_check_before_a_run_begins_is_kept_for_its_measurement(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", new=True)
    folder.path.mkdir()
    with folder.before_it_begins() as place:
        assert place.name.startswith(f".{MARK}."), "else a killed run's folder would be taken for somebody else's"
        (place / "measured").mkdir()
        (place / "measured" / "key.safetensors").write_text("answers")
        folder.keep_measured(place / "measured")
        folder.keep_measured(place / "nothing")
    assert _tree(folder.path) == {"measured/key.safetensors": b"answers"} and not folder.has_work()


def test_what_the_original_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", _project(tmp_path)
    monkeypatch.setattr(trivial, "trivial_score", lambda *_: -1.0)
    _stop(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, out, "evaluate.allow_trivial=false")
    kept = list((out / "measured").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".safetensors"
    assert sorted(p.name for p in out.iterdir()) == [MARK, "measured", "plan.json", "recipe.yaml"]

    def predict(*_: Any, **__: Any) -> None:
        pytest.fail("it was asked again")

    monkeypatch.setattr("hfcompress.measure.quality.predict", predict)
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, out, "evaluate.allow_trivial=false", resume=True)

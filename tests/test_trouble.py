"""What happens to machines: full disks, kills at any moment, requests to stop, and what each leaves behind."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import KILLED, Faults, forked, no_workers
from project import text_project
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from test_card import make_result
from test_search import search_file
from test_suite import suite_file
from test_trainer import trainer
from tiny import make
from transformers import TrainerCallback

from hfcompress import cli
from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.disk import disk_is_full, room_needed
from hfcompress.core.errors import DataError, DiskFullError, HFCompressError, WriteError
from hfcompress.core.files import UNFINISHED, remove, write_text, writing, writing_folder
from hfcompress.core.interrupt import WATCHED, Interrupted, end_with_parent, on_request, signal_of, status_of
from hfcompress.core.scratch import scratch_folder
from hfcompress.measure.cells import CELLS
from hfcompress.recipe.load import load_recipe
from hfcompress.recipe.search import load_search
from hfcompress.recipe.suite import load_suite
from hfcompress.run import child, comparing, execute
from hfcompress.run.comparing import run_suite
from hfcompress.run.execute import run_recipe
from hfcompress.run.folder import RunFolder, open_folder, scratch_of
from hfcompress.run.lock import LOCK, sole_writer
from hfcompress.run.shelf import Shelf
from hfcompress.search import execute as searching
from hfcompress.search.execute import run_search
from hfcompress.train.interrupt import SaveOnInterrupt
from hfcompress.train.logit_store import LogitStore

TRAIN = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.001}
WEIGHTS = ".safetensors"
AT_ONCE = {"methods": {"quantize_weights": {}}}

# What each library says, word for word, when the disk is full.
SAID = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # tokenizers
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch.save
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("write(): fd 3 failed with No space left on device"),
    OSError("2000000 requested and 262112 written"),  # numpy
    OSError("Not enough disk space. Needed: 3.00 GiB (download: 1.00 GiB)"),  # datasets
    sqlite3.OperationalError("database or disk is full"),
    RuntimeError("basic_ios::clear: iostream error"),
]
OTHERS = [
    OSError(errno.EACCES, "Permission denied"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ValueError("28 is not a size"),
    RuntimeError("[enforce fail at inline_container.cc:151] . file not found: archive/data.pkl"),
    SafetensorError("Error while deserializing header: header too large"),
]


# ------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("error", SAID, ids=lambda error: str(error)[:30])
def test_every_librarys_word_for_a_full_disk_is_known(error, tmp_path):
    assert disk_is_full(error)
    message = r"the disk is full: .* MB free there\). Free some space, then do it again"
    with pytest.raises(DiskFullError, match=message), room_needed(tmp_path, "do it again"):
        try:
            raise error
        except Exception as cause:
            raise DataError("what came of it") from cause


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:30])
def test_no_other_trouble_is_taken_for_a_full_disk(error, tmp_path):
    assert not disk_is_full(error)
    with pytest.raises(type(error)), room_needed(tmp_path, "do it again"):
        raise error


@pytest.mark.parametrize("error", SAID, ids=lambda error: str(error)[:30])
def test_the_command_line_tells_it_in_one_message(error, monkeypatch, capsys):
    def full(**_):
        raise error

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: the disk is full") and "repeat the command" in said
    assert "Traceback" not in said


def test_a_full_disk_names_the_file_and_leaves_no_half_of_it(tmp_path):
    target = tmp_path / "model.safetensors"
    with pytest.raises(WriteError, match=f"cannot write {target}") as raised, writing(target) as temporary:
        temporary.write_bytes(b"half")
        raise SAID[3]
    assert disk_is_full(raised.value) and list(tmp_path.iterdir()) == []
    with pytest.raises(DiskFullError, match=str(target)), room_needed(tmp_path, "again"):
        raise raised.value
    (tmp_path / "kept").mkdir()
    write_text(tmp_path / "kept" / "config.json", "before")
    with pytest.raises(WriteError), writing_folder(tmp_path / "kept") as temporary:
        write_text(temporary / "config.json", "after")
        raise SAID[4]
    assert (tmp_path / "kept" / "config.json").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def limited(limit: int) -> None:
    """Let no file of this process grow beyond so many bytes, which is what a full disk looks like to all libraries."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.fixture(scope="module")
def quick():
    """Leave out of a run what takes long and writes little: worker processes, figures, the code of the card."""
    with pytest.MonkeyPatch.context() as patch:
        no_workers(patch)
        patch.setattr(execute, "run_snippet", lambda *_: "")
        patch.setattr(execute, "write_card", lambda folder, *_: write_text(folder / "model" / "README.md", "card"))
        for module in (comparing, searching):
            patch.setattr(module, "write_report", lambda folder: write_text(folder / "README.md", "page"))
        yield


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory):
    """Return a recipe that trains and then quantizes, what a run of it leaves, and how often it changes its folder."""
    folder = tmp_path_factory.mktemp("whole")
    prune = {"methods": {"movement": {"heads": 0.5, "ffn": 0.5, "round_to": 4}, "distill": {}}, "train": TRAIN}
    loaded = load_recipe(text_project(folder, stages=[prune, AT_ONCE]))
    count = changes_of(lambda: run_recipe(loaded, folder / "out"), folder / "out", folder / "n")
    assert scraps(folder / "out") == []
    return loaded, left_in(folder / "out" / "model"), count


def left_in(model: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in model.iterdir() if file.is_file()}


def scraps(folder: Path) -> list[str]:
    """Return what a run that came to its end should not leave."""
    wrong = ("trainer", "baseline-trainer", "control-trainer", "control-parts", LOCK)
    return [str(p) for p in folder.rglob("*") if p.name in wrong or UNFINISHED in p.name or "checkpoint-" in p.name]


def resumed_like(whole, out: Path, said: Path) -> None:
    loaded, expected, _ = whole
    assert forked(lambda: run_recipe(loaded, out, resume=True), said) == 0, said.read_text()
    assert differences(left_in(out / "model"), expected) == [] and scraps(out) == []


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Return the files that differ; of weights only by more than sums taken in another order do.

    Several runs in one process do not find memory aligned alike, as each would in a process of its own.
    """
    return [
        name
        for name in sorted({*found, *expected})
        if (one := found.get(name)) != (other := expected.get(name))
        and not (name.endswith(WEIGHTS) and near(one, other))
    ]


def near(one: bytes | None, other: bytes | None) -> bool:
    if one is None or other is None:
        return False
    a, b = load(one), load(other)
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and torch.allclose(a[k].float(), b[k].float(), atol=1e-5) for k in a
    )


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3_000, pytest.param(150_000, marks=pytest.mark.slow)])
def test_a_run_on_a_full_disk_ends_in_one_message_and_goes_on(whole, tmp_path, limit):
    loaded, out, said = whole[0], tmp_path / "out", tmp_path / "said"

    def run():
        limited(limit)
        run_recipe(loaded, out)

    status = forked(run, said)
    assert status in (0, 1)
    if status == 1:
        assert said.read_text().startswith("DiskFullError: the disk is full"), said.read_text()
        assert "--resume" in said.read_text().splitlines()[0]
    resumed_like(whole, out, said)


def points(count: int, seed: int, some: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, count + 1), min(some, count)))


def changes_of(run, folder: Path, count: Path) -> tuple[int, int]:
    """Return how many changes to `folder` a run makes, and how many of them a full disk stops."""

    def counted():
        faults = Faults(folder)
        run()
        count.write_text(f"{faults.seen} {faults.seen - faults.freed}")

    said = count.with_name("said")
    status = forked(counted, said)
    assert status == 0, said.read_text() if said.exists() else f"it ended with status {status}"
    changes, writes = map(int, count.read_text().split())
    return changes, writes


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["killed", "full"])
def test_a_run_cut_off_anywhere_goes_on_to_the_same_model(whole, tmp_path, full):
    cut_off(whole, tmp_path, full, some=1, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["killed", "full"])
def test_a_run_cut_off_at_many_points_goes_on_to_the_same_model(whole, tmp_path, full):
    cut_off(whole, tmp_path, full, some=50, seed=5)


def cut_off(whole, tmp_path: Path, full: bool, *, some: int, seed: int) -> None:
    loaded, _, counts = whole
    count = counts[full]
    said = tmp_path / "said"
    for at in points(count, seed, some):
        out = tmp_path / f"out-{at}"

        def run(out=out, at=at):
            Faults(out, at, full=full)
            run_recipe(loaded, out)

        status = forked(run, said)
        assert status == (1 if full else KILLED), f"change {at} of {count}"
        assert not full or said.read_text().startswith("DiskFullError: the disk is full"), said.read_text()
        resumed_like(whole, out, said)
        remove(out)


# ------------------------------------------------------------------------------------------- comparisons and searches


def one_process(monkeypatch) -> None:
    def run(loaded, folder, quiet):
        try:
            run_recipe(loaded, folder.path, resume=True, card=not quiet)
        except HFCompressError as error:
            return 2, f"error: {error}"
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)


def a_suite(folder: Path):
    train = {"category": "hybrid", "stages": [{"methods": {"distill": {}}, "train": {}}]}
    methods = {"int8": {"category": "parameter quantization", "stages": [AT_ONCE]}, "distilled": train}
    path = suite_file(folder, methods=methods, models={"bert": {"recipe": "recipe.yaml", "train": TRAIN}})
    return lambda out: run_suite(load_suite(path), out), "suite.json", "cells"


def a_search(folder: Path):
    path = search_file(folder, trials=2, sizes={"small": {"size_ratio": ">=2"}})
    return lambda out: run_search(load_search(path), out), "search.json", "sizes"


def states(record: Path) -> set[str]:
    found = json.loads(record.read_text())
    return {part["state"] for key in ("cells", "trials", "sizes") for part in found.get(key, ())}


@pytest.mark.parametrize("make_one", [a_suite, a_search])
def test_a_folder_in_which_a_comparison_or_search_was_killed_at_once_is_not_refused(tmp_path, monkeypatch, make_one):
    one_process(monkeypatch)
    run, record, _ = make_one(tmp_path)
    for at in range(1, 9):
        out = tmp_path / f"out-{at}"

        def killed(out=out, at=at):
            Faults(out, at)
            run(out)

        assert forked(killed) == KILLED
        with sole_writer(out, record, "one"):
            assert scraps(out) == [str(out / LOCK)]


@pytest.mark.slow
@pytest.mark.parametrize("make_one", [a_suite, a_search])
def test_a_comparison_or_search_killed_at_many_points_goes_on(quick, monkeypatch, tmp_path, make_one):
    many_killed(monkeypatch, tmp_path, make_one, some=25, seed=2)


def many_killed(monkeypatch, tmp_path: Path, make_one, *, some: int, seed: int) -> None:
    one_process(monkeypatch)
    run, record, parts = make_one(tmp_path)
    whole, said = tmp_path / "whole", tmp_path / "said"
    count, _ = changes_of(lambda: run(whole), whole, tmp_path / "n")
    expected = {p.relative_to(whole): left_in(p) for p in sorted((whole / parts).glob("*/model"))}
    for at in points(count, seed, some):
        out = tmp_path / f"out-{at}"

        def killed(out=out, at=at):
            Faults(out, at)
            run(out)

        assert forked(killed, said) == KILLED, f"change {at} of {count}"
        assert forked(lambda out=out: run(out), said) == 0, f"change {at} of {count}: {said.read_text()}"
        assert states(out / record) == {"done"}
        for place, files in expected.items():
            assert differences(left_in(out / place), files) == [], f"change {at} of {count}"
        assert scraps(out) == []
        remove(out)


def test_a_folder_is_not_refused_for_what_a_killed_run_began_and_refused_for_all_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / LOCK).write_text("1")
    (out / f".mark.json.abc{UNFINISHED}").write_text("{")
    with sole_writer(out, "mark.json", "one"):
        assert {entry.name for entry in out.iterdir()} == {LOCK}, "what was begun is still there"
    (out / "mine.txt").write_text("mine")
    with pytest.raises(HFCompressError, match="nothing was touched"), sole_writer(out, "mark.json", "one"):
        pass
    assert [entry.name for entry in out.iterdir()] == ["mine.txt"]


def test_a_cell_waits_for_the_run_of_a_killed_comparison_to_end(tmp_path, monkeypatch):
    """The process of a cell outlives a parent that is killed for the moment that it takes to notice."""
    loaded = load_recipe(text_project(tmp_path, stages=[AT_ONCE]))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open_folder(tmp_path / "cell", loaded, resume=True):
            os.write(writer, b"x")
            time.sleep(1)
        os._exit(0)
    os.read(reader, 1)
    child._prepared(loaded, tmp_path / "cell", Shelf())
    os.waitpid(pid, 0)
    monkeypatch.setattr(child, "_ENDING_S", 0.2)
    with open_folder(tmp_path / "other", loaded, resume=True):
        reason = forked(lambda: child._prepared(loaded, tmp_path / "other", Shelf()), tmp_path / "said")
    assert reason == 1 and "is writing into" in (tmp_path / "said").read_text()


def test_a_cell_ends_with_the_command_that_started_it(monkeypatch):
    reader, writer = os.pipe()

    def cell():
        os.close(writer)
        os.dup2(reader, 0)
        os.environ[WATCHED] = "1"
        end_with_parent()
        assert WATCHED not in os.environ, "what it starts in turn has another stdin"
        time.sleep(60)

    threading.Timer(0.3, os.close, (writer,)).start()  # as the system does for a parent that is killed
    started = time.monotonic()
    assert forked(cell) == 128 + signal.SIGKILL and time.monotonic() - started < 30


def test_a_comparison_stops_at_a_full_disk_instead_of_failing_every_cell(tmp_path, monkeypatch):
    said = "error: the disk is full: cannot write x (1.0 MB free there). Free some space, then give the same command"
    monkeypatch.setattr(child, "_in_a_process", lambda loaded, folder, quiet: (2, said))
    path = suite_file(tmp_path)
    with pytest.raises(DiskFullError, match="repeat the command"):
        run_suite(load_suite(path), tmp_path / "out")
    states = [cell["state"] for cell in json.loads((tmp_path / "out" / "suite.json").read_text())["cells"]]
    assert states == ["not run"] * 3


def test_a_cell_killed_before_its_card_was_written_is_not_done(tmp_path, monkeypatch):
    ran = []

    def run(loaded, folder, quiet):
        ran.append(folder.path.name)
        write_text(folder.path / "result.json", make_result(recipe_hash=loaded.hash).model_dump_json())
        write_text(folder.model / "README.md", "card")
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)
    monkeypatch.setattr(comparing, "write_report", lambda folder: folder)
    path = suite_file(tmp_path, methods={"int8": {"category": "parameter quantization", "stages": [AT_ONCE]}})
    for card, again in ((True, []), (False, ["int8-bert-42"])):
        run_suite(load_suite(path), tmp_path / "out")
        if not card:
            (tmp_path / "out" / CELLS / "int8-bert-42" / "model" / "README.md").unlink()
        ran.clear()
        run_suite(load_suite(path), tmp_path / "out")
        assert ran == again


# ------------------------------------------------------------------------------------------------ requests to stop


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_saves_a_checkpoint_as_ctrl_c_does(tmp_path, signum):
    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.raise_signal(signum)
                signal.raise_signal(signum)  # a scheduler repeats it: no hurry

    before = signal.signal(signum, signal.SIG_DFL)  # whatever the tests were started under
    training = trainer("bert", tmp_path)
    with SaveOnInterrupt() as callback:
        training.add_callback(Press())
        training.add_callback(callback)
        with pytest.raises(Interrupted) as stopped:
            training.train()
    assert status_of(stopped.value) == 128 + signum and (tmp_path / "checkpoint-3" / "trainer_state.json").exists()
    assert signal.getsignal(signum) is signal.SIG_DFL
    signal.signal(signum, before)


def test_a_signal_that_is_ignored_stays_ignored():
    heard = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with on_request(heard.append):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM]


def test_the_command_line_ends_with_the_status_of_the_signal(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_comparison_asked_to_stop_asks_its_cell_and_waits_for_it(tmp_path, monkeypatch):
    """The cell here is a script that takes its time to save; sent to the comparison alone, the request reaches it."""
    script = tmp_path / "cell.py"
    saved = tmp_path / "saved"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(signum, frame):\n"
        f"    time.sleep(0.5); pathlib.Path({str(saved)!r}).write_text(signal.Signals(signum).name)\n"
        "    sys.exit(128 + signum)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real([sys.executable, str(script)], **more))

    def ask():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(Interrupted) as stopped:
        run_suite(load_suite(suite_file(tmp_path)), tmp_path / "out")
    assert saved.read_text() == "SIGTERM" and status_of(stopped.value) == 143
    assert signal_of(143) == signal.SIGTERM and signal_of(-15) == signal.SIGTERM and signal_of(2) is None


# ---------------------------------------------------------------------------------------------------- what is left


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.json", "{}")
        with writing(tmp_path / "b.safetensors") as temporary:
            save_file({"x": torch.zeros(2)}, str(temporary))
        save_checkpoint(make("bert"), tmp_path / "model")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_training_leaves_the_config_as_it_was(tmp_path):
    """A model notes what its labels are at the first loss, which a run resumed after its last step never computes."""
    training = trainer("bert", tmp_path, args={"max_steps": 1})
    assert training.model.config.problem_type is None
    training.train()
    assert training.model.config.problem_type is None


def test_a_folder_vanishes_at_once(tmp_path, monkeypatch):
    """Killed while its files go one by one, it is not taken for a model with some of them."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append((tmp_path / "model").exists()))
    remove(tmp_path / "model")
    assert seen and not any(seen)


def test_half_of_a_shared_folder_is_none(tmp_path, monkeypatch):
    loaded = load_recipe(text_project(tmp_path, stages=[AT_ONCE]))
    runs = []
    for name in ("one", "other"):
        with open_folder(tmp_path / name, loaded, resume=True) as run:
            run.begin(loaded, resume=True)
            runs.append(run)
    one, other = runs
    save_checkpoint(make("bert"), one.baseline)
    one.measured.mkdir()
    monkeypatch.setattr("os.link", lambda *_: os._exit(KILLED))
    assert forked(lambda: one.share(other, "baseline")) == KILLED
    assert not other.baseline.exists()


def test_a_temporary_folder_of_a_killed_process_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "hfcompress-mine").mkdir()  # not ours: nothing in it says so

    def killed():
        with scratch_folder() as folder:
            (folder / "large.onnx").write_bytes(b"x")
            os._exit(KILLED)

    assert forked(killed) == KILLED and len(list(tmp_path.iterdir())) == 2
    with scratch_folder() as held:
        (held / "a").write_text("in use")
        assert len(list(tmp_path.iterdir())) == 2, "what was left is still there"
        with scratch_folder():
            assert (held / "a").exists(), "the folder of one who uses it was removed"
    assert [entry.name for entry in tmp_path.iterdir()] == ["hfcompress-mine"]
    with pytest.raises(OSError, match="of the body"), scratch_folder():
        raise OSError("of the body")


def test_checkpoints_of_trainings_that_are_done_go_in_the_end(tmp_path):
    """A run killed after it saved a model, and before it removed the checkpoints on the way to it."""
    run = RunFolder(tmp_path)
    gone = [
        run.stage(0) / "trainer",
        scratch_of(run.baseline),
        scratch_of(run.control),
        scratch_of(run.control_parts / "0"),
    ]
    kept = [run.stage(0) / "model", run.baseline, run.control, tmp_path / "mine-trainer"]
    for folder in (*gone, *kept):
        (folder / "checkpoint-3").mkdir(parents=True)
    run.clean()
    assert [p.exists() for p in gone] == [False] * 4 and all(p.exists() for p in kept)


def test_what_was_half_written_into_a_shared_cache_goes_when_nobody_can_still_be_writing_it(tmp_path):
    old, new = (tmp_path / f".{name}.safetensors.x{UNFINISHED}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    LogitStore(tmp_path)
    assert new.exists() and not old.exists()

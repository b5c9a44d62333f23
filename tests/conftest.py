"""What all tests share. Nothing in them reaches for the network; the Hub is a server they start themselves.

Two tiers. ``pytest`` runs the fast one: every behaviour in at least one case, in minutes, after every change. A test
marked ``slow`` is a further case of what a fast test guards, or a whole recipe on a real model;
``pytest -m "slow or not slow"`` runs both tiers, ``pytest -m slow`` the slow one alone.

What keeps the fast tier fast: new Python processes are forks of a server that has imported the libraries
(`forking.py`; the marker ``own_interpreter`` says which tests need a real one), what was imported is frozen before the
first test so that no collection of garbage looks through it, and what is costly is made once and only read: a finished
run (`finished` below), an export of a model, a short training. All tests of a file run in one process (``--dist
loadfile``), so that what is made once for a file is made once.
"""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, children included
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # before a console is made: no table breaks a line that tests look for
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import forking
import pytest
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_configure(config):
    """Let what tests start be forks; the server starts with the first, and ends with this process."""
    if hasattr(config, "workerinput"):  # the process that started this one has a folder for it
        forking.install()
        return
    config.forks = tempfile.TemporaryDirectory(prefix="forks-")
    folder = Path(config.forks.name)
    (folder / "owner").write_text(str(os.getpid()))
    forking.install(folder)


def pytest_unconfigure(config):
    """End the server."""
    if hasattr(config, "forks"):
        config.forks.cleanup()


def _mark_further_cases(items):
    """Leave as many cases of a test fast as its mark `fast_cases` says, spread evenly; the others are slow."""
    cases: dict[tuple[Path, str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("fast_cases")
        if mark is not None and item.get_closest_marker("slow") is None:
            cases.setdefault((item.path, item.originalname, mark.args[0]), []).append(item)
    for (_, _, count), group in cases.items():
        fast = {i * len(group) // count for i in range(count)}
        for index, item in enumerate(group):
            if index not in fast:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is slow before the tiers are told apart."""
    _mark_further_cases(items)


def pytest_collection_finish():
    """Keep what was imported out of every collection of garbage: each training makes one, a third of a second long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _kept_out_of_collections():
    """Keep what a file's tests leave in caches, such as every file of the house parsed, out of the same collections."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_interpreter(request, monkeypatch):
    """Start real interpreters in a test that says so."""
    if request.node.get_closest_marker("own_interpreter") is not None:
        monkeypatch.delenv(forking.FOLDER, raising=False)


@pytest.fixture(autouse=True)
def _seeded():
    transformers.set_seed(0)


@pytest.fixture(autouse=True)
def _card_code_in_few_runs(request, monkeypatch):
    """Leave out the process in which a run tries its card's code, seconds each, but where a test says it counts."""
    execute = sys.modules.get("hfcompress.run.execute")
    if execute is not None and request.node.get_closest_marker("card_code") is None:
        monkeypatch.setattr(execute, "run_snippet", lambda result, folder: "")


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    from project import text_project

    from hfcompress.recipe.load import load_recipe
    from hfcompress.run import execute

    folder = tmp_path_factory.mktemp("finished")
    recipe = text_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "run_snippet", lambda result, folder: "")
        execute.run_recipe(load_recipe(recipe, ["stages.0.train.max_steps=1"]), folder / "out")
    return recipe


@pytest.fixture
def finished(_finished, tmp_path):
    """Return a recipe to read, and a finished run of it to change, made with ``stages.0.train.max_steps=1``."""
    return _finished, Path(shutil.copytree(_finished.parent / "out", tmp_path / "out"))


@pytest.fixture
def in_this_process(monkeypatch):
    """Run recipes that would have a process each without one; the list names the folders of those that ran."""
    from hfcompress.core.errors import HFCompressError
    from hfcompress.run import child, execute

    ran: list[str] = []

    def run(loaded, folder, quiet):
        ran.append(folder.path.name)
        try:
            execute.run_recipe(loaded, folder.path, resume=True, card=not quiet)
        except HFCompressError as error:
            return 2, f"error: {error}"
        return 0, ""

    monkeypatch.setattr(child, "_in_a_process", run)
    return ran

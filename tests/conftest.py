"""Nothing in the tests reaches for the network; the Hub is a server they start themselves."""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, children included
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # before a console is made: no table breaks a line that tests look for
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded():
    transformers.set_seed(0)


@pytest.fixture(autouse=True)
def _card_code_in_few_runs(request, monkeypatch):
    """Leave out the process in which a run tries its card's code, seconds each, but where a test says it counts."""
    execute = sys.modules.get("hfcompress.run.execute")
    if execute is not None and request.node.get_closest_marker("card_code") is None:
        monkeypatch.setattr(execute, "run_snippet", lambda result, folder: "")


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

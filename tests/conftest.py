"""Nothing in the tests reaches for the network; the Hub is a server they start themselves."""

import os

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

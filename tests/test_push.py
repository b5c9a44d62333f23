"""From a run to the Hub and back by name, and HFCompressTrainer.push_to_hub, over the wire to a local Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, metadata_errors
from test_hub import hub  # noqa: F401 - a fixture
from test_run import command  # noqa: F401 - a fixture

from hfcompress.measure.result import read_result


def in_a_session(server: Hub, home: Path, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run our command line, or `code`, in a process whose Hub is the local server."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
    words = ["-c", code, *arguments] if code else ["-m", "hfcompress.cli", *arguments]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=240)


LOAD = """
import sys, torch, hfcompress
from transformers import AutoModelForSequenceClassification as Auto
ours, theirs = Auto.from_pretrained(sys.argv[1]).state_dict(), Auto.from_pretrained("tester/tiny").state_dict()
assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
print("equal")
"""


@pytest.fixture
def run(finished) -> Path:
    return finished[1]


def test_a_compressed_run_goes_up_and_loads_by_name(hub, command, run, tmp_path):  # noqa: F811
    status, printed, errors = command("push", run, "--repo-id", "tester/tiny", "--private")
    assert status == 0, errors
    assert f"{hub.endpoint}/tester/tiny" in printed and TOKEN not in printed + errors
    files = hub.content("tester/tiny")
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= files.keys()
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py"))]
    card = files["README.md"].decode()
    assert metadata_errors(card) == [] and 'location = "tester/tiny"' in card and "import hfcompress" in card
    assert hub.repos["tester/tiny"].private
    commits = len(hub.repos["tester/tiny"].commits)
    loaded = in_a_session(hub, tmp_path / "other-home", str(run / "model"), code=LOAD)
    assert "equal" in loaded.stdout, loaded.stderr[-2000:]
    assert command("push", run, "--repo-id", "tester/tiny")[0] == 0
    assert len(hub.repos["tester/tiny"].commits) == commits


def test_a_model_that_no_longer_gives_its_numbers_stays_here(hub, command, run):  # noqa: F811
    text = (run / "result.json").read_text()
    value = read_result(run).compressed.quality_in("pytorch").value
    (run / "result.json").write_text(
        text.replace(f'"value":{value}', '"value":0.99').replace(f'"value": {value}', '"value": 0.99')
    )
    status, _, errors = command("push", run, "--repo-id", "tester/tiny")
    assert status == 2 and "nothing was pushed" in errors
    assert not hub.repos


@pytest.mark.slow
def test_the_command_line_pushes_from_a_process_of_its_own(run, tmp_path):
    with Hub() as server:
        done = in_a_session(server, tmp_path / "home", "push", str(run), "--repo-id", "tester/tiny")
        assert done.returncode == 0, done.stderr
        assert f"{server.endpoint}/tester/tiny" in done.stdout and TOKEN not in done.stdout + done.stderr


TRAINER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_trainer import JOINT, trainer
run = trainer("bert", Path(sys.argv[2]), JOINT, args={"push_to_hub": True, "hub_model_id": "tester/tiny"})
run.train()
run.push_to_hub()
run.save_model(sys.argv[2] + "/saved")
"""


def test_trainer_push_to_hub(tmp_path):
    with Hub() as server:
        tests, folder = str(Path(__file__).parent), str(tmp_path / "trainer")
        done = in_a_session(server, tmp_path / "home", tests, folder, code=TRAINER)
        assert done.returncode == 0, done.stderr[-2000:]
        files = server.content("tester/tiny")
        assert "training_args.bin" not in files and "hfcompress" in files["README.md"].decode()
        loaded = in_a_session(server, tmp_path / "other-home", folder + "/saved", code=LOAD)
        assert "equal" in loaded.stdout, loaded.stderr[-2000:]

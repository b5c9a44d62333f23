"""The doctor: what is broken is called broken, with what mends it, and a token's reach is told but never the token."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from rich.console import Console
from test_hub import hub  # noqa: F401 - a fixture

from hfcompress import cli
from hfcompress.core.errors import MeasureError
from hfcompress.run import doctor
from hfcompress.run.doctor import Line, doctor_table


def found(name: str, lines: list[Line]) -> Line:
    return next(line for line in lines if line.name == name)


def test_the_token_is_described_and_never_shown(hub: Hub, monkeypatch) -> None:  # noqa: F811
    line = doctor._token()
    assert (line.state, line.found) == ("ok", "of tester; role write")
    told = {"name": "ann", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {
        "scoped": [{"entity": {"name": "lab"}, "permissions": ["repo.write"]}]}}}}  # fmt: skip
    assert doctor._reach(told) == "of ann; role fineGrained; lab: repo.write; organizations lab"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = doctor._token()
    assert (line.state, line.mend) == ("broken", "hf auth login") and "401" in line.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    line = doctor._token()
    assert "offline" in line.found and len(hub.requests) == asked
    assert TOKEN not in line.model_dump_json() and "hf_wrong" not in line.model_dump_json()


def test_a_torchvision_of_another_build_is_named_with_the_way_out(monkeypatch) -> None:
    versions = {"torchvision": "0.28.0", "timm": "1.0", **dict.fromkeys(doctor.NEEDED, "1.0")}
    monkeypatch.setattr(doctor, "_version", versions.get)
    failures = {"a model of transformers": "RuntimeError: operator torchvision::nms does not exist", "peft": "no"}
    monkeypatch.setattr(doctor, "_imports", lambda names: failures)
    lines = list(doctor._packages())
    line = found("a model of transformers", lines)
    assert (line.state, line.mend, line.needed) == ("broken", "pip uninstall -y torchvision timm", True)
    assert found("peft", lines).state == "broken" and found("torch", lines).state == "ok"
    missing = found("openvino", lines)
    assert (missing.state, missing.mend, missing.needed) == ("missing", 'pip install "hfcompress[openvino]"', False)


def test_a_full_disk_is_broken_but_stops_nothing(monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1e8}))
    line = found("disk of the Hub's cache", list(doctor._surroundings()))
    assert (line.state, line.needed) == ("broken", False) and line.mend


def test_an_engine_that_there_is_not_is_refused_first(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_packages", lambda: pytest.fail("it looked before"))
    with pytest.raises(MeasureError, match=r"no engine is called 'pytorhc'\. Did you mean 'pytorch'"):
        doctor.examine(["pytorhc"])


def test_an_engine_that_fails_is_broken(monkeypatch) -> None:
    assert [line.state for line in doctor._engines(["pytorch"])] == ["ok"]
    monkeypatch.setattr(doctor, "predict", lambda *_: (_ for _ in ()).throw(RuntimeError("illegal instruction\nmore")))
    line = found("engine pytorch", list(doctor._engines(["pytorch"])))
    assert (line.state, line.found, line.needed) == ("broken", "illegal instruction", True)


@pytest.mark.parametrize(("state", "needed", "status"), [("ok", True, 0), ("missing", False, 0), ("broken", True, 1)])
def test_the_exit_status_tells_whether_something_needed_is_broken(monkeypatch, capsys, state, needed, status) -> None:
    line = Line(name="x", state=state, found="f [a]", mend='pip install "x[y]"', needed=needed)
    monkeypatch.setattr(doctor, "examine", lambda engines, tell=None: [line])
    monkeypatch.setattr(sys, "argv", ["hfcompress", "doctor", "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == status
    assert json.loads(capsys.readouterr().out) == [line.model_dump()]
    assert doctor_table([line]).row_count == 1


def test_names_stay_whole_in_a_narrow_terminal_and_every_engine_is_told_of(monkeypatch) -> None:
    name = "engine onnxruntime-static-int8"
    console = Console(width=80, file=io.StringIO())
    console.print(doctor_table([Line(name=name, state="missing", found="of " * 60, mend="pip install " * 9)]))
    assert name in console.file.getvalue()
    told: list[str] = []
    monkeypatch.setattr(doctor, "_tiny", lambda folder, batches: None)
    monkeypatch.setattr(doctor, "_engine", lambda name, *_: Line(name=name, state="ok", found=told[-1]))
    lines = list(doctor._engines(["pytorch", "openvino"], told.append))
    assert [line.found for line in lines] == told and "openvino" in told[1]

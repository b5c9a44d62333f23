"""Servers that stay silent, storage that refuses, proxies in between, files and paths that must not go up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import get_session
from test_card import make_result
from test_hub import COMMIT, CREATE, REPO, commits, contents, hub, model, refused, saved  # noqa: F401 - fixtures too

from hfcompress.core.errors import DataError
from hfcompress.core.local_paths import without_local_paths
from hfcompress.publish import hub as client
from hfcompress.publish import hub_requests
from hfcompress.publish.card import render_card

PUT = "PUT /storage/"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every request a fraction of a second."""
    for name in ("READ_S", "COMMIT_READ_S"):
        monkeypatch.setattr(hub_requests, name, 0.3)
    monkeypatch.setattr(hub_requests.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)


@pytest.mark.parametrize("route", [CREATE, f"POST /api/models/{REPO}/preupload", PUT, COMMIT])
def test_a_silent_server_is_given_up_soon(hub: Hub, model: Path, hasty: None, route: str) -> None:  # noqa: F811
    hub.fail(route, times=1000, silent=True)
    message = refused(lambda: client.push(model, REPO))
    assert "the Hub does not answer" in message and "HF_HUB_DOWNLOAD_TIMEOUT" in message
    asked = [request for request in hub.requests if route in request]
    assert len(asked) == hub_requests.SILENCES * len(set(asked)), "each address is asked so often, no more"
    assert hub_requests.SILENCES * 35.0 < 100 and get_session().timeout.read is None, "limits end with the push"


def test_one_silence_is_no_reason_to_give_up(hub: Hub, model: Path, hasty: None) -> None:  # noqa: F811
    hub.fail(COMMIT, times=1, silent=True)
    client.push(model, REPO)
    assert hub.content(REPO) == contents(model)


@pytest.mark.parametrize("status", [403, 409, 503, 507])
def test_refused_storage_is_asked_for_a_fresh_address(hub: Hub, model: Path, status: int) -> None:  # noqa: F811
    large = sum(name.endswith((".safetensors", ".png")) for name in contents(model))
    hub.fail(PUT, status, times=6 * large if status == 503 else 1)  # the client sends again itself, to the same address
    client.push(model, REPO)
    batches = [request for request in hub.requests if request.endswith("/info/lfs/objects/batch")]
    assert len(batches) == 2 and hub.content(REPO) == contents(model) and commits(hub) == 1


def test_storage_that_keeps_refusing_is_named_with_its_file(hub: Hub, model: Path) -> None:  # noqa: F811
    hub.fail(PUT, 403, times=1000)
    message = refused(lambda: client.push(model, REPO))
    assert "file storage" in message and "403" in message and "uploading " in message
    assert "write access" not in message, "the token is not what is wrong"


@pytest.mark.parametrize("route", [CREATE, f"POST /api/models/{REPO}/preupload", COMMIT, "/info/lfs/objects/batch"])
def test_a_page_in_place_of_the_hub_is_told(hub: Hub, model: Path, route: str) -> None:  # noqa: F811
    hub.fail(route, 200, times=1000, html=True)
    assert "what answered is not the Hub" in refused(lambda: client.push(model, REPO))


def test_a_repository_made_in_vain_is_named(hub: Hub, model: Path) -> None:  # noqa: F811
    hub.fail(COMMIT, 403, times=2)
    made = f"Made before it failed, without these files: the repository {hub.endpoint}/{REPO}."
    assert made in refused(lambda: client.push(model, REPO))
    assert "Made before" not in refused(lambda: client.push(model, REPO)), "it was there already"
    hub.fail(CREATE, 403)
    assert "Made before" not in refused(lambda: client.push(model, "tester/other")), "it was not made"


def test_links_and_strays_are_refused_by_name(hub: Hub, model: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "secret.txt").write_text("mine")
    for name, lay in (
        ("vocab.txt", lambda place: place.symlink_to(tmp_path / "secret.txt")),
        ("onnx", lambda place: place.symlink_to(tmp_path)),
        ("notes.txt", lambda place: place.write_text("mine")),
        ("onnx/other.onnx", lambda place: (place.parent.mkdir(), place.write_text("mine"))),
    ):
        (model / name).unlink(missing_ok=True)
        lay(model / name)
        message = refused(lambda: client.push(model, REPO))
        assert name in message and ("symbolic link" in message or "no file that hfcompress writes" in message)
        shutil.rmtree(model / "onnx") if (model / "onnx").is_dir() and not (model / "onnx").is_symlink() else None
        (model / name).unlink(missing_ok=True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("path: /home/jo/sst2", "path: sst2"),
        ("path: /home/jo doe/my data  # of /mnt/x/y", "path: my data  # of y"),
        ("path: '/home/jo doe/my data'", "path: 'my data'"),
        ("model: ~/models/minilm", "model: minilm"),
        (r"path: C:\Users\jo\data", "path: data"),
        ("files: [/a/b.csv, /c/d.csv]", "files: [b.csv, d.csv]"),
        ("data.path=/home/jo/sst2", "data.path=sst2"),
        ("teacher: file:///home/jo/m", "teacher: m"),
        ("model: org/name", "model: org/name"),
        ("targets: ['re:.*/x']", "targets: ['re:.*/x']"),
        ("see https://huggingface.co/org/name", "see https://huggingface.co/org/name"),
        ("path: ../data", "path: ../data"),
        ("# kept in <output>/baseline or ${HOME}/x", "# kept in <output>/baseline or ${HOME}/x"),
    ],
)
def test_paths_keep_their_last_part(text: str, kept: str) -> None:
    assert without_local_paths(text) == kept


def test_no_path_of_this_machine_goes_up(hub: Hub, saved: Path, tmp_path: Path) -> None:  # noqa: F811
    run = shutil.copytree(saved, tmp_path / "run")
    stage = {"name": "s", "methods": {}, "train": {"output_dir": "/home/jo/out"}, "seconds": 1.0}
    result = make_result(
        loads_with="transformers",
        recipe="model: /home/jo/models/m\ndata: {path: /home/jo/data}\n",
        overrides=["data.path=/home/jo/elsewhere"],
        stages=[stage],
    )
    (run / "result.json").write_text(result.model_dump_json())
    assert "/home/jo" not in render_card(result)
    client.push_run(run, REPO, verify=None)
    for name, data in hub.content(REPO).items():
        assert b"/home/jo" not in data and bytes(tmp_path) not in data, name


@pytest.mark.parametrize("text", [TOKEN, f"Authorization: Bearer {TOKEN}x", "hf_oauth_" + 30 * "a", "Bearer s3cr-et"])
def test_no_error_quotes_a_token(text: str) -> None:
    assert str(DataError(f"cannot read {text}!")).count("***") == 1
    assert not {TOKEN, "s3cr", 20 * "a"} & {part for part in (TOKEN, "s3cr", 20 * "a") if part in str(DataError(text))}
    assert str(DataError("model hf_internal_testing/tiny, shelf_life")) == "model hf_internal_testing/tiny, shelf_life"

"""Pushing over the wire to a local Hub: one commit, repeatable, plain advice, and never a word of the token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, Entry, Hub, metadata_errors
from huggingface_hub import constants
from test_card import make_result, save_text_model, write_run

from hfcompress.core.errors import PublishError
from hfcompress.publish import hub as client
from hfcompress.publish import hub_requests
from hfcompress.publish.card import write_card
from hfcompress.run.claims import find_place
from hfcompress.run.claims_text import text_claims

REPO = "tester/small"
CREATE, COMMIT = "POST /api/repos/create", f"POST /api/models/{REPO}/commit"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Start a Hub and turn this process's client to it, without waits between attempts and without a login."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_requests, "FIRST_WAIT_S", 0.0)
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a tiny model and its card; tests only read it."""
    run = write_run(tmp_path_factory.mktemp("run"), make_result(loads_with="transformers"))
    save_text_model(run / "model")
    write_card(run)
    return run


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """Return a model folder of the test's own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (saved / "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commits(hub: Hub) -> int:
    """Count the commits beyond the one a repository is born with."""
    return len(hub.repos[REPO].commits) - 1


def refused(action: Callable[[], object]) -> str:
    """Return the message of the PublishError `action` raises, having made sure that nothing of it holds the token."""
    with pytest.raises(PublishError) as caught:
        action()
    error: BaseException | None = caught.value
    while error is not None:
        assert TOKEN not in str(error)
        error = error.__cause__ or error.__context__
    return str(caught.value)


def test_push_is_one_commit_and_repeating_it_none(hub: Hub, model: Path) -> None:
    assert client.push(model, REPO) == f"{hub.endpoint}/{REPO}"
    assert hub.content(REPO) == contents(model)
    assert commits(hub) == 1
    assert hub.repos[REPO].head.files["model.safetensors"].large
    assert metadata_errors(hub.content(REPO)["README.md"].decode()) == []
    client.push(model, REPO)
    assert commits(hub) == 1
    (model / "config.json").write_text("{}")
    client.push(model, REPO)
    assert commits(hub) == 2
    assert hub.content(REPO) == contents(model)


SESSION = """
import sys, json, torch
from pathlib import Path
from transformers import AutoModelForSequenceClassification
from hfcompress.publish.hub import push_run
from hfcompress.publish.snippet import loading_snippet
from hfcompress.measure.result import read_result
run, repo = Path(sys.argv[1]), sys.argv[2]
print(push_run(run, "small", verify=None))
again = AutoModelForSequenceClassification.from_pretrained(repo)
saved = AutoModelForSequenceClassification.from_pretrained(run / "model")
same = all(torch.equal(a, saved.state_dict()[k]) for k, a in again.state_dict().items())
print("equal", same and again.state_dict().keys() == saved.state_dict().keys())
code = (run / "model" / "README.md").read_text().split("```python\\n")[1].split("```")[0]
assert code == loading_snippet(read_result(run), repo)
exec(code)
"""


def test_a_fresh_process_pushes_a_run_and_loads_it_back_by_its_name(hub: Hub, saved: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_result(loads_with="transformers"))
    (run / "model").mkdir()
    for path in (saved / "model").iterdir():
        (run / "model" / path.name).write_bytes(path.read_bytes())
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(run), REPO], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"{hub.endpoint}/{REPO}", "equal True"]
    assert done.stdout.splitlines()[2].startswith("LABEL_")
    assert TOKEN not in done.stdout + done.stderr
    assert commits(hub) == 1
    result = (run / "result.json").read_bytes()
    assert hub.content(REPO) == contents(run / "model") | {"result.json": result}
    assert f'location = "{REPO}"' in hub.content(REPO)["README.md"].decode()


def test_a_failed_push_leaves_the_local_card_alone(hub: Hub, model: Path) -> None:
    write_run(model.parent, make_result(loads_with="transformers"))
    before = contents(model)
    hub.fail(COMMIT, 403)
    refused(lambda: client.push_run(model.parent, REPO, verify=None))
    assert contents(model) == before
    assert commits(hub) == 0


def test_verification_comes_before_anything_is_sent(hub: Hub, model: Path) -> None:
    def verify(folder: Path) -> None:
        assert folder == model
        raise PublishError("accuracy is 0.5, the result says 0.9")

    assert refused(lambda: client.push(model, REPO, verify=verify)) == "accuracy is 0.5, the result says 0.9"
    assert hub.requests == []


def test_private_is_private(hub: Hub, model: Path) -> None:
    client.push(model, REPO, private=True)
    assert hub.repos[REPO].private
    client.push(model, REPO, private=True)
    assert commits(hub) == 1
    client.push(model, "tester/open")
    assert not hub.repos["tester/open"].private
    message = refused(lambda: client.push(model, "tester/open", private=True))
    assert "tester/open exists and is public" in message
    assert len(hub.repos["tester/open"].commits) == 2


def test_a_branch_is_made_and_main_left_alone(hub: Hub, model: Path) -> None:
    client.push(model, REPO)
    (model / "config.json").write_text("{}")
    address = client.push(model, REPO, target=client.Target(branch="tiny"))
    assert address == f"{hub.endpoint}/{REPO}/tree/tiny"
    assert hub.content(REPO, "tiny") == contents(model) != hub.content(REPO)
    client.push(model, REPO, target=client.Target(branch="tiny"))
    assert commits(hub) == 1 and len(hub.repos[REPO].branches["tiny"]) == 3, "an unchanged push makes no commit"


def test_the_card_on_a_branch_loads_from_that_branch(hub: Hub, saved: Path, tmp_path: Path) -> None:
    run = shutil.copytree(saved, tmp_path / "run")
    client.push_run(run, REPO, verify=None, target=client.Target(branch="tiny"))
    card = hub.content(REPO, "tiny")["README.md"].decode()
    assert 'revision = "tiny"' in card and card.count("from_pretrained(location, revision=revision") == 3
    assert (run / "model" / "README.md").read_text(encoding="utf-8") == card
    for name, data in hub.content(REPO, "tiny").items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    assert text_claims(find_place(tmp_path / "got", None, ()))[0].holds
    client.push_run(run, REPO, verify=None)
    assert "revision" not in hub.content(REPO)["README.md"].decode()


def test_a_pull_request_changes_nothing_and_creates_nothing(hub: Hub, model: Path) -> None:
    request = client.Target(create_pr=True)
    assert "404" in refused(lambda: client.push(model, REPO, target=request))
    client.push(model, REPO)
    before = hub.content(REPO)
    (model / "config.json").write_text("{}")
    assert client.push(model, REPO, target=request) == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.content(REPO) == before and hub.content(REPO, "refs/pr/1") == contents(model)
    hub.fail(COMMIT, times=1, after=True)
    (model / "config.json").write_text("[]")
    refused(lambda: client.push(model, REPO, target=request))
    assert set(hub.repos[REPO].branches) == {"refs/pr/1", "refs/pr/2"}, "one whose answer was lost is not opened twice"
    with pytest.raises(PublishError, match="not both"):
        client.Target(branch="x", create_pr=True)


def test_a_collection_holds_each_size_once(hub: Hub, model: Path) -> None:
    for name in ("small", "tiny"):
        client.push(model, f"tester/{name}")
    address = client.collect("BERT, compressed", ["tester/small", "tiny"])
    assert client.collect("BERT, compressed", ["tester/tiny"]) == address
    assert list(hub.collections.values()) == [("BERT, compressed", ["tester/small", "tester/tiny"])]
    assert "404" in refused(lambda: client.collect("BERT, compressed", ["tester/nothing"]))
    assert "403" in refused(lambda: client.collect("x", ["someone/small"]))


def test_what_would_go_up_is_told_without_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was touched"))
    planned = client.planned_upload(saved, REPO)
    assert {"README.md", "result.json", "model.safetensors", "config.json"} <= set(planned)
    assert planned["model.safetensors"] == (saved / "model" / "model.safetensors").stat().st_size


def test_no_token(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "hf auth login" in refused(lambda: client.push(model, REPO))
    assert hub.requests == []
    (tmp_path / "token").write_text(TOKEN)
    assert client.find_token() == TOKEN
    assert client.find_token("hf_given") == "hf_given"


def test_a_mangled_token_is_not_quoted(hub: Hub, model: Path) -> None:
    mangled = f"{TOKEN[:12]}\n{TOKEN[12:]}"
    with pytest.raises(PublishError, match="copy it again") as caught:
        client.push(model, REPO, token=mangled)
    assert TOKEN[12:] not in str(caught.value)


def test_a_wrong_token_is_401(hub: Hub, model: Path) -> None:
    message = refused(lambda: client.push(model, REPO, token="hf_wrong"))
    assert "does not accept the token" in message
    assert "401" in message
    assert "hf_wrong" not in message
    assert hub.repos == {}


def test_a_foreign_namespace_is_403(hub: Hub, model: Path) -> None:
    message = refused(lambda: client.push(model, "someone/small"))
    assert "someone/small" in message
    assert "403" in message
    assert "write access" in message


def test_a_repository_that_vanishes_is_404(hub: Hub, model: Path) -> None:
    hub.fail(COMMIT, 404)
    message = refused(lambda: client.push(model, REPO))
    assert "404" in message
    assert "spelling" in message


def test_the_server_echoing_the_token_is_not_echoed(hub: Hub, model: Path) -> None:
    hub.fail(COMMIT, 403)
    message = refused(lambda: client.push(model, REPO))
    assert "your header was Bearer ***" in message


def test_an_existing_repository_is_fine(hub: Hub, model: Path) -> None:
    client.push(model, REPO)
    hub.fail(CREATE, 409)  # this one does not say where the repository is
    (model / "config.json").write_text("{}")
    client.push(model, REPO)
    client.push(model, REPO)
    assert sum(request == CREATE for request in hub.requests) == 3
    assert commits(hub) == 2


@pytest.mark.parametrize("status", [409, 412, 429, 500, 503])
def test_trouble_that_passes_is_waited_out(hub: Hub, model: Path, status: int) -> None:
    hub.fail(COMMIT, status, times=2)
    hub.fail(CREATE, 500 if status == 409 else status, times=2)
    client.push(model, REPO)
    assert commits(hub) == 1
    assert hub.content(REPO) == contents(model)


def test_trouble_that_stays_is_told_with_the_way_out(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub_requests, "FIRST_WAIT_S", 1.0)
    monkeypatch.setattr("time.sleep", waits.append)
    hub.fail(COMMIT, 500, times=1000)
    message = refused(lambda: client.push(model, REPO))
    assert "after 4 attempts" in message
    assert "500" in message
    assert "pushing again is safe" in message
    assert sum(request.startswith(COMMIT) for request in hub.requests) == hub_requests.ATTEMPTS
    assert waits == [1.0, 2.0, 4.0]
    assert commits(hub) == 0


def test_conflict_that_stays(hub: Hub, model: Path) -> None:
    hub.fail(COMMIT, 409, times=1000)
    assert "another change of the repository is under way (it answered 409" in refused(lambda: client.push(model, REPO))


@pytest.mark.parametrize("route", [CREATE, COMMIT, "PUT /storage/", f"POST /{REPO}.git/info/lfs"])
@pytest.mark.parametrize("after", [False, True])
def test_a_cut_connection_is_mended(hub: Hub, model: Path, route: str, after: bool) -> None:
    hub.fail(route, times=1, after=after)
    client.push(model, REPO)
    assert hub.faults[0].times == 0, "the fault was not met"
    assert commits(hub) == 1, "a commit whose answer was lost must not be made twice"
    assert hub.content(REPO) == contents(model)


def test_a_connection_that_is_always_cut(hub: Hub, model: Path) -> None:
    hub.fail(COMMIT, times=1000)
    message = refused(lambda: client.push(model, REPO))
    assert "connection to the Hub was cut" in message
    assert "after 4 attempts" in message
    client.push(model, "tester/second")


def test_no_server_at_all(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "connection to the Hub was cut" in refused(lambda: client.push(model, REPO))


def test_offline_mode_says_so(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in refused(lambda: client.push(model, REPO))


def test_a_name_that_cannot_be_one(hub: Hub, model: Path) -> None:
    assert "a b/c" in refused(lambda: client.push(model, "a b/c"))
    assert hub.repos == {}


def test_bad_metadata_stops_before_the_weights_go_up(hub: Hub, model: Path) -> None:
    message = refused(
        lambda: client.push(model, REPO, more={"README.md": b"---\nbase_model_relation: cousin\n---\n# x\n"})
    )
    assert "base_model_relation" in message
    assert not any(request.startswith("PUT") for request in hub.requests)


def test_stale_weights_go_with_the_same_commit_and_other_files_stay(hub: Hub, model: Path) -> None:
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"old export")
    client.push(model, REPO)
    repo = hub.repos[REPO]
    repo.add("by hand", repo.head.files | {"NOTES.md": Entry(hub.store(b"mine"), large=False)})
    (model / "onnx" / "model.onnx").unlink()
    client.push(model, REPO)
    assert commits(hub) == 3
    assert "onnx/model.onnx" not in hub.content(REPO)
    assert hub.content(REPO)["NOTES.md"] == b"mine"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pytorch_model.bin", b"anything"),
        ("sub/weights.pt", b"anything"),
        ("scores.npy", b"\x80\x04\x95 a pickle under another name"),
    ],
)
def test_a_pickle_is_refused(hub: Hub, model: Path, name: str, data: bytes) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(data)
    message = refused(lambda: client.push(model, REPO))
    assert name in message
    assert "safetensors" in message
    assert hub.requests == []


def test_a_pickle_in_a_zip_is_refused(model: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, model / "scores.data")
    assert "scores.data is a pickle" in refused(lambda: client.files_to_upload(model))


def test_safetensors_whose_header_begins_like_a_pickle_go(model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").write_bytes(b"\x80\x04" + bytes(6))  # a header of 0x480 bytes
    assert "model-00001-of-00002.safetensors" in client.files_to_upload(model)


def test_leftovers_stay_home_and_openvino_weights_go(model: Path) -> None:
    openvino = {"openvino/openvino_model.xml", "openvino/openvino_model.bin"}
    wanted = set(client.files_to_upload(model)) | openvino
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "checkpoint-20/model.safetensors", ".env",
                 ".cache/x/y.json", "runs/events", *openvino):  # fmt: skip
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"1234")
    assert set(client.files_to_upload(model)) == wanted
    assert {"model.safetensors", "config.json", "README.md"} <= wanted


def test_a_run_folder_is_told_from_a_model_folder(saved: Path, tmp_path: Path) -> None:
    assert f"Did you mean {saved / 'model'}?" in refused(lambda: client.files_to_upload(saved))
    assert "holds no safetensors" in refused(lambda: client.files_to_upload(tmp_path / "missing"))

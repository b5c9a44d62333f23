"""`hfcompress doctor`: what is installed, what this machine can do, which engines work here, what mends the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from rich.markup import escape
from rich.table import Table

from ..core.config import StrictModel
from ..core.errors import HFCompressError
from ..core.machine import cpu_info
from ..core.scratch import scratch_folder
from ..export.cpu import cpu_flags
from ..export.runtime import ENGINES, Source, engine, require_engine
from ..measure.batches import write_batches
from ..measure.environment import FLAGS
from ..measure.quality import predict
from ..publish.rows import si

NEEDED = ("torch", "transformers", "huggingface_hub", "safetensors", "datasets", "accelerate", "peft")
WANTED = {"bitsandbytes": "bitsandbytes", "optimum": "optimum", "onnx": "hfcompress[onnx]",
          "onnxruntime": "hfcompress[onnx]", "onnxscript": "hfcompress[onnx]", "openvino": "hfcompress[openvino]",
          "nncf": "hfcompress[openvino]"}  # fmt: skip
_BESIDE = ("torchvision", "timm")  # of another build of torch than the one installed they break transformers
_ROOM = 2e9  # bytes of disk below which a download may not fit
_TRY = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    from transformers import AutoModel, BertModel
except Exception as error:
    found["a model of transformers"] = f"{type(error).__name__}: {error}".splitlines()[0]
print("\\n" + json.dumps(found))
"""

State = Literal["ok", "missing", "broken"]


class Line(StrictModel):
    """One thing looked at, what was found, and the command that mends it."""

    name: str
    state: State
    found: str
    mend: str | None = None
    needed: bool = True  # whether nothing works without it


def examine(engines: list[str] | None = None, tell: Callable[[str], None] = lambda text: None) -> list[Line]:
    """Return a line for each thing looked at; `engines` limits those tried (default: all), `tell` hears of each.

    Raises MeasureError, before anything is looked at, for an engine there is not.
    """
    for name in engines or ():
        engine(name)
    return [*_packages(), *_machine(), *_surroundings(), _token(), *_engines(engines, tell)]


def doctor_table(lines: list[Line]) -> Table:
    """Return the lines as a table for the terminal."""
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    table = Table(show_edge=False, pad_edge=False)
    for title in ("", "state", "found", "what mends it"):
        table.add_column(title, overflow="fold", no_wrap=title in ("", "state"))  # a name in two parts can't be copied
    for line in lines:
        state = f"[{colours[line.state]}]{line.state}[/]"
        table.add_row(escape(line.name), state, escape(line.found), escape(line.mend or ""))
    return table


def _packages() -> Iterator[Line]:
    python = platform.python_version()
    yield Line(name="python", state="ok" if sys.version_info >= (3, 11) else "broken", found=python)
    failed = _imports([*NEEDED, *WANTED, *_BESIDE])
    for name in (*NEEDED, *WANTED):
        found, mend = _version(name), f'pip install "{WANTED.get(name, name)}"'
        needed = name in NEEDED
        if found is None:
            yield Line(name=name, state="missing", found="not installed", mend=mend, needed=needed)
        elif name in failed:
            yield Line(name=name, state="broken", found=f"{found}: {failed[name]}", mend=mend, needed=needed)
        else:
            yield Line(name=name, state="ok", found=found, needed=needed)
    yield _transformers(failed)


def _transformers(failed: dict[str, str]) -> Line:
    """Say whether a model can be imported: a torchvision of another build breaks them all."""
    name = "a model of transformers"
    beside = [package for package in _BESIDE if _version(package)]
    if name not in failed:
        return Line(name=name, state="ok", found="imports" + (f", beside {', '.join(beside)}" if beside else ""))
    mend = f"pip uninstall -y {' '.join(beside)}" if beside else "pip install --force-reinstall torch transformers"
    return Line(name=name, state="broken", found=failed[name], mend=mend)


def _imports(names: list[str]) -> dict[str, str]:
    """Import packages in a process of its own and return what those say that fail."""
    command = [sys.executable, "-c", _TRY, *(name for name in names if _version(name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        why = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        return {"a model of transformers": why}


def _machine() -> Iterator[Line]:
    flags = cpu_flags()
    known = [flag for flag in FLAGS if flag in flags]
    cpu = cpu_info("model name") or platform.processor() or platform.machine()
    yield Line(name="processor", state="ok", found=f"{cpu}; {', '.join(known) or 'no vector feature told'}")
    told = os.environ.get("OMP_NUM_THREADS")
    threads = f"{os.cpu_count()} cores" + (f", OMP_NUM_THREADS={told}" if told else "")
    yield Line(name="threads", state="ok", found=threads)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        whole, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        yield Line(name="memory", state="ok", found=f"{si(whole, 'B')}, {si(free, 'B')} free")


def _surroundings() -> Iterator[Line]:
    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    enough = free > _ROOM
    yield Line(name="disk of the Hub's cache", state="ok" if enough else "broken", found=f"{si(free, 'B')} free",
               mend=None if enough else "hf cache prune", needed=False)  # fmt: skip
    offline = constants.HF_HUB_OFFLINE
    yield Line(name="network", state="missing" if offline else "ok", needed=False,
               found="HF_HUB_OFFLINE is set: nothing is downloaded or pushed" if offline else "allowed",
               mend="unset HF_HUB_OFFLINE" if offline else None)  # fmt: skip


def _token() -> Line:
    """Say whose the token is and what it may do; never the token."""
    name, login = "token", "hf auth login"
    secret = get_token()
    if not secret:
        return Line(name=name, state="missing", found="none (needed only to push)", mend=login, needed=False)
    if constants.HF_HUB_OFFLINE:
        found = "there is one; offline, so the Hub was not asked whose"
        return Line(name=name, state="ok", found=found, needed=False)
    try:
        told = HfApi(token=secret, library_name="hfcompress").whoami()
    except (HTTPError, HfHubHTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        found = f"the Hub refuses it ({status})" if status else f"the Hub cannot be reached ({type(error).__name__})"
        return Line(name=name, state="broken", found=found, mend=login if status else None, needed=False)
    return Line(name=name, state="ok", found=_reach(told), needed=False)


def _reach(told: dict[str, Any]) -> str:
    token = told.get("auth", {}).get("accessToken", {})
    scopes = [
        f"{scope.get('entity', {}).get('name', '?')}: {', '.join(scope.get('permissions', ()))}"
        for scope in token.get("fineGrained", {}).get("scoped", ())
    ]
    organizations = [str(org.get("name")) for org in told.get("orgs", ())]
    parts = [f"of {told.get('name', '?')}", f"role {token.get('role', 'not told')}", *scopes]
    return "; ".join(parts + ([f"organizations {', '.join(organizations)}"] if organizations else []))


def _engines(names: list[str] | None, tell: Callable[[str], None] = lambda text: None) -> Iterator[Line]:
    """Export a tiny model for each engine and run it there, in the process the engine would have."""
    with scratch_folder() as scratch:
        folder, batches = Path(scratch) / "model", Path(scratch) / "batches.safetensors"
        try:
            _tiny(folder, batches)
        except Exception as error:  # whatever is wrong with torch or transformers, it is what is asked for
            yield Line(name="a tiny model", state="broken", found=_first(error), mend="see the lines above")
            return
        for name in names or list(ENGINES):
            tell(f"trying {name} on a tiny model …")
            yield _engine(name, folder, batches)


def _engine(name: str, folder: Path, batches: Path) -> Line:
    needed, mend = name == "pytorch", f'pip install "hfcompress[{ENGINES[name].extra}]"'
    try:
        require_engine(name)
    except HFCompressError as error:
        found, _, told = str(error).partition("; run: ")
        return Line(name=f"engine {name}", state="missing", found=found, mend=told or mend, needed=False)
    try:
        if ENGINES[name].file is not None:
            _export(name, folder, batches)
        logits = predict(Source(str(folder)), name, batches, _AUTO, 1)
        if not np.isfinite(logits).all():
            raise ValueError("its logits are not finite")
    except Exception as error:  # any failure is the finding
        mend = f"pip install --force-reinstall {' '.join(ENGINES[name].packages) or 'torch'}"
        return Line(name=f"engine {name}", state="broken", found=_first(error), mend=mend, needed=needed)
    return Line(name=f"engine {name}", state="ok", found="ran a tiny model", needed=needed)


_AUTO = "AutoModelForSequenceClassification"


def _tiny(folder: Path, batches: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=16, **sizes)).save_pretrained(
        folder
    )
    ids = np.arange(16, dtype=np.int64).reshape(2, 8)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    write_batches(batches, [inputs] * 2)


def _export(name: str, folder: Path, batches: Path) -> None:
    from ..checkpoint import load_model
    from ..export.onnx import export_onnx
    from ..measure.batches import read_batches

    export_onnx(load_model(folder, _AUTO), str(folder), engines=[name], calibration=read_batches(str(batches)))


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

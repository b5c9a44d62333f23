"""Damages checkpoints in random ways, one at a time, and says what loading them came to."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from damage_subjects import SUBJECTS, Subject
from safetensors import SafetensorError
from tiny import auto_class
from torch import Tensor

from hfcompress.checkpoint import load_model
from hfcompress.checkpoint.verify import damaged_parts
from hfcompress.core.errors import CheckpointError

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
GARBAGE: list[Any] = [
    None, "x", "", -1, 0, 1, True, False, 1.5, 10**9, 10**30, float("nan"), float("inf"), [], [1], {}, {"a": {"b": 1}},
]  # fmt: skip
TYPED = (CheckpointError, OSError, ValueError, RuntimeError, SafetensorError)  # ours, and how transformers says it


@dataclass
class Files:
    """A checkpoint taken apart: the header, the tensors' bytes by name, what else lies before and after, the config."""

    header: dict[str, Any]
    payload: dict[str, bytes]
    config: Any
    raw: bytes | None = None  # the weights' file, if it is to be other than header and payload say
    raw_config: bytes | None = None

    @classmethod
    def read(cls, folder: Path) -> Files:
        """Read a folder whose weights are one file."""
        data = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        starts = {n: e["data_offsets"] for n, e in header.items() if n != "__metadata__"}
        payload = {n: data[8 + size + a : 8 + size + b] for n, (a, b) in starts.items()}
        return cls(header, payload, json.loads((folder / "config.json").read_text()))

    def bytes(self) -> bytes:
        """Return the weights' file, offsets made anew."""
        at, header, parts = 0, dict(self.header), []
        for name, part in self.payload.items():
            header[name] = {**header[name], "data_offsets": [at, at + len(part)]}
            at += len(part)
            parts.append(part)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + b"".join(parts)

    def write(self, folder: Path) -> None:
        """Write both files."""
        (folder / "model.safetensors").write_bytes(self.bytes() if self.raw is None else self.raw)
        text = json.dumps(self.config, indent=2).encode() if self.raw_config is None else self.raw_config
        (folder / "config.json").write_bytes(text)


# ------------------------------------------------------------------ damages of the weights


def _truncate(f: Files, r: random.Random) -> str:
    data = f.bytes()
    f.raw = data[: r.choice([0, 4, 8, r.randrange(len(data)), len(data) - 1])]
    return f"cut to {len(f.raw)} bytes"


def _append(f: Files, r: random.Random) -> str:
    f.raw = f.bytes() + r.randbytes(r.randrange(1, 100))
    return "bytes appended"


def _flip_header(f: Files, r: random.Random) -> str:
    data = bytearray(f.bytes())
    at = r.randrange(8 + struct.unpack("<Q", data[:8])[0])
    data[at] ^= 1 << r.randrange(8)
    f.raw = bytes(data)
    return f"a bit of the header's byte {at}"


def _flip_payload(f: Files, r: random.Random) -> str:
    name = r.choice([n for n, p in f.payload.items() if p])
    data = bytearray(f.payload[name])
    for _ in range(r.choice([1, 1, 8])):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    f.payload[name] = bytes(data)
    return f"bits of {name}"


def _zero_payload(f: Files, r: random.Random) -> str:
    name = r.choice([n for n, p in f.payload.items() if p])
    f.payload[name] = bytes(len(f.payload[name]))
    return f"{name} zeroed"


def _dtype(f: Files, r: random.Random) -> str:
    name = r.choice(list(f.payload))
    old = f.header[name]["dtype"]
    same = [d for d, s in SIZES.items() if s == SIZES[old] and d != old]
    new = r.choice(same if same and r.random() < 0.8 else [d for d in SIZES if d != old])
    f.header[name] = {**f.header[name], "dtype": new}
    if SIZES[new] != SIZES[old] and r.random() < 0.7:  # as many numbers, of another width
        f.payload[name] = r.randbytes(SIZES[new] * math.prod(f.header[name]["shape"]))
    return f"{name}: {old} to {new}"


def _rename(f: Files, r: random.Random) -> str:
    name = r.choice(list(f.payload))
    path, _, last = name.rpartition(".")
    others = [
        "weight",
        "bias",
        "weight_codes",
        "weight_scale",
        "weight_zero",
        "weight_words",
        "weight_mask",
        "down.weight",
    ]
    new = r.choice([
        f"{path}.{r.choice(others)}", f"x.{name}", name[:-1], name.upper(), f"{path}x.{last}",
        name.replace("0", "1", 1), name.partition(".")[2] or "x",
    ])  # fmt: skip
    _move(f, name, new)
    return f"{name} renamed to {new}"


def _swap_names(f: Files, r: random.Random) -> str:
    alike: dict[Any, list[str]] = {}
    for n in f.payload:
        alike.setdefault((f.header[n]["dtype"], tuple(f.header[n]["shape"])), []).append(n)
    group = r.choice([names for names in alike.values() if len(names) > 1] or [list(f.payload)])
    a, b = r.sample(group, 2)
    f.payload[a], f.payload[b] = f.payload[b], f.payload[a]
    f.header[a], f.header[b] = f.header[b], f.header[a]
    return f"{a} and {b} change places"


def _drop(f: Files, r: random.Random) -> str:
    names = r.sample(list(f.payload), r.choice([1, 1, 1, 2, 5]))
    for name in names:
        del f.payload[name], f.header[name]
    return f"without {names}"


def _duplicate(f: Files, r: random.Random) -> str:
    a, b = r.sample(list(f.payload), 2)
    path = b.rpartition(".")[0]
    new = f"{path}.{a.rpartition('.')[2]}"
    if new in f.payload:
        new = f"{path}.{r.choice(['weight_zero', 'weight_words', 'weight_mask', 'extra'])}"
    f.payload[new], f.header[new] = f.payload[a], dict(f.header[a])
    return f"{a} once more as {new}"


def _reshape(f: Files, r: random.Random) -> str:
    name = r.choice(list(f.payload))
    shape = list(f.header[name]["shape"])
    count = math.prod(shape)
    new = r.choice([[count], [1, count], [count, 1], shape[::-1], [*shape, 1], [2, count // 2]])
    f.header[name] = {**f.header[name], "shape": new}
    return f"{name}: {shape} to {new}"


def _resize(f: Files, r: random.Random) -> str:
    name = r.choice(list(f.payload))
    shape = list(f.header[name]["shape"])
    at = r.randrange(len(shape)) if shape else 0
    new = [*shape]
    if new:
        new[at] = max(0, new[at] + r.choice([-1, 1, new[at]]))
    f.header[name] = {**f.header[name], "shape": new}
    f.payload[name] = r.randbytes(SIZES[f.header[name]["dtype"]] * math.prod(new))
    return f"{name}: {shape} to {new}, with as many bytes"


def _offsets(f: Files, r: random.Random) -> str:
    data = f.bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    a, b = r.sample(list(f.payload), 2)
    header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]
    text = json.dumps(header).encode()
    f.raw = struct.pack("<Q", len(text)) + text + data[8 + size :]
    return f"offsets of {a} and {b}"


def _move(f: Files, old: str, new: str) -> None:
    f.payload = {new if n == old else n: p for n, p in f.payload.items()}
    f.header = {new if n == old else n: e for n, e in f.header.items()}


# ------------------------------------------------------------------ damages of the config


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for k, v in items for each in ((*path, k), *_places(v, (*path, k)))]


def _at(config: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


def _place(f: Files, r: random.Random) -> tuple[Any, ...]:
    """Return the path of a random value: mostly of ours, and of ours mostly what describes a layer."""
    quant = f.config["quantization_config"]
    area = r.choice([("modules",), ("modules",), ("ties",), ("coded",), ("inner",), ()])
    if r.random() < 0.2:
        return r.choice([p for p in _places(f.config) if p[0] != "quantization_config"])
    inside = _at(quant, area) if not area or area[0] in quant else quant
    path = area if area and area[0] in quant else ()
    found = _places(inside)
    if r.random() < 0.3:
        found = [p for p in found if len(p) == 1] or found
    return ("quantization_config", *path, *r.choice(found)) if found else ("quantization_config", *path)


def _drop_key(f: Files, r: random.Random) -> str:
    path = _place(f, r)
    del _at(f.config, path[:-1])[path[-1]]
    return f"config without {_said(path)}"


def _retype(f: Files, r: random.Random) -> str:
    path, new = _place(f, r), r.choice(GARBAGE)
    _at(f.config, path[:-1])[path[-1]] = new
    return f"config {_said(path)} = {new!r}"


def _alter(f: Files, r: random.Random) -> str:
    """Give a value another one of the same type, as could be."""
    path = _place(f, r)
    old = _at(f.config, path)
    choices: dict[type, Callable[[], Any]] = {
        bool: lambda: not old,
        int: lambda: r.choice([old + 1, old - 1, 2 * old, old // 2, 4, 8]),
        float: lambda: r.choice([old * 2, old / 2, -old, 0.0]),
        str: lambda: r.choice(
            ["linear", "packed_linear", "ternary", "add", "multiply", "float16", "nf4", "fp4", old[:-1]]
        ),
        dict: lambda: dict(list(old.items())[1:]),
        list: lambda: old[::-1] or [1],
    }
    new = choices.get(type(old), lambda: 1)()
    _at(f.config, path[:-1])[path[-1]] = new
    return f"config {_said(path)}: {old!r:.60} to {new!r:.60}"


def _swap_entries(f: Files, r: random.Random) -> str:
    quant = f.config["quantization_config"]
    table = quant[r.choice([k for k in ("modules", "ties", "coded") if len(quant.get(k) or {}) > 1] or ["modules"])]
    if len(table) < 2:
        return _alter(f, r)
    a, b = r.sample(list(table), 2)
    table[a], table[b] = table[b], table[a]
    return f"config: {a} and {b} change places"


def _rename_key(f: Files, r: random.Random) -> str:
    path = _place(f, r)
    owner = _at(f.config, path[:-1])
    if isinstance(owner, list):
        return _alter(f, r)
    new = r.choice(["x", "modules", "", f"{path[-1]}x", str(path[-1]).replace("0", "1", 1), "bits"])
    owner[new] = owner.pop(path[-1])
    return f"config {_said(path)} renamed to {new!r}"


def _break_json(f: Files, r: random.Random) -> str:
    text = json.dumps(f.config).encode()
    f.raw_config = r.choice(
        [b"", b"[]", b"null", b"{", text[: r.randrange(len(text))], text + b"x", r.randbytes(50), b"[" * 5000]
    )
    return f"config of {len(f.raw_config)} bytes"


def _said(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


OF_VALUES = (_flip_payload, _zero_payload, _swap_names, _offsets)  # damages that only a digest can see
OF_WEIGHTS = (
    _truncate,
    _append,
    _flip_header,
    _dtype,
    _dtype,
    _rename,
    _rename,
    _drop,
    _drop,
    _duplicate,
    _reshape,
    _resize,
)
OF_CONFIG = (
    _drop_key,
    _drop_key,
    _retype,
    _retype,
    _retype,
    _alter,
    _alter,
    _alter,
    _swap_entries,
    _rename_key,
    _break_json,
)


# ------------------------------------------------------------------ what comes of it


@dataclass(frozen=True)
class Outcome:
    """What loading a damaged checkpoint came to; `wrong` says what must not be."""

    what: str
    how: str
    said: str
    wrong: str | None = None


class Trials:
    """The subjects, saved once, and what they load as when nothing is damaged."""

    def __init__(self, place: Path, names: list[str] | None = None) -> None:
        self.place = place / "damaged"
        self.subjects: dict[str, tuple[Subject, Path, dict[str, Tensor], Any]] = {}
        for name in names or list(SUBJECTS):
            folder = SUBJECTS[name].save(place / name)
            model = self._load(SUBJECTS[name], folder, "from_pretrained")
            self.subjects[name] = (
                SUBJECTS[name],
                folder,
                model.state_dict(),
                model.config.quantization_config.to_dict(),
            )

    def _load(self, subject: Subject, folder: Path, how: str) -> Any:
        if how == "load_model":
            return load_model(folder, auto_class(subject.model), dtype="auto")
        return getattr(transformers, auto_class(subject.model)).from_pretrained(folder)

    def run(self, seed: int) -> Outcome:
        """Damage one checkpoint in one way and load it."""
        r = random.Random(seed)
        name = r.choice(list(self.subjects))
        damages = r.choices([OF_WEIGHTS, OF_CONFIG, OF_VALUES], [4, 5, 1])[0]
        return self.damaged(name, r.choice(damages), r)

    def damaged(self, name: str, damage: Callable[[Files, random.Random], str], r: random.Random) -> Outcome:
        """Damage `name` with `damage` and load it."""
        subject, folder, state, stated = self.subjects[name]
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(folder, self.place)
        files = Files.read(folder)
        what, how = f"{name}: {damage(files, r)}", r.choice(["from_pretrained", "load_model"])
        files.write(self.place)
        torch.manual_seed(r.randrange(2**31))
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                model = self._load(subject, self.place, how)
        except Exception as error:  # which one it may be is what is looked at
            typed = isinstance(error, CheckpointError) or (how == "from_pretrained" and _is_of_config(error, what))
            said = f"{type(error).__name__}: {error}"
            return Outcome(what, how, said, None if typed else "an error that is not typed")
        return Outcome(what, how, "loaded", self._compare(model, state, stated, damage in OF_VALUES))

    def _compare(self, model: Any, state: dict[str, Tensor], stated: Any, only_values: bool) -> str | None:
        found = model.state_dict()
        if found.keys() != state.keys():
            return f"other names: {sorted(found.keys() ^ state.keys())[:3]}"
        other = [n for n in state if (found[n].dtype, found[n].shape) != (state[n].dtype, state[n].shape)]
        if other:
            return f"{other[0]}: {found[other[0]].dtype} {tuple(found[other[0]].shape)}"
        now = model.config.quantization_config.to_dict()
        if any(now.get(k) != stated.get(k) for k in ("modules", "ties", "coded", "inner")):
            return "another structure"
        shared = [n for n in state for m in state if n < m and (found[n] is found[m]) != (state[n] is state[m])]
        if shared:
            return f"other ties: {shared[:2]}"
        changed = [n for n in state if not torch.equal(_bytes(found[n]), _bytes(state[n]))]
        if changed and not only_values:
            return f"other values: {changed[:3]}"
        if changed and not damaged_parts(self.place):
            return f"the digest does not see that {changed[:3]} changed"
        return None


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _is_of_config(error: Exception, what: str) -> bool:
    """Say whether it is an error of transformers' own kinds, or of its code that reads a config without looking."""
    return isinstance(error, TYPED) or "config" in what

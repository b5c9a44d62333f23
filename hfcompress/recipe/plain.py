"""What a recipe may be made of: a file of ordinary size, and plain finite values that do not nest for ever."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError, nearest, shown

LARGEST = 1_000_000  # bytes of a recipe file; the longest of ours has some thousands
MANY, DEEP = 100_000, 60  # values in one, those an alias repeats counted each time; levels of them
_WHOLE = 2**63  # what a whole number has to be below: no setting, and no library behind one, takes more
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def read_file(path: Path) -> str:
    """Return the text of a recipe, suite or search; RecipeError, with the nearest file's name, when it is not one."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe nobody writes to is not waited for
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RecipeError(
                    f"cannot read the recipe {path}: it is a device, a pipe or a folder, not a file.{_neighbours(path)}"
                )
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"cannot read the recipe {path}: it is larger than {LARGEST // 1_000_000} MB.")
        return content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        if "\0" in str(path):
            reason = "no file has such a name"
        raise RecipeError(f"cannot read the recipe {path}: {reason}.{_neighbours(path)}") from error


def _neighbours(path: Path) -> str:
    try:
        found = [str(p) for p in path.parent.glob("*.y*ml") if p != path] if path.parent.is_dir() else []
    except (OSError, ValueError):
        return ""
    return nearest(str(path), found) if found else ""


def kind_of(value: Any) -> str:
    """Return what YAML calls a value, with its article."""
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "a mapping", type(None): "nothing"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"of type {type(value).__name__}")


def can_be_a_place(name: str) -> bool:
    """Return whether a file or folder may be called `name`, whether there is one or not."""
    try:
        Path(name).expanduser().exists()
    except PermissionError:
        return True
    except (OSError, ValueError, RuntimeError):  # too long, or the home of nobody
        return False
    return True


def check_plain(values: Any, where: str = "") -> None:
    """Raise RecipeError with the key's path where a value is not what YAML 1.2 can say, is in itself, or is no use."""
    _Walk().check(values, where, 0)


class _Walk:
    def __init__(self) -> None:
        self.seen = 0

    def check(self, value: Any, where: str, depth: int) -> None:
        self.seen += 1
        if self.seen > MANY:
            raise RecipeError(f"{_cut(where)}: a recipe of more than {MANY:,} values; something repeats itself.")
        if depth > DEEP:
            raise RecipeError(f"{_cut(where)}: values within values, more than {DEEP} levels of them.")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise RecipeError(f"{_cut(where) or 'recipe'}: the key {shown(key)} is not text.")
                _check_text(key, where)
                self.check(inner, f"{where}.{key}".strip("."), depth + 1)
        elif isinstance(value, (list, tuple)):
            for index, inner in enumerate(value):
                self.check(inner, f"{where}.{index}".strip("."), depth + 1)
        else:
            _check_scalar(value, where)


def _check_scalar(value: Any, where: str) -> None:
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int) and abs(value) >= _WHOLE:
        raise RecipeError(f"{_cut(where)}: a whole number of more than 18 digits is of no use here.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{_cut(where)}: expected a number (got {value!r}).")
    elif not isinstance(value, (bool, int, float, type(None))):
        raise RecipeError(f"{_cut(where)}: a value {kind_of(value)} is no text, number, true, false, list or mapping.")


def _check_text(text: str, where: str) -> None:
    if found := _NO_TEXT.search(text):
        code = f"U+{ord(found[0]):04X}"
        raise RecipeError(f"{_cut(where) or 'recipe'}: {shown(text)} holds {code}, which is no character of a text.")


def _cut(where: str) -> str:
    return where if len(where) <= 200 else f"{where[:200]}…"

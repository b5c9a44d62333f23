"""What is installed from the repository is the whole package: its data, its types, its licence."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hfcompress

PACKAGE = Path(hfcompress.__file__).parent
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILDER = Version("77")  # of setuptools, as [build-system] says


def shipped() -> list[Path]:
    """Return the files of the package, as far as they are not made by running it."""
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts)


def test_every_file_of_the_package_is_installed():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["hfcompress"]
    data = [path.as_posix() for path in shipped() if path.suffix != ".py"]
    assert "py.typed" in data and any(path.endswith(".jinja") for path in data)
    assert not [path for path in data if not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not fnmatch.filter(data, pattern)], "a pattern without a file"
    for folder in {path.parent for path in shipped() if path.suffix == ".py"}:
        assert (PACKAGE / folder / "__init__.py").is_file(), folder  # else setuptools finds no package there


def test_the_version_is_said_once():
    assert PROJECT["project"]["version"] == hfcompress.__version__


@pytest.mark.slow
@pytest.mark.own_interpreter
@pytest.mark.skipif(
    Version(metadata.version("setuptools")) < BUILDER, reason="the installed setuptools builds no such wheel"
)
def test_a_wheel_holds_every_file(tmp_path):
    source = tmp_path / "source"
    for name in ["pyproject.toml", "README.md", "LICENSE", *(f"hfcompress/{path}" for path in shipped())]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {f"hfcompress/{p.as_posix()}" for p in shipped()}
    assert any(name.endswith("/LICENSE") for name in names)


def test_every_dependency_has_a_lower_bound_and_the_oldest_versions_are_these():
    """What the suite was run on once with the oldest versions is what pyproject.toml allows."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["onnx"], *extras["search"]]
    bounds = {one.name: _lower_bound(one) for one in map(Requirement, wanted)}
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = {one.name: _lower_bound(one) for one in map(Requirement, (x for x in lines if not x.startswith("#")))}
    assert pins == bounds


def _lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==")]
    return bound

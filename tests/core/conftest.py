"""Throw-away plugins: a dist-info folder and a package on sys.path, seen by nothing but the test.

`toy` is one with a component or two of each kind (`toy_parts.py`); `install` writes others. While either is in use, the
allow list ITOFLOW_PLUGINS hides every plugin that happens to be installed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import itoflow
from itoflow import registry

TOY = """
from itoflow import Registration, hookimpl

PARTS = "itoflow_toy.parts:"


def several(*names):
    return [Registration(n.lower(), PARTS + n, f"Toy {n}", ("exp",) if n == "Decay" else ()) for n in names]


@hookimpl
def itoflow_processes():
    return several("Decay", "Straight", "Forgetful", "Brownian")


@hookimpl
def itoflow_objectives():
    return several("Denoise", "Match")


@hookimpl
def itoflow_backbones():
    return several("Linear")


@hookimpl
def itoflow_samplers():
    return [*several("Euler", "Noisy", "Jump", "Scaled"), Registration("apart", "itoflow_toy.apart:Apart", "In a file")]


@hookimpl
def itoflow_attentions():
    return several("Plain", "Fast", "Rough")


@hookimpl
def itoflow_commands():
    return [Registration("greet", PARTS + "greet", "Say hello")]
"""

APART = '"""A sibling module."""\nfrom itoflow_toy.parts import Euler\n\n\nclass Apart(Euler):\n    """As Euler."""\n'


def write(folder: Path, distribution: str, files: Mapping[str, str], version: str = "1.0") -> None:
    """A distribution whose entry point is the module `plugin` of its package."""
    package = distribution.replace("-", "_")
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[itoflow]\n{distribution.removeprefix('itoflow-')} = {package}.plugin\n")
    (folder / package).mkdir()
    for name, text in {"__init__": "", **files}.items():
        (folder / package / f"{name}.py").write_text(text)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    parts = Path(__file__).with_name("toy_parts.py").read_text()
    write(folder, "itoflow-toy", {"plugin": TOY, "parts": parts, "apart": APART})
    return folder


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin is seen, and none is remembered afterwards."""
    monkeypatch.setenv("ITOFLOW_PLUGINS", "")
    monkeypatch.delenv("ITOFLOW_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("ITOFLOW_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    registry.reset()
    yield
    registry.reset()


def _allow(monkeypatch: pytest.MonkeyPatch, folder: Path, distribution: str) -> None:
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    monkeypatch.setenv("ITOFLOW_PLUGINS", f"{os.environ['ITOFLOW_PLUGINS']},{distribution}")
    registry.reset()


@pytest.fixture
def toy(isolated: None, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The toy plugin is installed; gives the module of its components."""
    _allow(monkeypatch, toy_folder, "itoflow-toy")
    return importlib.import_module("itoflow_toy.parts")


@pytest.fixture
def install(isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`install(distribution, plugin=source, **modules)` puts a plugin beside those of this test."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)

    def add(distribution: str, *, version: str = "1.0", **files: str) -> None:
        write(folder, distribution, files, version)
        _allow(monkeypatch, folder, distribution)

    yield add
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def python(toy_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter that sees the toy plugin alone."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ITOFLOW_")}
        env = {**inherited, "PYTHONPATH": str(toy_folder), "ITOFLOW_PLUGINS": "itoflow-toy", **environment}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def model(toy: ModuleType) -> Any:
    """A model of toys, on data of shape (3,)."""
    return itoflow.compose(process="decay", objective="denoise", backbone="linear", sampler="noisy", data=(3,))

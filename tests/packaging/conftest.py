"""The distributions of this checkout, as their folders: the root is core, each folder in plugins/ one plugin."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def plugins() -> list[Path]:
    return PLUGINS


@pytest.fixture(params=PLUGINS, ids=lambda folder: folder.name)
def plugin(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture(params=[ROOT, *PLUGINS], ids=lambda folder: "core" if folder == ROOT else folder.name)
def distribution(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture(scope="session")
def project() -> Callable[[Path], dict[str, Any]]:
    """The `[project]` table of a distribution."""

    def read(folder: Path) -> dict[str, Any]:
        table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        return table

    return read


@pytest.fixture(scope="session")
def package() -> Callable[[Path], Path]:
    """The import package of a distribution."""

    def find(folder: Path) -> Path:
        return ROOT / "core" / "itoflow" if folder == ROOT else folder / "src" / f"itoflow_{folder.name}"

    return find

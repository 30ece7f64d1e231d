"""`itoflow new` writes a plugin that works: it is found, shown, passes the kit, and trains."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import itoflow
from itoflow import registry, scaffold
from itoflow.cli import main
from itoflow.testing import run_checks

FILES = {
    "pyproject.toml",
    "README.md",
    "src/itoflow_my_sde/__init__.py",
    "src/itoflow_my_sde/plugin.py",
    "src/itoflow_my_sde/my_sde.py",
    "src/itoflow_my_sde/py.typed",
    "tests/test_conformance.py",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my-sde"]) == 0
    return tmp_path / "itoflow-my-sde"


def test_writes_all_files_with_every_word_filled_in(folder: Path) -> None:
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert set(found) == FILES
    assert all("$" not in name + text for name, text in found.items())
    for name, text in found.items():
        if name.endswith(".py"):
            ast.parse(text)


def test_is_bound_to_this_version_of_core(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert "itoflow>=0.1,<0.2" in project["dependencies"]
    assert project["entry-points"] == {"itoflow": {"my-sde": "itoflow_my_sde.plugin"}}


def test_is_found_passes_the_kit_and_composes(
    folder: Path, isolated: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = folder / "src" / "itoflow_my_sde-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: itoflow-my-sde\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[itoflow]\nmy-sde = itoflow_my_sde.plugin\n")
    monkeypatch.syspath_prepend(folder / "src")
    monkeypatch.setenv("ITOFLOW_PLUGINS", "itoflow-my-sde")
    registry.reset()
    assert main(["show", "process", "my-sde"]) == 0
    assert "itoflow_my_sde.my_sde.MySde" in capsys.readouterr().out
    process = itoflow.create("process", "my-sde", rate=5.0)
    assert {name: failure for name, failure in run_checks(process) if failure is not None} == {}


@pytest.mark.parametrize(
    "name", ["", "Bad", "my_sde", "1st", "-x", "x-", "a--b", "class", "plugin", "../x", "ü", "a b"]
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(itoflow.OptionError, match="cannot name a component and its package"):
        scaffold.write(name, parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text("mine")
    assert main(["new", "my-sde"]) == 2
    assert "itoflow-my-sde exists. Choose another name" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


def test_an_unknown_kind_lists_the_templates(tmp_path: Path) -> None:
    with pytest.raises(
        itoflow.OptionError, match=r"no template for 'proces'. Did you mean 'process'\? Templates: process"
    ):
        scaffold.write("x", "proces", parent=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(itoflow.ItoflowError, match=r"Cannot write .*itoflow-x: No such file"):
        scaffold.write("x", parent=tmp_path / "absent")


def test_a_plugin_that_is_installed_is_not_replaced(toy: object, tmp_path: Path) -> None:
    with pytest.raises(itoflow.OptionError, match="itoflow-toy is installed"):
        scaffold.write("toy", parent=tmp_path)

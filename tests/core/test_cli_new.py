"""`itoflow new` writes a plugin that works: it is found, shown, passes the kit, and trains, whatever its kind."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import itoflow
from itoflow import registry, scaffold
from itoflow.cli import main
from itoflow.testing import run_checks
from itoflow.testing.problems import seeded

FILES = {
    "pyproject.toml",
    "README.md",
    "src/itoflow_my_own/__init__.py",
    "src/itoflow_my_own/plugin.py",
    "src/itoflow_my_own/my_own.py",
    "src/itoflow_my_own/py.typed",
    "tests/test_conformance.py",
}


def written(kind: str, parent: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(parent)
    assert main(["new", "my-own", "--kind", kind]) == 0
    return parent / "itoflow-my-own"


@pytest.fixture(params=scaffold.TEMPLATES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return written(kind, tmp_path, monkeypatch)


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
    assert project["entry-points"] == {"itoflow": {"my-own": "itoflow_my_own.plugin"}}


@pytest.fixture
def installed(toy: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beside the plugin `toy`, of which the other components are."""
    source = written(kind, tmp_path, monkeypatch) / "src"
    info = source / "itoflow_my_own-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: itoflow-my-own\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[itoflow]\nmy-own = itoflow_my_own.plugin\n")
    monkeypatch.syspath_prepend(source)
    monkeypatch.setenv("ITOFLOW_PLUGINS", "itoflow-my-own,itoflow-toy")
    registry.reset()
    yield
    for module in [name for name in sys.modules if name.split(".")[0] == "itoflow_my_own"]:
        del sys.modules[module]


def test_is_found_and_passes_the_kit(kind: str, installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", kind, "my-own"]) == 0
    assert "itoflow_my_own.my_own.MyOwn" in capsys.readouterr().out
    options: dict[str, float] = eval(f"dict({scaffold.TEMPLATES[kind]['options']})")
    for given in ({}, options):
        component = itoflow.create(kind, "my-own", **given)
        assert {name: failure for name, failure in run_checks(component) if failure is not None} == {}


def test_trains_and_samples_with_others(kind: str, installed: None) -> None:
    parts = {"process": "straight", "objective": "denoise", "backbone": "linear", "sampler": "euler", kind: "my-own"}
    model = itoflow.compose(**parts, data=itoflow.DataSpec(shape=(3,)))
    x = torch.randn(64, 3, generator=seeded(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for i in range(60):
        optimiser.zero_grad()
        loss = model.loss(x, generator=seeded(i)).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert bool(torch.isfinite(model.sample(5, steps=8, generator=seeded(1))).all())


@pytest.mark.parametrize(
    "name", ["", "Bad", "my_sde", "1st", "-x", "x-", "a--b", "class", "plugin", "../x", "ü", "a b"]
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(itoflow.OptionError, match="cannot name a component and its package"):
        scaffold.write(name, parent=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "name"), [("objective", "objective"), ("sampler", "row"), ("backbone", "network")])
def test_a_name_that_its_own_file_uses_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(itoflow.OptionError, match="cannot name a component and its package"):
        scaffold.write(name, kind, parent=tmp_path)


def test_a_word_that_its_own_file_only_speaks_of_names_a_component(tmp_path: Path) -> None:
    assert scaffold.write("decay", parent=tmp_path).is_dir()


def test_an_existing_folder_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written("process", tmp_path, monkeypatch)
    (folder / "README.md").write_text("mine")
    assert main(["new", "my-own"]) == 2
    assert "itoflow-my-own exists. Choose another name" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


def test_an_unknown_kind_lists_the_templates(tmp_path: Path) -> None:
    with pytest.raises(
        itoflow.OptionError,
        match=r"no template for 'proces'. Did you mean 'process'\? Templates: backbone, objective, process, sampler",
    ):
        scaffold.write("x", "proces", parent=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(itoflow.ItoflowError, match=r"Cannot write .*itoflow-x: No such file"):
        scaffold.write("x", parent=tmp_path / "absent")


def test_a_plugin_that_is_installed_is_not_replaced(toy: object, tmp_path: Path) -> None:
    with pytest.raises(itoflow.OptionError, match="itoflow-toy is installed"):
        scaffold.write("toy", parent=tmp_path)

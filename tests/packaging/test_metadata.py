"""What every distribution says of itself, and the lists that could drift from the folders they name."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SKIPPED = {"__pycache__", "build", "dist", "shared"}
"""Folders that are no part of a checkout, besides the hidden ones."""

MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|mnt|opt|private|root|tmp|Users|work)/\w|\b[A-Z]:\\Users\b")
"""An absolute path of somebody's machine; the same words inside a relative path or an address are not."""


def bound(version: str) -> str:
    """The range that a plugin of this version allows for core."""
    major, minor, _ = version.split(".")
    return f"itoflow>={major}.{minor},<{major}.{int(minor) + 1}"


def texts(root: Path) -> Iterable[Path]:
    """The text files of a checkout, .ci among them."""
    for folder, subfolders, files in os.walk(root):
        hidden = {name for name in subfolders if name.startswith(".") and name != ".ci"}
        subfolders[:] = sorted(set(subfolders) - hidden - SKIPPED)
        for file in (Path(folder, name) for name in files):
            if b"\0" not in file.read_bytes():
                yield file


def machine_paths(root: Path) -> list[str]:
    return [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in texts(root)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def test_metadata_is_complete(distribution: Path, project: Callable[[Path], dict[str, Any]]) -> None:
    table = project(distribution)
    assert table["description"].endswith(".")
    assert (table["license"], table["license-files"], table["readme"]) == ("MIT", ["LICENSE"], "README.md")
    assert table["keywords"] == sorted(table["keywords"])
    assert table["dependencies"] == sorted(table["dependencies"])


def test_core_and_plugins_agree(root: Path, plugin: Path, project: Callable[[Path], dict[str, Any]]) -> None:
    """One version, one range of Pythons, one set of classifiers; each plugin is bound to this minor version of core."""
    core, table = project(root), project(plugin)
    assert table["name"] == f"itoflow-{plugin.name}"
    assert bound(core["version"]) in table["dependencies"]
    shared = ("version", "requires-python", "authors", "classifiers")
    assert {key: table[key] for key in shared} == {key: core[key] for key in shared}
    assert (plugin / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()  # each distribution carries its own


def test_bounds_on_siblings_and_torch_agree(
    root: Path, plugin: Path, project: Callable[[Path], dict[str, Any]]
) -> None:
    core_bound = bound(project(root)["version"]).removeprefix("itoflow")
    torch_bound = next(entry for entry in project(root)["dependencies"] if entry.startswith("torch"))
    for entry in project(plugin)["dependencies"]:
        if sibling := re.match(r"itoflow-[\w-]+", entry):
            assert entry == sibling[0] + core_bound
        if re.match(r"torch\W", entry):
            assert entry == torch_bound


def test_entry_point_names_a_module(
    plugin: Path, package: Callable[[Path], Path], project: Callable[[Path], dict[str, Any]]
) -> None:
    assert project(plugin)["entry-points"] == {"itoflow": {plugin.name: f"itoflow_{plugin.name}.plugin"}}
    assert (package(plugin) / "plugin.py").is_file()


def test_ships_types_and_a_readme(distribution: Path, package: Callable[[Path], Path]) -> None:
    assert (package(distribution) / "py.typed").is_file()
    assert (distribution / "README.md").is_file()


def test_a_plugin_has_tests_of_its_own(plugin: Path) -> None:
    assert list(plugin.glob("tests/**/test_*.py"))


def test_tox_has_one_environment_per_plugin(root: Path, plugins: list[Path]) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / "tox.ini")
    listed = config["tox"]["env_list"].split()
    assert sorted(name for name in listed if name.startswith("plugin-")) == [f"plugin-{path.name}" for path in plugins]


def test_no_file_names_a_path_of_a_machine(root: Path) -> None:
    assert not machine_paths(root)


def test_finds_a_path_of_a_machine(tmp_path: Path) -> None:
    path = "/".join(["", "home", "someone", "data"])
    (tmp_path / "bad.md").write_text(f"see\n`{path}`\n")
    (tmp_path / "good.md").write_text(f"see https://example.org{path} and docs{path}\n")
    assert machine_paths(tmp_path) == [f"bad.md:2: `{path}`"]

"""Who may import whom: plugin -> core, never core -> plugin, plugin -> plugin only where declared.

And the two rules that make naming a component cheap and an installation complete: what is imported to discover
plugins imports no torch, and a distribution declares exactly what it imports.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIGHT = ["__init__", "cli", "errors", "hookspecs", "registry"]
"""The modules of core that listing and naming components imports."""

FALLBACK = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions whose import name differs, for when they are not installed."""

PYDANTIC = {"annotated-types", "pydantic", "pydantic-core"}
"""A spec is a pydantic model: these are part of core's interface, so a plugin has them from core."""


BY_NAME = {"itoflow.attention": "itoflow-attention"}
"""Modules of core that use components by name, and the distribution of these: declared by who imports the former."""


class Import(NamedTuple):
    """One imported module, and whether importing the file imports it."""

    file: str
    line: int
    module: str
    at_once: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(package: Path) -> list[Import]:
    """All absolute imports below a folder, with those inside functions, TYPE_CHECKING and import_module("...")."""
    files = sorted(package.rglob("*.py"))
    return [
        Import(str(file.relative_to(package)), *found)
        for file in files
        for found in _walk(ast.parse(file.read_text(encoding="utf-8")), True)
    ]


def _walk(node: ast.AST, at_once: bool) -> Iterator[tuple[int, str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.lineno, child.module, at_once
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            first = child.args[0] if child.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield child.lineno, first.value, at_once
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
        yield from _walk(child, at_once and not deferred)


def torch_at_once(found: Iterable[Import]) -> list[Import]:
    return [item for item in found if item.top == "torch" and item.at_once]


def plugin_imports(found: Iterable[Import]) -> list[Import]:
    return [item for item in found if re.match(r"itoflow_\w", item.top)]


def owners(module: str) -> set[str]:
    """The distributions that own a top-level module; our own by their naming rule, installed or not."""
    installed = [] if module.startswith("itoflow") else packages_distributions().get(module, [])
    return {canonicalize_name(name) for name in installed or [FALLBACK.get(module, module)]}


def outside(found: Iterable[Import], package: str) -> list[Import]:
    return [item for item in found if item.top != package and item.top not in sys.stdlib_module_names]


def undeclared(found: Iterable[Import], package: str, declared: set[str]) -> list[Import]:
    missing = [item for item in outside(found, package) if not owners(item.top) & declared]
    return missing + [item for item in by_name(found, package) if BY_NAME[item.module] not in declared]


def unused(found: Iterable[Import], package: str, declared: set[str]) -> set[str]:
    used = {name for item in outside(found, package) for name in owners(item.top)}
    return declared - used - {BY_NAME[item.module] for item in by_name(found, package)}


def by_name(found: Iterable[Import], package: str) -> list[Import]:
    """Imports of such modules, but for those in core and in the distribution that has the components."""
    others = [item for item in found if item.module in BY_NAME and package != "itoflow"]
    return [item for item in others if package != BY_NAME[item.module].replace("-", "_")]


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(entry).name) for entry in requirements}


def test_core_imports_no_plugin(root: Path, package: Callable[[Path], Path]) -> None:
    assert not plugin_imports(imports(package(root)))


def test_discovery_reads_no_torch_import(root: Path, package: Callable[[Path], Path], plugins: list[Path]) -> None:
    """As written, in each file that discovery imports."""
    light = {package(root) / f"{name}.py" for name in LIGHT} | {package(plugin) / "plugin.py" for plugin in plugins}
    assert all(file.exists() for file in light)
    parents = {file.parent for file in light}
    found = [item for parent in parents for item in imports(parent) if parent / item.file in light]
    assert not torch_at_once(found)


def test_discovery_imports_no_torch(plugins: list[Path]) -> None:
    """As run, so that a light module that imports a heavy one counts too."""
    modules = ["itoflow", "itoflow.cli", "itoflow.registry", *(f"itoflow_{plugin.name}.plugin" for plugin in plugins)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch is imported' if 'torch' in sys.modules else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_declares_what_it_imports(
    distribution: Path,
    plugins: list[Path],
    package: Callable[[Path], Path],
    project: Callable[[Path], dict[str, Any]],
) -> None:
    """Exactly: nothing undeclared, nothing declared in vain. Extras may be imported and need not be."""
    own, table = package(distribution), project(distribution)
    found, required = imports(own), names(table["dependencies"])
    extras = names(entry for entries in table.get("optional-dependencies", {}).values() for entry in entries)
    implied = PYDANTIC if distribution in plugins else set()
    assert not undeclared(found, own.name, required | extras | implied)
    assert not unused(found, own.name, required)


@pytest.fixture
def violating(tmp_path: Path) -> list[Import]:
    """The imports of a plugin that breaks each rule."""
    (tmp_path / "plugin.py").write_text(
        "import os\n"
        "from typing import TYPE_CHECKING\n"
        "from .near import here\n"
        "if TYPE_CHECKING:\n"
        "    import torch.nn\n"
        "try:\n"
        "    from torch import Tensor\n"
        "except ImportError:\n"
        "    pass\n"
        "def late():\n"
        "    import torch, yaml\n"
        "    import_module('itoflow_other.deep')\n"
    )
    return imports(tmp_path)


def test_finds_torch_imported_at_once(violating: list[Import]) -> None:
    assert [item.line for item in torch_at_once(violating)] == [7]


def test_finds_an_import_of_a_plugin(violating: list[Import]) -> None:
    assert [item.line for item in plugin_imports(violating)] == [12]


def test_finds_an_undeclared_import(violating: list[Import]) -> None:
    assert [item.top for item in undeclared(violating, "itoflow_this", {"torch"})] == ["yaml", "itoflow_other"]
    assert not undeclared(violating, "itoflow_this", {"torch", "pyyaml", "itoflow-other"})


def test_finds_components_that_are_used_by_name(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text("from itoflow.attention import attention")
    found = imports(tmp_path)
    assert undeclared(found, "itoflow_this", {"itoflow"}) == found
    assert not undeclared(found, "itoflow_this", {"itoflow", "itoflow-attention"})
    assert not unused(found, "itoflow_this", {"itoflow", "itoflow-attention"})
    assert not undeclared(found, "itoflow_attention", {"itoflow"})


def test_finds_an_unused_dependency(violating: list[Import]) -> None:
    assert unused(violating, "itoflow_this", {"torch", "einops"}) == {"einops"}

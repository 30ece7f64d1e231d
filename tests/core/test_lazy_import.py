"""Naming costs nothing: what importing, listing and showing leave imported, and the lazy names of the package."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import itoflow

Python = Callable[..., subprocess.CompletedProcess[str]]

REPORT = """
import sys
print(*sorted(m for m in sys.modules if m in {"torch", "pydantic"} or m.startswith("itoflow_toy")), file=sys.stderr)
"""


def run_cli(*argv: str) -> str:
    return f"from itoflow.cli import main; assert main({list(argv)}) == 0{REPORT}"


@pytest.mark.parametrize(
    "code",
    [
        f"import itoflow{REPORT}",
        run_cli("list"),
        run_cli("list", "process", "--json"),
        run_cli("plugins"),
        run_cli("--help"),
    ],
    ids=["import", "list", "list-json", "plugins", "help"],
)
def test_imports_no_torch_no_pydantic_and_no_component(python: Python, code: str) -> None:
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() in ([], ["itoflow_toy", "itoflow_toy.plugin"])


def test_show_imports_that_component_alone(python: Python) -> None:
    result = python(run_cli("show", "process", "decay"))
    assert result.stderr.split() == ["itoflow_toy", "itoflow_toy.parts", "itoflow_toy.plugin", "pydantic", "torch"]


def test_the_detector_fires(python: Python) -> None:
    assert "itoflow_toy.apart" in python(run_cli("show", "sampler", "apart")).stderr.split()


def typing_imports() -> set[tuple[str, str]]:
    """(module, name) of each import under `if TYPE_CHECKING:` in the package's own file."""
    tree = ast.parse(Path(str(itoflow.__file__)).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names), "not re-exported"
    return {(str(node.module).removeprefix("itoflow."), alias.name) for node in imports for alias in node.names}


def test_type_checkers_see_the_names_that_exist() -> None:
    assert {(module, name) for name, module in itoflow._MODULES.items()} == typing_imports()


@pytest.mark.parametrize("name", sorted(itoflow._MODULES))
def test_each_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(itoflow, name) is not None
    assert name in dir(itoflow)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'vp'"):
        itoflow.vp  # noqa: B018

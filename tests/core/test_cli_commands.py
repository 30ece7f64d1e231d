"""Commands that plugins add: found by name, imported when run, and never in the way of core's own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import ModuleType

import pytest

from itoflow.cli import main

Install = Callable[..., None]
Capture = pytest.CaptureFixture[str]


def commands(*registrations: str) -> str:
    """The source of a plugin with commands."""
    listed = ", ".join(f"Registration({r})" for r in registrations)
    return f"from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_commands():\n    return [{listed}]\n"


@pytest.mark.parametrize(("argv", "code"), [([], 0), (["a", "--json", "-x"], 3), (["--help"], 3)])
def test_runs_with_its_own_arguments(toy: ModuleType, capsys: Capture, argv: list[str], code: int) -> None:
    assert main(["greet", *argv]) == code
    assert capsys.readouterr().out.split() == ["hello", *argv]


def test_is_imported_when_run(install: Install, capsys: Capture) -> None:
    install("itoflow-late", plugin=commands("'late', 'itoflow_late.absent:main', 'Cannot run'"))
    assert main(["--help"]) == 0
    assert "Cannot run (itoflow-late)" in capsys.readouterr().out
    assert main(["late"]) == 2
    assert "command 'late' of itoflow-late 1.0 cannot be imported" in capsys.readouterr().err


def test_named_like_one_of_core_it_is_ignored_with_a_warning(install: Install, capsys: Capture) -> None:
    install(
        "itoflow-rival", plugin=commands("'list', 'itoflow_rival.it:main', 'Mine'"), it="def main(argv): return 7\n"
    )
    assert main(["list"]) == 0
    for argv in (["--help"], ["plugins"]):
        capsys.readouterr()
        assert main(argv) == 0
        captured = capsys.readouterr()
        assert "warning: command 'list' of itoflow-rival is ignored: itoflow has its own." in captured.err
        assert "Mine" not in captured.out


def test_an_unknown_one_leads_on_and_names_failing_plugins(toy: ModuleType, install: Install, capsys: Capture) -> None:
    install("itoflow-broken", plugin="raise RuntimeError('out of order')\n")
    assert main(["gret", "--json"]) == 2
    err = capsys.readouterr().err
    assert "No command is called 'gret'. Did you mean 'greet'? Commands: check, greet, list, new, plugins, show." in err
    assert "plugin itoflow-broken (failed): RuntimeError: out of order" in err


def test_two_owners_are_named(toy: ModuleType, install: Install, capsys: Capture) -> None:
    install(
        "itoflow-rival", plugin=commands("'greet', 'itoflow_rival.it:main', 'Mine'"), it="def main(argv): return 7\n"
    )
    assert main(["greet"]) == 2
    assert "itoflow-rival:greet, itoflow-toy:greet" in capsys.readouterr().err
    assert main(["itoflow-rival:greet"]) == 7


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        ("return None", 0, ""),
        ("raise SystemExit(4)", 4, ""),
        ("raise SystemExit('no such place')", 1, "no such place\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("import itoflow; raise itoflow.InputError('no data')", 2, "itoflow: error: no data\n"),
    ],
)
def test_exit_codes(install: Install, capsys: Capture, body: str, code: int, err: str) -> None:
    plugin = commands("'go', 'itoflow_go.it:main', 'Go'")
    install("itoflow-go", plugin=plugin, it=f"def main(argv):\n    {body}\n")
    assert main(["go"]) == code
    assert capsys.readouterr().err == err


def test_what_cannot_be_called_is_refused(install: Install, capsys: Capture) -> None:
    install("itoflow-go", plugin=commands("'go', 'itoflow_go.it:main', 'Go'"), it="main = 3\n")
    assert main(["go"]) == 2
    assert "the command 'go' of itoflow-go, cannot be called" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    closed = "r, w = os.pipe(); os.dup2(w, 1); os.close(r)"
    code = f"import os, sys\nfrom itoflow.cli import main\n{closed}\nsys.exit(main(['list']))"
    result = python(code)
    assert (result.returncode, result.stderr) == (141, "")

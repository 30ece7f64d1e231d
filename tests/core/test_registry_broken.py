"""A broken plugin harms only itself, and is reported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import itoflow
from itoflow import registry
from itoflow.cli import main
from itoflow.errors import SpecError, UnknownComponentError
from itoflow.hookspecs import KINDS

Install = Callable[..., None]

HOOK = "from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_samplers():\n    "
HALF = "Registration('half', 'itoflow_half.half:Half', 'Half of it')"
GOOD = "Registration('own', 'itoflow_broken.it:It', 'Its own')"

BROKEN = {
    "import error": ("import itoflow_absent\n", "failed", "ModuleNotFoundError: No module named 'itoflow_absent'"),
    "syntax error": ("def (\n", "failed", "SyntaxError"),
    "system exit": ("raise SystemExit(1)\n", "failed", "SystemExit: 1"),
    "hook raises": (f"{HOOK}raise RuntimeError('out of order')\n", "failed", "RuntimeError: out of order"),
    "hook gives nothing": (f"{HOOK}return None\n", "failed", "itoflow_samplers gave None"),
    "hook gives a name": (f"{HOOK}return ['euler']\n", "failed", "itoflow_samplers gave 'euler'"),
    "hook gives one": (f"{HOOK}return {GOOD}\n", "failed", "itoflow_samplers gave Registration"),
    "hook fails midway": (f"{HOOK}yield {GOOD}\n    raise OSError('gone')\n", "failed", "OSError: gone"),
    "unknown hook": (f"{HOOK.replace('samplers', 'sampler')}return []\n", "failed", "unknown hook 'itoflow_sampler'"),
    "hook with arguments": (f"{HOOK.replace('()', '(registry)')}return []\n", "failed", "registry"),
    "bad name": (f"{HOOK}return [Registration('My Own', 'a:B', 'x')]\n", "failed", "component name 'My Own'"),
    "bad target": (f"{HOOK}return [Registration('own', 'a.B', 'x')]\n", "failed", "target 'a.B' of 'own'"),
    "same name twice": (f"{HOOK}return [{GOOD}, {GOOD}]\n", "failed", "sampler 'own' is registered twice"),
    "registers nothing": ("", "empty", "itoflow_broken.plugin registers nothing: implement one of itoflow_attentions"),
    "hook gives an empty list": (f"{HOOK}return []\n", "empty", "registers nothing"),
}


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
def broken(request: pytest.FixtureRequest, toy: ModuleType, install: Install) -> tuple[str, str]:
    source, status, message = request.param
    install("itoflow-broken", plugin=source)
    return status, message


def report_of(distribution: str) -> registry.PluginReport:
    return next(r for r in registry.registry().reports if r.distribution == distribution)


def test_it_is_reported(broken: tuple[str, str]) -> None:
    status, message = broken
    report = report_of("itoflow-broken")
    assert (report.status, report.components) == (status, ())
    assert message in report.message
    assert ("Traceback" in report.details) is (status == "failed")


def test_the_others_work(broken: tuple[str, str]) -> None:
    assert report_of("itoflow-toy").status == "ok"
    assert itoflow.create("sampler", "euler", steps=2).steps == 2


def test_an_unknown_name_mentions_it(broken: tuple[str, str]) -> None:
    status, message = broken
    with pytest.raises(UnknownComponentError) as caught:
        itoflow.create("sampler", "own")
    assert f"Plugin itoflow-broken is {status}: " in str(caught.value)
    assert message in str(caught.value)


def test_an_interrupt_passes(install: Install) -> None:
    install("itoflow-slow", plugin="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        registry.registry()


def test_importing_torch_is_a_warning(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    fake = "import sys\nsys.modules['torch'] = sys.modules[__name__]\n"
    install("itoflow-heavy", plugin=f"{fake}{HOOK}return [{GOOD}]\n")
    report = report_of("itoflow-heavy")
    assert report.status == "ok"
    assert report.warnings == ("itoflow_heavy.plugin imports torch; import it later",)


def test_an_entry_point_without_distribution_is_reported(toy: ModuleType) -> None:
    points = [EntryPoint("ghost", "itoflow_ghost.plugin", "itoflow")]
    (report,) = registry.Registry.discover(points).reports
    assert (report.distribution, report.version, report.status) == ("ghost", "unknown", "disabled")


def test_a_distribution_without_metadata_harms_no_other(install: Install, toy: ModuleType, tmp_path: Path) -> None:
    install("itoflow-hollow", plugin=f"{HOOK}return [{GOOD}]\n")
    (tmp_path / "site" / "itoflow_hollow-1.0.dist-info" / "METADATA").unlink()
    registry.reset()
    assert "euler" in itoflow.available("sampler")


def test_a_broken_namesake_does_not_keep_a_recipe_from_being_written(toy: ModuleType, install: Install) -> None:
    source = f"{HOOK}return [Registration('a-first', 'itoflow_absent.it:Euler', 'Not importable')]\n"
    install("itoflow-broken", plugin=source)
    assert toy.Euler().to_dict()["name"] == "itoflow-toy:euler"


@pytest.mark.parametrize("kind", ["process", "objective", "backbone", "sampler", "attention"])
def test_a_component_that_lacks_a_method_says_which(install: Install, kind: str) -> None:
    hook, base = KINDS[kind].hook, str(KINDS[kind].base)
    module, _, cls = base.partition(":")
    plugin = f"from itoflow import Registration, hookimpl\n@hookimpl\ndef {hook}():\n    return [{HALF}]\n"
    half = f"from {module} import {cls}\nclass Half({cls}):\n    pass\n"
    install("itoflow-half", plugin=plugin, half=half)
    with pytest.raises(SpecError, match=f"registered as {kind} 'half' by itoflow-half, does not define "):
        registry.create(kind, "half")


def test_a_method_that_is_misspelt_is_one_line_of_the_program(install: Install, capsys: Any) -> None:
    plugin = f"from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_processes():\n    return [{HALF}]\n"
    half = (
        "from itoflow import GaussianProcess\nclass Half(GaussianProcess):\n    def alpha(self, t):\n"
        "        return 1 - t\n    def sigmas(self, t):\n        return t\n"
    )
    install("itoflow-half", plugin=plugin, half=half)
    assert main(["check", "process", "half"]) == 2
    assert "does not define sigma," in capsys.readouterr().err

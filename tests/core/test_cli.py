"""The program's own commands: what they print, as text and as JSON, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import itoflow.testing
from itoflow import Spec, registry
from itoflow.cli import COMMANDS, main
from itoflow.describe import describe

Install = Callable[..., None]
Capture = pytest.CaptureFixture[str]

BROKEN = "raise RuntimeError('out of order')\n"


def run(capsys: Capture, *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def run_json(capsys: Capture, *argv: str) -> Any:
    return json.loads(run(capsys, *argv, "--json")[0])


def test_version(capsys: Capture) -> None:
    assert run(capsys, "--version")[0].startswith("itoflow 0.")


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands_with_those_of_plugins(toy: ModuleType, capsys: Capture, argv: tuple[str, ...]) -> None:
    out, _ = run(capsys, *argv)
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert "\n  greet  Say hello (itoflow-toy)\n" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(capsys: Capture, command: str) -> None:
    out, _ = run(capsys, command, "--help")
    assert out.startswith(f"usage: itoflow {command}")


def test_list(toy: ModuleType, capsys: Capture) -> None:
    out, err = run(capsys, "list")
    assert [line for line in out.splitlines() if line and line[0] != " "] == [
        "process",
        "objective",
        "backbone",
        "sampler",
        "attention",
        "command",
    ]
    assert "  decay (exp)  itoflow-toy 1.0  Toy Decay" in out.splitlines()
    assert err == ""


def test_list_one_kind_by_its_plural(toy: ModuleType, capsys: Capture) -> None:
    out, _ = run(capsys, "list", "backbones")
    assert out == "backbone\n  linear  itoflow-toy 1.0  Toy Linear\n"


def test_list_as_json(toy: ModuleType, capsys: Capture) -> None:
    components = run_json(capsys, "list", "process")
    assert [c["name"] for c in components] == ["brownian", "decay", "forgetful", "straight"]
    assert components[1] == {
        "kind": "process",
        "name": "decay",
        "aliases": ["exp"],
        "summary": "Toy Decay",
        "distribution": "itoflow-toy",
        "version": "1.0",
    }


def test_list_qualifies_a_name_with_two_owners(toy: ModuleType, install: Install, capsys: Capture) -> None:
    hook = "from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_backbones():\n    return "
    install("itoflow-rival", plugin=f"{hook}[Registration('linear', 'itoflow_rival:L', 'Rival')]\n")
    out, _ = run(capsys, "list", "backbone")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["itoflow-rival:linear", "itoflow-toy:linear"]


@pytest.mark.parametrize("argv", [("list",), ("list", "sampler"), ("plugins",)])
def test_nothing_installed_says_what_to_install(
    isolated: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture, argv: tuple[str, ...]
) -> None:
    monkeypatch.setattr(registry, "_current", registry.Registry())
    assert "pip install itoflow-sde" in run(capsys, *argv)[0]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_text_fits_the_terminal(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Capture, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out, _ = run(capsys, "list")
    assert max(map(len, out.splitlines())) <= columns


def test_plugins(toy: ModuleType, install: Install, capsys: Capture) -> None:
    install("itoflow-broken", plugin=BROKEN)
    out, _ = run(capsys, "plugins")
    lines = out.splitlines()
    start = lines.index("itoflow-broken 1.0  failed  (broken = itoflow_broken.plugin)")
    assert lines[start + 1] == "  RuntimeError: out of order"
    assert "itoflow-toy 1.0  ok  (toy = itoflow_toy.plugin)" in lines
    assert any(line.split() == ["process", "decay,", "straight,", "forgetful,", "brownian"] for line in lines)
    assert "Traceback" not in out
    assert "Traceback" in run(capsys, "plugins", "--traceback")[0]


def test_plugins_as_json(toy: ModuleType, install: Install, capsys: Capture) -> None:
    install("itoflow-broken", plugin=BROKEN)
    reports = {report["distribution"]: report for report in run_json(capsys, "plugins")}
    assert reports["itoflow-toy"]["hooks"]["itoflow_backbones"] == ["linear"]
    assert (reports["itoflow-broken"]["status"], reports["itoflow-toy"]["status"]) == ("failed", "ok")
    assert "Traceback" in reports["itoflow-broken"]["details"]


def test_listing_warns_of_a_plugin_that_failed(toy: ModuleType, install: Install, capsys: Capture) -> None:
    install("itoflow-broken", plugin=BROKEN)
    assert "itoflow: warning: plugin itoflow-broken (failed): RuntimeError" in run(capsys, "list")[1]


def test_show(toy: ModuleType, capsys: Capture) -> None:
    lines = run(capsys, "show", "process", "exp")[0].splitlines()
    assert lines[0] == "process decay: Toy Decay"
    assert "  from     itoflow-toy 1.0" in lines
    assert "  class    itoflow_toy.parts.Decay" in lines
    assert "  x_t = exp(-rate t) x_0 + t eps: regular at both ends but for sigma(0) = 0." in lines
    assert any(line.startswith("  t_min   float  [0, 1)    0.01     Data end.") for line in lines)
    assert any(line.startswith("  rate    float  (0, inf]  3.0      Decay of the data") for line in lines)
    assert (
        lines[lines.index("References") + 1] == "  Toys for Tests (Nobody, 2024), https://example.org/toys, equation 1."
    )


@pytest.mark.parametrize(
    ("kind", "name", "option", "facts"),
    [
        ("objective", "denoise", "prediction", ["x0 | eps | v", "v"]),
        ("sampler", "euler", "grid", ["auto | uniform", "auto"]),
        ("sampler", "scaled", "inner", ["Sampler", "Jump()"]),
        ("sampler", "scaled", "factor", ["> 0", "inf"]),
        ("backbone", "linear", "tied", ["bool", "False"]),
    ],
)
def test_show_describes_each_form_of_option(
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    kind: str,
    name: str,
    option: str,
    facts: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out, _ = run(capsys, "show", kind, name)
    line = next(line for line in out.splitlines() if line.startswith(f"  {option} "))
    assert all(fact in line for fact in facts)


def test_an_option_with_another_default_keeps_its_description() -> None:
    class Base(Spec):
        width: int = 1
        """Channels."""
        depth: int = 1
        """Of the base."""

    class Wide(Base):
        width: int = 2
        depth: int = 2
        """Its own."""

    found = {option.name: (option.default, option.description) for option in describe(Wide).options}
    assert found == {"width": ("2", "Channels."), "depth": ("2", "Its own.")}


@pytest.mark.parametrize("name", ["euler", "scaled", "jump"])
def test_show_as_json_holds_schema_and_provenance(toy: ModuleType, capsys: Capture, name: str) -> None:
    data = run_json(capsys, "show", "sampler", name)
    assert (data["distribution"], data["version"]) == ("itoflow-toy", "1.0")
    assert data["target"].replace(":", ".") == data["class"]
    assert data["source"].endswith("parts.py")
    assert data["references"] == ["Toys for Tests (Nobody, 2024), https://example.org/toys, equation 1."]
    assert list(data["schema"]["properties"]) == list(toy.__dict__[name.capitalize()].model_fields)


def test_show_a_command_has_no_options(toy: ModuleType, capsys: Capture) -> None:
    assert "The command `greet`." in run(capsys, "show", "command", "greet")[0]
    assert run_json(capsys, "show", "command", "greet")["schema"] is None


@pytest.mark.parametrize(
    ("results", "code", "printed"),
    [
        ([("shapes", None), ("ends", None)], 0, ["ok    shapes", "ok    ends", "2 of 2 checks passed."]),
        ([("shapes", None), ("ends", AssertionError("wrong by 2"))], 1, ["FAIL  ends\n      wrong by 2", "1 of 2"]),
        ([("shapes", KeyError("t"))], 1, ["FAIL  shapes\n      KeyError: 't'"]),
    ],
)
def test_check(
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    results: list[tuple[str, Exception | None]],
    code: int,
    printed: list[str],
) -> None:
    checked = []
    monkeypatch.setattr(itoflow.testing, "run_checks", lambda component: checked.append(component) or results)
    out, _ = run(capsys, "check", "sampler", "euler", "steps=3", "grid=[1.0, 0.5, 0.1]", "denoise=false", code=code)
    assert checked == [toy.Euler(steps=3, grid=(1.0, 0.5, 0.1), denoise=False)]
    assert all(text in out for text in printed)


@pytest.mark.parametrize(("text", "value"), [("inner=euler", "euler"), ('inner={"name": "euler"}', {"name": "euler"})])
def test_check_takes_options_as_json_or_text(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Capture, text: str, value: object
) -> None:
    checked: list[object] = []
    monkeypatch.setattr(itoflow.testing, "run_checks", lambda component: checked.append(component) or [])
    run(capsys, "check", "sampler", "scaled", text, "factor=inf")
    assert checked == [toy.Scaled(inner=value)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "process", "decai"], "No process is called 'decai'. Did you mean 'decay'?"),
        (["show", "proces", "decay"], "No kind is called 'proces'. Did you mean 'process'?"),
        (["show", "process"], "the following arguments are required: NAME. See `itoflow show --help`."),
        (["list", "--jso"], "unrecognized arguments: --jso. See `itoflow list --help`."),
        (["list", "nothing"], "No kind is called 'nothing'."),
        (["--jso"], "unrecognized arguments: --jso. See `itoflow --help`."),
        (["check", "process", "decay", "rate"], "'rate' is no option: write OPTION=VALUE, e.g. steps=10."),
        (["check", "process", "decay", "=1"], "'=1' is no option"),
        (["check", "process", "decay", "rate=1", "rate=2"], "Option 'rate' is given twice."),
        (["check", "process", "decay", "rate=-1"], "Decay: rate: Input should be greater than 0 (given: -1)."),
        (["check", "command", "greet"], "'greet' is a command, which takes no options and is not created."),
        (["new", "Bad Name"], "'Bad Name' cannot name a component"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(
    toy: ModuleType, capsys: Capture, argv: list[str], message: str
) -> None:
    out, err = run(capsys, *argv, code=2)
    assert err.startswith(f"itoflow: error: {message}")
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("debug", [False, True])
def test_check_says_where_an_error_of_the_component_arose(install: Install, capsys: Capture, debug: bool) -> None:
    install(
        "itoflow-slip",
        plugin="from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_processes():\n"
        "    return [Registration('slip', 'itoflow_slip.slip:Slip', 'x')]\n",
        slip="import torch\nfrom itoflow import GaussianProcess\nclass Slip(GaussianProcess):\n"
        "    def alpha(self, t):\n        return torch.ones(len(t))\n    def sigma(self, t):\n        return t\n",
    )
    out, _ = run(capsys, "check", "process", "slip", *(["--debug"] if debug else []), code=1)
    assert "TypeError: len() of a 0-d tensor" in out
    assert "slip.py:5, in alpha)" in " ".join(out.split())
    assert ("Traceback (most recent call last)" in out) == debug


def test_debug_shows_the_traceback(toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    wrong = ["show", "process", "decai"]
    assert "Traceback" in run(capsys, "--debug", *wrong, code=2)[1]
    assert "Traceback" in run(capsys, *wrong, "--debug", code=2)[1]
    monkeypatch.setenv("ITOFLOW_DEBUG", "1")
    assert "Traceback" in run(capsys, *wrong, code=2)[1]
    monkeypatch.setenv("ITOFLOW_DEBUG", "0")
    assert "Traceback" not in run(capsys, *wrong, code=2)[1]

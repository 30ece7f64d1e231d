"""Looking components up: names, aliases, owners, kinds, and what an error says when nothing fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest

import itoflow
from itoflow import hookspecs, registry
from itoflow.errors import (
    AmbiguousComponentError,
    OptionError,
    PluginError,
    SpecError,
    UnknownComponentError,
)
from itoflow.hookspecs import KINDS, Registration

Install = Callable[..., None]

HOOKS = [f for name, f in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("itoflow_")]


def registering(hook: str, *registrations: str) -> str:
    """The source of a plugin with one hook."""
    return (
        "from itoflow import Registration, hookimpl\n"
        f"@hookimpl\ndef {hook}():\n    return [{', '.join(f'Registration({r})' for r in registrations)}]\n"
    )


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_each_hook_is_documented_and_takes_nothing(hook: Callable[[], object]) -> None:
    assert inspect.getdoc(hook)
    assert not inspect.signature(hook).parameters


def test_kinds_and_hooks_are_the_same_set() -> None:
    assert sorted(kind.hook for kind in KINDS.values()) == sorted(hook.__name__ for hook in HOOKS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.base], ids=lambda kind: kind.name)
def test_the_base_of_each_kind_exists(kind: hookspecs.Kind) -> None:
    assert isinstance(registry._resolve(str(kind.base)), type)


@pytest.mark.parametrize("name", ["decay", "exp", "itoflow-toy:decay", "itoflow_toy:exp"])
def test_finds_by_name_alias_and_owner(toy: ModuleType, name: str) -> None:
    assert itoflow.create("process", name, rate=2) == toy.Decay(rate=2.0)


@pytest.mark.parametrize(("kind", "name"), [("sampler", "sampler"), ("samplers", "sampler"), ("processes", "process")])
def test_kind_names_may_be_plural(kind: str, name: str) -> None:
    assert registry.kind_name(kind) == name


def test_unknown_kind() -> None:
    with pytest.raises(UnknownComponentError, match=r"No kind is called 'proces'. Did you mean 'process'\? Kinds: "):
        registry.kind_name("proces")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decai", r"No process is called 'decai'. Did you mean 'decay'\? Installed: brownian, decay, "),
        ("euler", r"'euler' is a sampler, not a process"),
        ("itoflow-sdes:vp", r"No plugin 'itoflow-sdes' is installed: pip install itoflow-sdes"),
    ],
)
def test_an_unknown_name_leads_on(toy: ModuleType, name: str, message: str) -> None:
    with pytest.raises(UnknownComponentError, match=message):
        itoflow.create("process", name)


def test_no_plugin_of_that_kind(isolated: None) -> None:
    with pytest.raises(UnknownComponentError, match="No plugin that registers a backbone is installed"):
        itoflow.create("backbone", "mlp")


def test_two_owners_are_named_and_each_can_be_had(toy: ModuleType, install: Install) -> None:
    install(
        "itoflow-rival",
        plugin=registering("itoflow_processes", "'decay', 'itoflow_rival.it:Decay', 'Rival'"),
        it="import itoflow_toy.parts\nclass Decay(itoflow_toy.parts.Decay): pass\n",
    )
    with pytest.raises(AmbiguousComponentError, match="itoflow-rival:decay, itoflow-toy:decay"):
        itoflow.create("process", "decay")
    assert type(itoflow.create("process", "itoflow-toy:decay")) is toy.Decay
    assert type(itoflow.create("process", "itoflow-rival:decay")).__module__ == "itoflow_rival.it"
    assert {"itoflow-rival:decay", "itoflow-toy:decay", "straight"} <= set(itoflow.available("process"))
    assert itoflow.create("process", "exp") == toy.Decay(), "an alias with one owner stays usable"


def test_a_name_wins_over_the_alias_of_another(toy: ModuleType, install: Install) -> None:
    install("itoflow-late", plugin=registering("itoflow_processes", "'exp', 'itoflow_toy.parts:Straight', 'Late'"))
    assert type(itoflow.create("process", "exp")) is toy.Straight


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("itoflow_bad.it:Absent", PluginError, "cannot be imported from 'itoflow_bad.it:Absent': AttributeError"),
        ("itoflow_bad.absent:X", PluginError, "ModuleNotFoundError: No module named 'itoflow_bad.absent'"),
        ("itoflow_bad.quits:X", PluginError, "SystemExit: 3"),
        ("itoflow_bad.it:Foreign", SpecError, "does not derive from itoflow.process.ProcessSpec"),
        ("itoflow_bad.it:CONSTANT", SpecError, "does not derive from itoflow.process.ProcessSpec"),
    ],
)
def test_a_bad_target_is_named_with_its_owner(
    install: Install, target: str, error: type[Exception], message: str
) -> None:
    plugin = registering("itoflow_processes", f"'bad', {target!r}, 'Bad'")
    install("itoflow-bad", plugin=plugin, it="class Foreign: pass\nCONSTANT = 1\n", quits="raise SystemExit(3)\n")
    with pytest.raises(error, match=message) as caught:
        itoflow.create("process", "bad")
    assert "itoflow-bad" in str(caught.value)


@pytest.mark.parametrize(
    ("allow", "block", "found"),
    [
        (None, "", True),
        ("itoflow_toy, other", "", True),
        ("other", "", False),
        ("", "", False),
        (None, "other,Itoflow.Toy", False),
        ("itoflow-toy", "itoflow-toy", False),
    ],
)
def test_the_environment_allows_and_blocks(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, allow: str | None, block: str, found: bool
) -> None:
    if allow is None:
        monkeypatch.delenv("ITOFLOW_PLUGINS")
    else:
        monkeypatch.setenv("ITOFLOW_PLUGINS", allow)
    monkeypatch.setenv("ITOFLOW_DISABLE_PLUGINS", block)
    registry.reset()
    assert ("decay" in itoflow.available("process")) is found
    if not found:
        with pytest.raises(UnknownComponentError, match=r"Plugin itoflow-toy is disabled: (not )?in ITOFLOW_"):
            itoflow.create("process", "decay")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("VP", "m:A", "s"), "component name 'VP'"),
        (("", "m:A", "s"), "component name ''"),
        (("a:b", "m:A", "s"), "component name 'a:b'"),
        ((5, "m:A", "s"), "component name 5"),
        (("vp", "m.A", "s"), "target 'm.A' of 'vp'"),
        (("vp", object, "s"), "write 'module:attribute'"),
        (("vp", "m:A", "s", ("A B",)), "component name 'A B'"),
        (("vp", "m:A", "s", "pc"), "aliases 'pc' of 'vp': write a tuple"),
        (("vp", "m:A", "two\nlines"), "write one line"),
        (("vp", "m:A", None), "write one line"),
    ],
)
def test_a_registration_refuses_what_no_user_could_write(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Registration(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [{"rate": 2.0}, {"name": None}, 3, None])
def test_resolve_refuses_what_names_no_component(toy: ModuleType, value: object) -> None:
    with pytest.raises(OptionError, match=r"needs 'name'|is a name, a mapping with 'name', or an object"):
        registry.resolve("process", value)


def test_a_name_and_a_kind_are_text(toy: ModuleType) -> None:
    with pytest.raises(OptionError, match=r"create takes the name of a sampler.*Given: 3"):
        registry.create("sampler", 3)  # type: ignore[arg-type]
    with pytest.raises(UnknownComponentError, match="No kind is called 3"):
        registry.create(3, "euler")  # type: ignore[arg-type]


def test_a_command_is_not_created(toy: ModuleType) -> None:
    with pytest.raises(OptionError, match="takes no options and is not created"):
        itoflow.create("command", "greet")

"""Discovery of plugins, lookup of components by name, and reports of what went wrong.

A broken plugin harms only itself: each one is imported, registered and asked in a guard of its own, with a pluggy
`PluginManager` of its own, and a failure becomes a `PluginReport`. Nothing here imports torch, pydantic or a
component; `Component.load` imports the one module that its registration names.

Environment:
    ITOFLOW_PLUGINS          comma-separated distributions that may load; unset means all.
    ITOFLOW_DISABLE_PLUGINS  comma-separated distributions that may not.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from itoflow import hookspecs
from itoflow.errors import (
    AmbiguousComponentError,
    OptionError,
    PluginError,
    SpecError,
    UnknownComponentError,
    did_you_mean,
    listing,
)
from itoflow.hookspecs import GROUP, KINDS, Registration


@dataclass(frozen=True)
class Component:
    """One registered component and where it comes from."""

    kind: str
    name: str
    target: str
    summary: str
    aliases: tuple[str, ...]
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """`distribution:name`, unambiguous whatever else is installed."""
        return f"{self.distribution}:{self.name}"

    def load(self) -> Any:
        """Import the target, and only that module.

        Raises:
            PluginError: the module or the attribute cannot be imported.
            SpecError: the target does not derive from the base class of its kind, or lacks a method of it.
        """
        try:
            loaded = _resolve(self.target)
        except (Exception, SystemExit) as error:
            reason = str(error).rstrip(".")
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.version} cannot be imported from "
                f"{self.target!r}: {type(error).__name__}: {reason}. Reinstall {self.distribution}, or report this to "
                "its authors."
            ) from error
        base = KINDS[self.kind].base
        if base is not None and not (isinstance(loaded, type) and issubclass(loaded, _resolve(base))):
            raise SpecError(
                f"{self.target!r}, registered as {self.kind} {self.name!r} by {self.distribution}, does not derive "
                f"from {base.replace(':', '.')}. Derive it, or register it by the hook of its own kind."
            )
        missing = getattr(loaded, "__abstractmethods__", ())
        if missing:
            raise SpecError(
                f"{self.target!r}, registered as {self.kind} {self.name!r} by {self.distribution}, does not define "
                f"{listing(missing)}, which every {self.kind} of its base class must. Write them in the class."
            )
        return loaded


@dataclass(frozen=True)
class PluginReport:
    """What became of one plugin: `ok`, `failed`, `empty` (it registered nothing) or `disabled`."""

    distribution: str
    version: str
    entry_point: str
    module: str
    status: str
    message: str = ""
    details: str = ""
    components: tuple[Component, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry:
    """The plugins found and the components that they registered.

    Arguments:
        reports: one per entry point, in the order of distribution and entry point names.
    """

    reports: tuple[PluginReport, ...] = field(default=())

    @classmethod
    def discover(cls, points: Iterable[EntryPoint] | None = None) -> Registry:
        """Ask every plugin of the entry-point group `itoflow` (or just `points`) what it registers."""
        found = entry_points(group=GROUP) if points is None else points
        owned = [(*_distribution(point), point) for point in set(found)]
        return cls(tuple(_report(*item) for item in sorted(owned, key=lambda item: (item[0], item[2].name))))

    def components(self, kind: str | None = None) -> tuple[Component, ...]:
        """Every component, or those of one kind, sorted by kind and name."""
        if kind is not None:
            kind = kind_name(kind)
        return tuple(
            sorted(
                (c for report in self.reports for c in report.components if kind in (None, c.kind)),
                key=lambda c: (list(KINDS).index(c.kind), c.name, c.distribution),
            )
        )

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted; a name with two owners is given as `distribution:name`."""
        components = self.components(kind)
        names = [c.name for c in components]
        return sorted(c.name if names.count(c.name) == 1 else c.qualified for c in components)

    def find(self, kind: str, name: str) -> Component:
        """The component called `name` or `distribution:name`.

        Raises:
            UnknownComponentError: nothing of that kind is installed under that name.
            AmbiguousComponentError: several distributions own the bare name.
        """
        kind = kind_name(kind)
        owner, _, bare = name.rpartition(":")
        matches = [
            c
            for c in self.components(kind)
            if bare in (c.name, *c.aliases) and (not owner or _normalised(owner) == _normalised(c.distribution))
        ]
        exact = [c for c in matches if c.name == bare]
        matches = exact or matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise AmbiguousComponentError(
                f"{kind} {name!r} is registered by {listing(c.distribution for c in matches)}. "
                f"Write one of: {listing(c.qualified for c in matches)}."
            )
        raise UnknownComponentError(self._unknown(kind, name, owner, bare))

    def _unknown(self, kind: str, name: str, owner: str, bare: str) -> str:
        known = [n for c in self.components(kind) for n in (c.name, *c.aliases)]
        text = f"No {kind} is called {name!r}.{did_you_mean(bare, known)} Installed: {listing(self.names(kind))}."
        others = [c.kind for c in self.components() if c.kind != kind and bare in (c.name, *c.aliases)]
        if others:
            text += f" {bare!r} is a {listing(set(others))}, not a {kind}."
        if owner and _normalised(owner) not in {_normalised(r.distribution) for r in self.reports}:
            text += f" No plugin {owner!r} is installed: pip install {owner}"
        elif not known:
            text += f" No plugin that registers a {kind} is installed."
        for report in self.reports:
            if report.status != "ok":
                text += f"\nPlugin {report.distribution} is {report.status}: {report.message}"
        return text

    def name_of(self, cls: type) -> Component | None:
        """The component whose target is this class, or None where no plugin registers it."""
        for component in self.components():
            if component.target.partition(":")[2] == cls.__qualname__:
                try:
                    if component.load() is cls:
                        return component
                except (PluginError, SpecError):  # a broken namesake harms only itself
                    continue
        return None


_current: Registry | None = None


def registry() -> Registry:
    """The registry of this process, discovered at first use."""
    global _current
    if _current is None:
        _current = Registry.discover()
    return _current


def reset() -> None:
    """Forget what was discovered; the next lookup discovers anew (after an installation, or in tests)."""
    global _current
    _current = None


def available(kind: str) -> list[str]:
    """The names of the installed components of one kind, e.g. `available("process")`."""
    return registry().names(kind)


def create(kind: str, name: str, **options: Any) -> Any:
    """The component of that kind and name, with options, e.g. `create("process", "vp", beta_max=10.0)`.

    Raises:
        UnknownComponentError, AmbiguousComponentError: see `Registry.find`.
        PluginError, SpecError: the component cannot be imported or breaks its contract.
        OptionError: the name is no text; an option is unknown, of the wrong type, or out of range.
    """
    if not isinstance(name, str):
        raise OptionError(f"create takes the name of a {kind}, e.g. 'mlp' for a backbone. Given: {name!r}.")
    loaded = registry().find(kind, name).load()
    if KINDS[kind_name(kind)].base is None:
        raise OptionError(f"{name!r} is a {kind}, which takes no options and is not created.")
    return loaded(**options)


def resolve(kind: str, value: Any) -> Any:
    """A component from a name, a mapping with `name`, or the component itself.

    Raises:
        OptionError: `value` is none of these, or a mapping without `name`.
        and what `create` raises.
    """
    kind = kind_name(kind)
    base = KINDS[kind].base
    if isinstance(value, str):
        return create(kind, value)
    if isinstance(value, Mapping):
        options = dict(value)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise OptionError(
                f"A {kind} given as a mapping needs 'name'. Given: {value!r}. Installed: {listing(available(kind))}."
            )
        return create(kind, name, **options)
    if base is not None and isinstance(value, _resolve(base)):
        return value
    raise OptionError(
        f"A {kind} is a name, a mapping with 'name', or an object derived from {str(base).replace(':', '.')}. "
        f"Given: {value!r} ({type(value).__name__}). Installed: {listing(available(kind))}."
    )


def kind_name(kind: str) -> str:
    """The kind, also from its plural (`samplers`).

    Raises:
        UnknownComponentError: there is no such kind.
    """
    for name in KINDS:
        if kind in (name, KINDS[name].hook.removeprefix("itoflow_")):
            return name
    raise UnknownComponentError(f"No kind is called {kind!r}.{did_you_mean(str(kind), KINDS)} Kinds: {listing(KINDS)}.")


def _report(distribution: str, version: str, point: EntryPoint) -> PluginReport:
    report = PluginReport(distribution, version, point.name, point.value, "ok")
    disabled = _disabled(report.distribution)
    if disabled:
        return replace(report, status="disabled", message=disabled)
    torch_before = "torch" in sys.modules
    try:
        components = tuple(_ask(point, report.distribution, report.version))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        import traceback

        message = f"{type(error).__name__}: {error}"
        return replace(report, status="failed", message=message, details=traceback.format_exc())
    warnings = () if torch_before or "torch" not in sys.modules else (f"{point.value} imports torch; import it later",)
    if not components:
        message = f"{point.value} registers nothing: implement one of {listing(k.hook for k in KINDS.values())}"
        return replace(report, status="empty", message=message, warnings=warnings)
    return replace(report, components=components, warnings=warnings)


def _ask(point: EntryPoint, distribution: str, version: str) -> Iterator[Component]:
    """Register one plugin in a manager of its own and call its hooks.

    An unknown hook is an error here: a misspelt one would otherwise register nothing, silently.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(point.load(), name=point.name)
    manager.check_pending()
    seen: dict[tuple[str, str], str] = {}
    for kind in KINDS.values():
        caller = getattr(manager.hook, kind.hook)
        given = caller()
        if len(given) < len(caller.get_hookimpls()):  # pluggy drops what is None
            raise TypeError(f"{kind.hook} gave None; it gives itoflow.Registration objects")
        for registrations in given:
            if not isinstance(registrations, Iterable):
                raise TypeError(f"{kind.hook} gave {registrations!r}; it gives an iterable of itoflow.Registration")
            for r in registrations:
                if not isinstance(r, Registration):
                    raise TypeError(f"{kind.hook} gave {r!r}; it gives itoflow.Registration objects")
                for name in (r.name, *r.aliases):
                    if (kind.name, name) in seen:
                        raise ValueError(
                            f"{kind.name} {name!r} is registered twice: {seen[kind.name, name]}, {r.target}"
                        )
                    seen[kind.name, name] = r.target
                yield Component(kind.name, r.name, r.target, r.summary, r.aliases, distribution, version)


def _disabled(distribution: str) -> str:
    allowed = os.environ.get("ITOFLOW_PLUGINS")
    name = _normalised(distribution)
    if allowed is not None and name not in _names(allowed):
        return f"not in ITOFLOW_PLUGINS={allowed}"
    blocked = os.environ.get("ITOFLOW_DISABLE_PLUGINS", "")
    if name in _names(blocked):
        return f"in ITOFLOW_DISABLE_PLUGINS={blocked}"
    return ""


def _names(text: str) -> set[str]:
    return {_normalised(name.strip()) for name in text.split(",") if name.strip()}


def _normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version; a distribution half removed has no metadata, and goes by its entry point."""
    metadata: Any = {} if point.dist is None else point.dist.metadata or {}  # parsed at each access, so once
    return metadata.get("Name") or point.name, metadata.get("Version") or "unknown"


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found

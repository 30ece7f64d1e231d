"""The plugin contract: one hook per kind of component.

A plugin is a distribution with one entry point in the group `itoflow`::

    [project.entry-points.itoflow]
    sde = "itoflow_sde.plugin"

The module named there implements any of the hooks below. It is imported to list what is installed, so it imports
neither torch nor the components: a `Registration` names its target as text, and the target is imported at first use.

    from itoflow import Registration, hookimpl

    @hookimpl
    def itoflow_processes():
        return [Registration("vp", "itoflow_sde.vp:VP", "Variance preserving SDE (DDPM)")]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pluggy

GROUP = "itoflow"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

_NAME = re.compile(r"[a-z0-9][a-z0-9+._-]*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Registration:
    """What a plugin says of one component, without importing it.

    Arguments:
        name: lower case letters, digits and `+ . _ -`; what users write in `compose`.
        target: `module:attribute`, imported at first use.
        summary: one line for `itoflow list`.
        aliases: other names by which the component is found; a recipe always records `name`.
    """

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.aliases) is not tuple:
            raise ValueError(f"aliases {self.aliases!r} of {self.name!r}: write a tuple of names")
        for name in (self.name, *self.aliases):
            if type(name) is not str or not _NAME.fullmatch(name):
                raise ValueError(f"component name {name!r}: use lower case letters, digits and + . _ - only")
        if type(self.target) is not str or not _TARGET.fullmatch(self.target):
            raise ValueError(f"target {self.target!r} of {self.name!r}: write 'module:attribute'")
        if type(self.summary) is not str or not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"summary {self.summary!r} of {self.name!r}: write one line")


@dataclass(frozen=True)
class Kind:
    """A kind of component: the hook that lists it and the base class that its targets derive from."""

    name: str
    hook: str
    base: str | None


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("process", "itoflow_processes", "itoflow.process:ProcessSpec"),
        Kind("objective", "itoflow_objectives", "itoflow.objective:Objective"),
        Kind("backbone", "itoflow_backbones", "itoflow.backbone:Backbone"),
        Kind("sampler", "itoflow_samplers", "itoflow.sampler:Sampler"),
        Kind("attention", "itoflow_attentions", "itoflow.attention:Attention"),
        Kind("dataset", "itoflow_datasets", "itoflow.spec:Spec"),
        Kind("coupling", "itoflow_couplings", "itoflow.spec:Spec"),
        Kind("command", "itoflow_commands", None),
    )
}


@hookspec
def itoflow_processes() -> Iterable[Registration]:
    """Processes: how data becomes noise. Targets are subclasses of `itoflow.ProcessSpec`."""
    raise NotImplementedError


@hookspec
def itoflow_objectives() -> Iterable[Registration]:
    """Objectives: what a network learns about a process. Targets are subclasses of `itoflow.Objective`."""
    raise NotImplementedError


@hookspec
def itoflow_backbones() -> Iterable[Registration]:
    """Backbones: the networks. Targets are subclasses of `itoflow.Backbone`."""
    raise NotImplementedError


@hookspec
def itoflow_samplers() -> Iterable[Registration]:
    """Samplers: what carries noise back to data. Targets are subclasses of `itoflow.Sampler`."""
    raise NotImplementedError


@hookspec
def itoflow_attentions() -> Iterable[Registration]:
    """Attention backends. Targets are subclasses of `itoflow.Attention`."""
    raise NotImplementedError


@hookspec
def itoflow_datasets() -> Iterable[Registration]:
    """Named data sets. Targets are subclasses of `itoflow_data.DataSource`, itself an `itoflow.Spec`."""
    raise NotImplementedError


@hookspec
def itoflow_couplings() -> Iterable[Registration]:
    """Couplings between the two ends of a path. Targets are subclasses of `itoflow_flow.Coupling`."""
    raise NotImplementedError


@hookspec
def itoflow_commands() -> Iterable[Registration]:
    """Commands of the `itoflow` program. Targets are functions `main(argv: list[str]) -> int | None`.

    They read argv by an `itoflow.parser.CommandParser`.
    """
    raise NotImplementedError

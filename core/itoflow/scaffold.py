"""The folder of a new plugin, from the templates that ship with core: those of the folder, and one for each kind.

In their names and texts, `$name` is the component, `$kind` its kind, `$hook` that by which it is registered, `$module`
its module, `$cls` its class; `TEMPLATES` has the rest.
"""

from __future__ import annotations

import keyword
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from itoflow.errors import ItoflowError, OptionError, did_you_mean, listing
from itoflow.hookspecs import KINDS

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN = {"plugin"}
"""Modules that each plugin has beside that of its component."""


TEMPLATES = {
    "process": {
        "summary": "Exponential decay of the data, linear noise",
        "options": "rate=4.0, scale=2.0",
        "advice": "alpha(t) and sigma(t); every objective, sampler and the likelihood then work on them",
    },
    "objective": {
        "summary": "Regression of the data at uniform times",
        "options": "power=1.0",
        "advice": "the loss of each example, and what the network's output means",
    },
    "backbone": {
        "summary": "A residual layer on the flattened example",
        "options": "width=32",
        "advice": "a module that is called as net(x, t, cond); every objective, process and sampler then work with it",
    },
    "sampler": {
        "summary": "Runge-Kutta of order 2",
        "options": "c=1.0",
        "advice": "the table of coefficients; callbacks, noise, compilation and the checks of a run come with it",
    },
}
"""For each kind that there is a template of: what the component is, options for a second run of the tests, and what is
to be written."""


def write(name: str, kind: str = "process", parent: Path | None = None) -> Path:
    """Write the plugin folder `itoflow-NAME` and return it.

    Arguments:
        parent: where; None is the current folder.

    Raises:
        OptionError: the name is none for a component and a package, there are no templates of that kind, or the
            folder exists.
        ItoflowError: the folder cannot be written.
    """
    if kind not in TEMPLATES:
        raise OptionError(
            f"There is no template for {kind!r}.{did_you_mean(kind, TEMPLATES)} Templates: {listing(TEMPLATES)}. For "
            "another kind write one of these, and give its plugin.py the hook of CONTRIBUTING.md."
        )
    component = _templates() / "components" / f"{kind}.py.template"
    module, cls = name.replace("-", "_"), "".join(part.capitalize() for part in name.split("-"))
    names = "".join(re.findall(r"^(?:from|import|class) .*\n", component.read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"\w+", names))
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or module in _TAKEN or cls in used:
        raise OptionError(
            f"{name!r} cannot name a component and its package: use lower case letters, digits and single hyphens, "
            "starting with a letter, and no word that Python or the plugin reserves."
        )
    if _installed(f"itoflow-{name}"):
        raise OptionError(
            f"A distribution itoflow-{name} is installed, which the new one would replace. Choose another name."
        )
    folder = (parent or Path()) / f"itoflow-{name}"
    try:
        folder.mkdir()
        words = {"name": name, "kind": kind, "hook": KINDS[kind].hook, "module": module, "cls": cls, **TEMPLATES[kind]}
        _copy(_templates() / "plugin", folder, words)
        _fill(component, folder / "src" / f"itoflow_{module}" / f"{module}.py", words)
    except FileExistsError:
        raise OptionError(f"{folder} exists. Choose another name, or remove it first.") from None
    except OSError as error:
        raise ItoflowError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return folder


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _templates() -> Traversable:
    return files("itoflow") / "templates"


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        path = target / Template(entry.name.removesuffix(".template")).substitute(words)
        if entry.is_dir():
            path.mkdir()
            _copy(entry, path, words)
        else:
            _fill(entry, path, words)


def _fill(template: Traversable, path: Path, words: dict[str, str]) -> None:
    path.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")

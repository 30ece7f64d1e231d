"""The folder of a new plugin, from the templates that ship with core: one folder of templates per kind.

In their names and texts, `$name` is the component, `$module` its module, `$cls` its class.
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

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN = {"plugin"}
"""Modules that each plugin has beside that of its component."""


def kinds() -> list[str]:
    """The kinds that there are templates for."""
    return sorted(entry.name for entry in _templates().iterdir() if entry.is_dir())


def write(name: str, kind: str = "process", parent: Path | None = None) -> Path:
    """Write the plugin folder `itoflow-NAME` and return it.

    Arguments:
        parent: where; None is the current folder.

    Raises:
        OptionError: the name is none for a component and a package, there are no templates of that kind, or the
            folder exists.
        ItoflowError: the folder cannot be written.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or module in _TAKEN:
        raise OptionError(
            f"{name!r} cannot name a component and its package: use lower case letters, digits and single hyphens, "
            "starting with a letter, and no word that Python or the plugin reserves."
        )
    if kind not in kinds():
        raise OptionError(
            f"There is no template for {kind!r}.{did_you_mean(kind, kinds())} Templates: {listing(kinds())}. For "
            "another kind write one of these, and give its plugin.py the hook of CONTRIBUTING.md."
        )
    if _installed(f"itoflow-{name}"):
        raise OptionError(
            f"A distribution itoflow-{name} is installed, which the new one would replace. Choose another name."
        )
    folder = (parent or Path()) / f"itoflow-{name}"
    cls = "".join(part.capitalize() for part in name.split("-"))
    try:
        folder.mkdir()
        _copy(_templates() / kind, folder, {"name": name, "module": module, "cls": cls})
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
            path.write_text(Template(entry.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")

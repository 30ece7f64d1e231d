"""Paths that users give, and what to say of those that lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path


def located(path: Path) -> Path:
    """The path with `~` replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user


def beside(path: Path) -> str:
    """For an error: what is in the nearest folder above a missing path that exists."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    try:
        names = sorted(item.name for item in folder.iterdir())
    except OSError:
        return f" The folder {folder} cannot be read."
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f" The folder {folder} has: {shown or 'nothing'}."

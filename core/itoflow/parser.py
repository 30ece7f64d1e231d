"""The argument parser of `itoflow` and of the commands that plugins add."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from itoflow.errors import OptionError


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are those of itoflow: no abbreviations, and --debug for the traceback.

    Arguments:
        command: its name, as in `itoflow NAME`; empty for `itoflow` itself.
        description: what it does.
        options: others of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        prog = f"itoflow {command}".strip()
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises an `OptionError`, which `itoflow` prints like any other."""
        raise OptionError(f"{message}. See `{self.prog} --help`.")

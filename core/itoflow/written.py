"""Options as they are written on a command line: OPTION=VALUE."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from itoflow.errors import OptionError


def written_options(texts: Iterable[str]) -> dict[str, Any]:
    """The options of texts OPTION=VALUE; a value that is JSON is read as JSON, any other is text.

    Raises:
        OptionError: a text without name or `=`, or an option given twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OptionError(f"{text!r} is no option: write OPTION=VALUE, e.g. steps=10.")
        if name in options:
            raise OptionError(f"Option {name!r} is given twice.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options

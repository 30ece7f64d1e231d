"""Components as they are written on a command line: NAME, NAME:option=value:..., or a mapping as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from itoflow import InputError, OptionError
from itoflow.written import written_options


def part(text: str, where: str) -> dict[str, Any]:
    """A mapping with `name`, as `itoflow.create` and `compose` take it.

    Values are JSON, or else text. A part without `=` belongs to the name: `itoflow-samplers:heun:steps=9`.

    Arguments:
        where: the option that it was given by, for errors.

    Raises:
        InputError: it does not parse.
    """
    if text.lstrip().startswith("{"):
        try:
            mapping: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where} {text!r} does not parse as JSON: {error}.") from error
        return mapping
    name, *pieces = re.split(r":(?=\w+=)", text)
    if not name or "=" in name:
        raise InputError(f"{where} {text!r} does not parse: write NAME, NAME:option=value, or a mapping as JSON.")
    try:
        return written_options([f"name={json.dumps(name)}", *pieces])
    except OptionError as error:
        raise InputError(f"{where} {text!r}: {error}") from error


def split(texts: list[str]) -> list[str]:
    """Lists with commas as one list; a mapping as JSON stays whole, and so do brackets."""
    found: list[str] = []
    for text in texts:
        found += [text] if text.lstrip().startswith("{") else re.split(r",(?![^\[]*\])", text)
    return [text.strip() for text in found if text.strip()]

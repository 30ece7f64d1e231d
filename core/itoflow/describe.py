"""What a component says of itself: its formula, options and references, read from its class and its docstrings.

Nothing is kept by hand: ranges come from the annotated types, descriptions from the docstrings below the fields.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo

from itoflow.spec import Spec

_WORDS = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "min_length": "length >=",
    "max_length": "length <=",
    "multiple_of": "multiple of",
}
"""The constraints of annotated-types and pydantic, in words."""


@dataclass(frozen=True)
class Option:
    """One option, as text."""

    name: str
    type: str
    range: str
    default: str
    description: str


@dataclass(frozen=True)
class Description:
    """A component in words.

    Arguments:
        name: `module.Class`.
        source: the file it is written in, or None.
        formula: docstrings of its module and of itself.
        references: lines of the section References of the module's docstring.
        options: in the order of declaration.
    """

    name: str
    source: str | None
    formula: tuple[str, ...]
    references: tuple[str, ...]
    options: tuple[Option, ...]


def describe(component: Any) -> Description:
    """The description of a component's class, or of a command's function."""
    module = sys.modules.get(component.__module__)
    theory, references = _split_references(inspect.cleandoc(getattr(module, "__doc__", None) or ""))
    own = inspect.cleandoc(component.__doc__ or "")
    fields = component.model_fields if isinstance(component, type) and issubclass(component, Spec) else {}
    return Description(
        name=f"{component.__module__}.{getattr(component, '__qualname__', type(component).__qualname__)}",
        source=getattr(module, "__file__", None),
        formula=tuple(text for text in (theory, own) if text),
        references=references,
        options=tuple(_option(name, field, _documented(component, name)) for name, field in fields.items()),
    )


def schema(component: Any) -> dict[str, Any] | None:
    """The JSON Schema of the options; None where there are no options, or one of them has no JSON form."""
    if not (isinstance(component, type) and issubclass(component, Spec)):
        return None
    try:
        found: dict[str, Any] = _json(component.model_json_schema())
    except PydanticInvalidForJsonSchema:
        return None
    return found


def _json(value: Any) -> Any:
    """The value with infinities as text, which JSON lacks and pydantic reads back."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _split_references(text: str) -> tuple[str, tuple[str, ...]]:
    """The text without its section References, and that section's lines."""
    lines = text.splitlines()
    if "References:" not in lines:
        return text, ()
    start = lines.index("References:")
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    references = tuple(line.strip() for line in lines[start + 1 : end] if line.strip())
    return "\n".join([*lines[:start], *lines[end:]]).rstrip(), references


def _documented(component: type[Spec], name: str) -> str:
    """The docstring below the field, or below that of the nearest base where a class changes a default only."""
    fields = (base.model_fields.get(name) for base in component.__mro__ if issubclass(base, Spec))
    return next((field.description for field in fields if field is not None and field.description), "")


def _option(name: str, field: FieldInfo, description: str) -> Option:
    return Option(
        name=name,
        type=_type(field.annotation),
        range=", ".join([*_bounds(field.metadata), *_inner_bounds(field.annotation)]),
        default="required" if field.is_required() else _text(field.get_default(call_default_factory=True)),
        description=" ".join(description.split()),
    )


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, Spec) else str(value)


def _type(annotation: Any) -> str:
    """The type as written, without its ranges; literals as their values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_type, arguments)))
    if origin is not None:
        return f"{_type(origin)}[{', '.join(map(_type, arguments))}]"
    if annotation in (None, type(None)):
        return "none"
    if annotation is ...:
        return "..."
    return getattr(annotation, "__name__", str(annotation))


def _inner_bounds(annotation: Any) -> Iterator[str]:
    """The ranges inside an annotation: of a union's members as they are, of a tuple's items as `each ...`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _bounds(arguments[1:])
        yield from _inner_bounds(arguments[0])
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _inner_bounds(argument)
    elif origin not in (None, Literal):
        for argument in arguments:
            yield from (f"each {bound}" for bound in _inner_bounds(argument))


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    """`[0, 1)` with both bounds, `> 0` with one; lengths, multiples and finiteness in words."""
    found: dict[str, Any] = {}
    for item in metadata:
        for key in (*_WORDS, "allow_inf_nan"):
            if getattr(item, key, None) is not None:
                found[key] = getattr(item, key)
    low = [(bracket, found[key]) for key, bracket in (("gt", "("), ("ge", "[")) if key in found]
    high = [(bracket, found[key]) for key, bracket in (("lt", ")"), ("le", "]")) if key in found]
    if low and high:
        yield f"{low[0][0]}{low[0][1]}, {high[0][1]}{high[0][0]}"
        found = {key: value for key, value in found.items() if len(key) > 2}
    for key, words in _WORDS.items():
        if key in found:
            yield f"{words} {found[key]}"
    if found.get("allow_inf_nan") is False:
        yield "finite"

"""Options are data: the frozen base of all components, and the one codec that writes and reads them.

A spec holds options only. It is typed, validated, comparable, hashable and printable; anything derived from it
(tensors, tables, modules) lives where it is used, so that two equal specs are interchangeable.

The codec writes a component as `{"name": "distribution:name", **options}` and reads it back, also where the type of
a field is an abstract base (a sampler that holds a sampler).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator

from itoflow import registry
from itoflow.errors import OptionError, SpecError, did_you_mean, listing
from itoflow.hookspecs import KINDS

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


class Spec(BaseModel):
    """A component's options, frozen.

    Fields are hashable (tuples, not lists) and carry their range in their type, e.g.
    `beta_min: Annotated[float, Gt(0)] = 0.1`, with the docstring below each field as its description.

    Raises:
        OptionError: an option is unknown, of the wrong type, or out of its range; or one is set after creation.
        SpecError: when a subclass declares an option called `name`, which recipes reserve, or a `requires` that is no
            class; when an option's value cannot be hashed.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True, protected_namespaces=()
    )

    kind: ClassVar[str] = ""

    if not TYPE_CHECKING:  # so that type checkers see the constructor that the fields give

        def __init__(self, /, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise OptionError(_explain(type(self), error)) from None
            try:
                hash(self)
            except TypeError as error:
                raise SpecError(
                    f"{type(self).__name__} cannot be hashed: {error}. Give its options as tuples, not lists or dicts."
                ) from None

        def __setattr__(self, option: str, value: Any) -> None:
            try:
                super().__setattr__(option, value)
            except ValidationError:
                raise OptionError(
                    f"{type(self).__name__} is frozen, so {option!r} cannot be set to {value!r}. A copy with another "
                    f"value: .replace({option}=...). A class declares its options as fields, {option}: float = 1.0, "
                    "writes no __init__, and keeps nothing else on itself."
                ) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" in cls.model_fields:
            raise SpecError(
                f"{cls.__name__} has an option called 'name', which recipes reserve for the component's own name. "
                "Call the option something else."
            )
        needed = getattr(cls, "requires", None)
        if cls.kind and needed is not None and not isinstance(needed, type):
            raise SpecError(f"{cls.__name__}.requires is the class that a process must derive from. Given: {needed!r}.")

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Where a field's type is an abstract base, accept a name or a mapping with `name`."""
        if inspect.isabstract(cls) and cls.kind and isinstance(value, (str, Mapping)):
            value = registry.resolve(cls.kind, value)
        return handler(value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed, validated like a new one."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON data, with the component's `name` first where the component is registered.

        Raises:
            SpecError: a component of a named kind that no plugin registers, so that no recipe can name it; an option
                that is not JSON.
        """
        options = encoded_options(self)
        if not self.kind:
            return options
        component = registry.registry().name_of(type(self))
        if component is None:
            raise SpecError(
                f"{type(self).__module__}.{type(self).__qualname__} is registered by no installed plugin, so a recipe "
                f"cannot name it. Register it by the hook {KINDS[self.kind].hook}."
            )
        return {"name": component.qualified, **options}


def encoded_options(spec: Spec) -> dict[str, Any]:
    """The options as JSON data.

    Raises:
        SpecError: one is not JSON; components inside that no plugin registers.
    """
    encoded = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        try:
            encoded[name] = _encode(value)
        except ValueError as error:  # of pydantic, or of the text that it makes
            raise SpecError(
                f"{type(spec).__name__}.{name} = {value!r} cannot be written to a recipe: {error}. Options are "
                "numbers, text, booleans, None, tuples of these, and other components."
            ) from error
    return encoded


def _encode(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity; pydantic reads the text back as a float
    return _ANY.dump_python(value, mode="json")


def _explain(cls: type[Spec], error: ValidationError) -> str:
    """One line per wrong option: where, what was given, what is allowed."""
    options = list(cls.model_fields)
    lines = []
    for items in _by_value(error):
        item, *others = items
        location = item["loc"][:1] if others else item["loc"]
        where = ".".join(str(part) for part in location) or "options"
        if item["type"] == "extra_forbidden":
            lines.append(f"no option {where!r}.{did_you_mean(where, options)} Options: {listing(options)}.")
        elif item["type"] == "missing":
            lines.append(f"option {where!r} is required.")
        else:
            given = "" if isinstance(item["input"], Mapping) else f" (given: {item['input']!r})"
            first, *rest = (one["msg"].removeprefix("Value error, ").rstrip(".") for one in items)
            said = ", or ".join([first, *(text.removeprefix("Input should be ") for text in rest)])
            lines.append(f"{where}: {said}{given}.")
    return f"{cls.__name__}: " + " ".join(lines)


def _by_value(error: ValidationError) -> list[list[Any]]:
    """The errors, with those of one value of one option together: a union has one for each of its members."""
    groups: dict[tuple[Any, int], list[Any]] = {}
    for item in error.errors(include_url=False):
        union = len(item["loc"]) > 1 and isinstance(item["loc"][1], str)
        place = item["loc"][0] if union else item["loc"]
        groups.setdefault((place, id(item["input"])), []).append(item)
    return list(groups.values())

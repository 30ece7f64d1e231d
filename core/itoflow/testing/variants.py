"""Components with some members replaced: for tests that a check fires on what is broken in one way."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from itoflow.spec import Spec

S = TypeVar("S", bound=Spec)


def variant(base: type[S], **members: Any) -> S:
    """A subclass of `base` with these members, made with its defaults; what is no function is a constant of the class.

    Example:
        broken = variant(VP, alpha=lambda self, t: 0.5)
    """
    constants = {name: ClassVar for name, value in members.items() if not callable(value)}
    made: type[S] = type("Variant", (base,), {"__module__": __name__, "__annotations__": constants, **members})
    return made()

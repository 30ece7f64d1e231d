"""Options are data: typed, in range, frozen, comparable, and refused with the next step when wrong."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import pytest
from annotated_types import Gt

from itoflow import DataSpec, Spec
from itoflow.errors import OptionError, SpecError


class Toy(Spec):
    width: Annotated[int, Gt(0)] = 3
    """Width."""
    rate: float = 0.5
    """Rate."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    label: str = "a"
    """Label."""


def test_is_frozen() -> None:
    with pytest.raises(OptionError, match=r"Toy is frozen, so 'width' cannot be set to 4.* \.replace\(width=\.\.\.\)"):
        Toy().width = 4  # type: ignore[misc]


def test_a_constructor_that_sets_options_is_told_to_declare_them() -> None:
    class Habit(Toy):
        def __init__(self, depth: int = 2) -> None:
            super().__init__()
            self.depth = depth

    with pytest.raises(OptionError, match=r"declares its options as fields, depth: .* writes no __init__"):
        Habit()


@pytest.mark.parametrize(("kind", "value"), [("list[int]", [1]), ("dict[str, int]", {"a": 1})])
def test_a_value_that_cannot_be_hashed_is_refused(kind: str, value: object) -> None:
    cls = type("Mutable", (Spec,), {"__module__": __name__, "__annotations__": {"values": kind}, "values": value})
    with pytest.raises(SpecError, match=r"Mutable cannot be hashed: unhashable type: .*as tuples"):
        cls()


@pytest.mark.parametrize("value", [math.exp, b"\xff"])
def test_a_value_that_no_recipe_can_hold_is_named(value: object) -> None:
    class Odd(Spec):
        values: Any = None

    with pytest.raises(SpecError, match=r"Odd\.values = .* cannot be written to a recipe: .*Options are numbers, text"):
        Odd(values=value).to_dict()


def test_a_requirement_that_is_no_class_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(SpecError, match=r"Bad\.requires is the class that a process must derive from\. Given: 'Gauss"):

        class Bad(Spec):
            kind: ClassVar[str] = "sampler"
            requires: ClassVar[Any] = "GaussianProcess"


@pytest.mark.parametrize("change", [{"width": 4}, {"rate": 0.25}, {"sizes": (2, 1)}, {"label": "b"}])
def test_is_equal_and_hashes_by_its_options(change: dict[str, Any]) -> None:
    assert Toy(**change) == Toy(**change)
    assert len({Toy(), Toy(), Toy(**change), Toy(**change)}) == 2


def test_differs_from_another_class_with_equal_options() -> None:
    class Other(Toy):
        pass

    assert Toy() != Other()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, r"Toy: no option 'widht'. Did you mean 'width'\? Options: label, rate, sizes, width\."),
        ({"width": 0}, r"Toy: width: Input should be greater than 0 \(given: 0\)\."),
        ({"width": 1.5}, r"width: Input should be a valid integer.*\(given: 1.5\)"),
        ({"rate": "fast"}, r"rate: Input should be a valid number.*\(given: 'fast'\)"),
        ({"sizes": [1, "x"]}, r"sizes\.1: Input should be a valid integer"),
        ({"width": 0, "label": 1}, r"width: .* label: "),
        ({"name": "toy"}, r"no option 'name'"),
    ],
)
def test_a_wrong_option_says_which_and_what_fits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Toy(**options)


Auto = Literal["auto"]
Named = Literal["uniform", "karras"]


def test_a_value_that_fits_no_member_of_a_union_is_said_once() -> None:
    class Either(Spec):
        grid: Auto | Named | tuple[float, ...] = "auto"

    says = r"^Either: grid: Input should be 'auto', or 'uniform' or 'karras', or a valid tuple \(given: 'karas'\)\.$"
    with pytest.raises(OptionError, match=says):
        Either(grid="karas")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"grid\.tuple.*\.1: Input should be a valid number.*\(given: 'x'\)"):
        Either(grid=(1.0, "x"))  # type: ignore[arg-type]


def test_a_missing_option_is_named() -> None:
    with pytest.raises(OptionError, match="option 'shape' is required"):
        DataSpec()  # type: ignore[call-arg]


def test_a_rule_of_the_class_speaks_for_itself(toy: ModuleType) -> None:
    with pytest.raises(OptionError, match=r"Decay: options: .*t_min = 0.5.* t_max = 0.2"):
        toy.Decay(t_min=0.5, t_max=0.2)


def test_an_option_called_name_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(SpecError, match="Bad has an option called 'name', which recipes reserve"):

        class Bad(Spec):
            name: str = "x"


def test_replace_changes_a_copy_and_validates() -> None:
    toy = Toy(rate=2.0)
    assert toy.replace(width=5) == Toy(width=5, rate=2.0)
    assert toy == Toy(rate=2.0)
    with pytest.raises(OptionError, match="greater than 0"):
        toy.replace(width=-1)
    with pytest.raises(OptionError, match="Did you mean 'width'"):
        toy.replace(widht=1)


@pytest.mark.parametrize("value", [math.nan, "nan"])
def test_a_range_excludes_nan(toy: ModuleType, value: object) -> None:
    with pytest.raises(OptionError, match="rate"):
        toy.Decay(rate=value)

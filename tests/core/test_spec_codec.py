"""The codec: any component as JSON and back, also inside another, also where a number is infinite."""

from __future__ import annotations

import json
import math
from types import ModuleType
from typing import Any

import pytest

import itoflow
from itoflow import DataSpec, registry
from itoflow.errors import OptionError, SpecError, UnknownComponentError

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("process", "decay", {}),
    ("process", "decay", {"rate": 0.1, "t_min": 0.25}),
    ("process", "decay", {"rate": math.inf}),
    ("objective", "denoise", {"prediction": "eps"}),
    ("sampler", "euler", {"grid": (1.0, 0.5, 0.1), "steps": 3}),
    ("sampler", "scaled", {}),
    ("sampler", "scaled", {"inner": "euler", "factor": 2.0}),
    ("sampler", "scaled", {"inner": {"name": "scaled", "inner": {"name": "euler", "steps": 7}}}),
    ("sampler", "scaled", {"others": ["euler", {"name": "itoflow-toy:noisy", "steps": 2}]}),
]


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_round_trip_through_json(toy: ModuleType, kind: str, name: str, options: dict[str, Any]) -> None:
    spec = itoflow.create(kind, name, **options)
    text = json.dumps(spec.to_dict(), allow_nan=False)
    back = registry.resolve(kind, json.loads(text))
    assert (back, type(back), hash(back)) == (spec, type(spec), hash(spec))


def test_the_name_comes_first_with_its_owner(toy: ModuleType) -> None:
    data = toy.Scaled(inner=toy.Euler(steps=2)).to_dict()
    assert next(iter(data.items())) == ("name", "itoflow-toy:scaled")
    assert (data["factor"], data["inner"]["name"], data["inner"]["steps"]) == ("inf", "itoflow-toy:euler", 2)


@pytest.mark.parametrize("value", ["euler", {"name": "euler"}, "itoflow-toy:euler"])
def test_a_field_of_an_abstract_type_takes_all_forms(toy: ModuleType, value: object) -> None:
    assert toy.Scaled(inner=value) == toy.Scaled(inner=toy.Euler())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("eulr", UnknownComponentError, "Did you mean 'euler'"),
        ({"name": "euler", "steps": 0}, OptionError, r"inner: Euler: steps: .*greater than or equal to 1"),
        ({"steps": 3}, OptionError, "needs 'name'"),
        (3, OptionError, "inner: "),
    ],
)
def test_a_wrong_nested_component_is_refused(
    toy: ModuleType, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        toy.Scaled(inner=value)


def test_a_component_of_another_kind_does_not_fit(toy: ModuleType) -> None:
    with pytest.raises(OptionError, match="inner"):
        toy.Scaled(inner=toy.Decay())


def test_a_spec_that_is_no_component_has_no_name() -> None:
    data = DataSpec(shape=(1, 2), classes=3)
    assert "name" not in data.to_dict()
    assert DataSpec(**json.loads(json.dumps(data.to_dict()))) == data


def test_a_class_that_no_plugin_registers_cannot_be_written(toy: ModuleType) -> None:
    class Own(toy.Decay):  # type: ignore[misc, name-defined]
        pass

    with pytest.raises(SpecError, match=r"Own is registered by no installed plugin.*the hook itoflow_processes"):
        Own().to_dict()

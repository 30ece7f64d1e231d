"""Every error of itoflow is an `ItoflowError`, and names the nearest of what exists."""

from __future__ import annotations

import inspect

import pytest

from itoflow import errors

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_has_one_base_and_says_when(cls: type) -> None:
    assert issubclass(cls, errors.ItoflowWarning if issubclass(cls, Warning) else errors.ItoflowError)
    assert cls.__doc__


@pytest.mark.parametrize(
    ("cls", "standard"),
    [
        (errors.UnknownComponentError, LookupError),
        (errors.OptionError, ValueError),
        (errors.SpecError, TypeError),
        (errors.NumericalError, ArithmeticError),
    ],
)
def test_standard_handlers_catch_it(cls: type, standard: type) -> None:
    assert issubclass(cls, standard)


@pytest.mark.parametrize(("name", "hint"), [("vpp", " Did you mean 'vp'?"), ("heun", "")])
def test_did_you_mean(name: str, hint: str) -> None:
    assert errors.did_you_mean(name, iter(["ve-long-name", "vp"])) == hint


@pytest.mark.parametrize(("names", "text"), [(["b", "a"], "a, b"), ([], "none")])
def test_listing(names: list[str], text: str) -> None:
    assert errors.listing(names) == text

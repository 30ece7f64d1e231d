"""`DataSpec`: what a batch and its conditions must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import DataSpec
from itoflow.errors import InputError, OptionError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ()}, "shape: "),
        ({"shape": (0,)}, r"shape\.0: .*greater than 0"),
        ({"shape": (1.5,)}, r"shape\.0: "),
        ({"shape": 8}, "shape: "),
        ({"shape": (2,), "classes": 1}, "classes: .*greater than or equal to 2"),
        ({"shape": (2,), "std": 0}, "std: "),
        ({"shape": (2,), "low": 1.0}, r"low = 1.0 must be below high = 1.0"),
        ({"shape": (2,), "channels": 3}, "no option 'channels'"),
    ],
)
def test_refuses_what_no_example_can_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DataSpec(**options)


@pytest.mark.parametrize("name", ["std", "low", "high"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_scale_of_the_values_is_finite(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=name):
        DataSpec(**{"shape": (2,), name: value})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_accepts_a_batch(dtype: torch.dtype) -> None:
    DataSpec(shape=(2, 3)).check(torch.zeros(5, 2, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.0, 0.0]], r"x must be a torch.Tensor of shape \(B, 2, 3\)\. Given: list"),
        (torch.zeros(2, 3), r"shape \(B, 2, 3\)\. Given: \(2, 3\)"),
        (torch.zeros(5, 3, 2), r"Given: \(5, 3, 2\)"),
        (torch.zeros(5, 2, 3, 1), r"Given: \(5, 2, 3, 1\)"),
        (torch.zeros(5, 2, 3, dtype=torch.uint8), r"must be floating\. Given: torch.uint8.*by x.float\(\)\.$"),
        (torch.full((1, 2, 3), torch.nan), "6 values that are NaN or infinite"),
        (torch.zeros(1, 2, 3).index_fill(2, torch.tensor([1]), torch.inf), "2 values that are NaN or infinite"),
    ],
)
def test_refuses_a_wrong_batch(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSpec(shape=(2, 3)).check(x)


def test_says_the_scale_of_data_with_levels_and_of_no_other() -> None:
    with pytest.raises(InputError, match=r"floating, scaled to \[-1, 1\]\. Given: torch.uint8.*127.5 - 1 for bytes"):
        DataSpec(shape=(2, 3), levels=256).check(torch.zeros(5, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize("std", [1e300, 1e-300])
def test_refuses_a_deviation_whose_square_no_float_holds(std: float) -> None:
    with pytest.raises(OptionError, match=r"std = 1e[+-]300 is not between 1e-12 and 1e\+12.*in another unit"):
        DataSpec(shape=(2,), std=std)


BOTH = DataSpec(shape=(2,), classes=4, vector=3)


@pytest.mark.parametrize("label", [2, torch.tensor(2), torch.tensor([2, 2, 2, 2, 2], dtype=torch.uint8), [2] * 5])
@pytest.mark.parametrize("vector", [torch.ones(3), torch.ones(5, 3, dtype=torch.float64), [1.0, 1.0, 1.0]])
def test_one_condition_is_repeated_and_many_are_kept(label: object, vector: object) -> None:
    cond = BOTH.conditions({"class": label, "vector": vector}, 5, CPU)
    assert torch.equal(cond["class"], torch.full((5,), 2))
    assert torch.equal(cond["vector"].double(), torch.ones(5, 3, dtype=torch.float64))


def test_data_without_conditions_has_none() -> None:
    assert DataSpec(shape=(2,)).conditions(None, 5, CPU) == {}


GOOD: dict[str, object] = {"class": 1, "vector": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": 4}, r"cond\['class'\] must be in \[0, 4\)\. Given: 4 to 4"),
        ({"class": [0, 1, 2, 3, -1]}, r"Given: -1 to 3"),
        ({"class": 1.0}, r"cond\['class'\] must be one integer or 5 of them\. Given: torch.float32"),
        ({"class": True}, "Given: torch.bool"),
        ({"class": [1, 2]}, r"Given: torch.int64.*\(2,\)"),
        ({"class": [[1] * 5]}, r"\(1, 5\)"),
        ({"class": "cat"}, r"cond\['class'\] must be a tensor or numbers\. Given: 'cat'"),
        ({"vector": [1, 2, 3]}, r"cond\['vector'\] must be floating, of shape \(3,\) or \(5, 3\)\. Given: torch.int64"),
        ({"vector": [0.0, 0.0]}, r"of shape \(2,\)"),
        ({"vector": [0.0, float("nan"), 0.0]}, "NaN or infinite"),
        ({"guidance": 2}, r"missing: none, unexpected: \['guidance'\]"),
        ({3: 2}, r"unexpected: \['3'\]"),
    ],
)
def test_refuses_a_wrong_condition(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BOTH.conditions({**GOOD, **change}, 5, CPU)


@pytest.mark.parametrize("given", [None, {}, {"vector": [0.0, 0.0, 0.0]}])
def test_a_missing_condition_is_named(given: dict[str, object] | None) -> None:
    with pytest.raises(InputError, match=r"conditions are \['class', 'vector'\]; missing: \['class'.*Pass cond="):
        BOTH.conditions(given, 5, CPU)


@pytest.mark.parametrize("given", [2, torch.tensor([1, 2]), "class"])
def test_conditions_have_names(given: Any) -> None:
    with pytest.raises(InputError, match="cond is a mapping of names to values"):
        BOTH.conditions(given, 5, CPU)

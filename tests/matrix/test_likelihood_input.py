"""What log_prob refuses, says or warns about, on composed models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import itoflow
from itoflow import GenerativeModel, IncompatibleError, InputError, ItoflowWarning, NumericalError, OptionError
from itoflow.errors import UndefinedError

X = torch.zeros(3, 2) + 0.1


def model(process: Any = "linear", **options: Any) -> GenerativeModel:
    return itoflow.compose(
        process=process,
        objective="flow-matching",
        backbone={"name": "mlp", "width": 8, "depth": 1},
        data=(2,),
        **options,
    )


@pytest.mark.parametrize("process", ["interpolant", "sb"])
def test_a_process_between_two_data_sets_has_no_density(process: str) -> None:
    with pytest.raises(UndefinedError, match=r"no .*density"):
        model(process).log_prob(X)


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama", "ddim"])
def test_a_sampler_that_does_not_integrate(sampler: str) -> None:
    with pytest.raises(IncompatibleError, match=r"offers no integrate.*dopri5, dopri8"):
        model().log_prob(X, method=sampler)


@pytest.mark.parametrize("option", [{"rtol": 0.0}, {"rtol": -1e-3}, {"atol": 0.0}, {"rtol": float("nan")}])
def test_tolerances_are_positive(option: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(option))):
        model().log_prob(X, **option)  # type: ignore[arg-type]


def test_at_least_one_probe() -> None:
    with pytest.raises(InputError, match=r"at least 1\. Given: 0"):
        model().log_prob(X, divergence="hutchinson", probes=0)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 2, 1)])
def test_wrong_shapes(x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"must have shape \(B, 2\)"):
        model().log_prob(x)


def test_values_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        model().log_prob(X * float("nan"))


def test_discrete_data_without_dequantisation_warn() -> None:
    with pytest.warns(ItoflowWarning, match="lie on 3 levels"):
        model(levels=3).log_prob(torch.tensor([[-1.0, 0.0]]))


def test_nan_from_the_network_names_the_time() -> None:
    broken = model()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"not finite at t = 0"):
        broken.log_prob(X)

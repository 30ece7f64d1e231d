"""Processes between two data sets with every installed sampler: what runs, what is refused, and where it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import itoflow
from itoflow import IncompatibleError, InputError, InterpolantProcess, Sampler
from itoflow.testing import InterpolantOracle
from itoflow.testing.assertions import expect_moments

NEAR = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
FAR = torch.tensor([[0.0, -2.0], [0.5, 2.0], [-2.0, 0.0]], dtype=torch.float64)
PROCESSES = ({"name": "sb", "sigma": 0.5}, {"name": "interpolant", "sigma": 0.5}, {"name": "interpolant"})


def model(process: object, *, score: bool, sampler: object = None) -> itoflow.GenerativeModel:
    return itoflow.compose(
        process=process,  # type: ignore[arg-type]
        objective={"name": "flow-matching", "score": score},
        backbone={"name": "mlp", "width": 16, "depth": 1},
        sampler=sampler,  # type: ignore[arg-type]
        data=(2,),
    )


def fitting() -> list[str]:
    """Samplers that need nothing of the process but its velocity and score."""
    names = []
    for name in itoflow.available("sampler"):
        sampler = itoflow.create("sampler", name)
        if isinstance(sampler, Sampler) and issubclass(InterpolantProcess, sampler.requires):
            names.append(name)
    return names


@pytest.mark.parametrize("name", fitting())
def test_a_sampler_runs_where_what_it_needs_is_known(name: str) -> None:
    process = itoflow.create("process", "sb", sigma=0.5)
    needs = itoflow.create("sampler", name).needs_score(process)
    x1 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    known = model({"name": "sb", "sigma": 0.5}, score=True, sampler=name)
    assert known.sample(x=x1).shape == (4, 2)
    if needs:
        with pytest.raises(IncompatibleError, match="needs the score"):
            model({"name": "sb", "sigma": 0.5}, score=False, sampler=name)
    else:
        assert model({"name": "sb", "sigma": 0.5}, score=False, sampler=name).sample(x=x1).shape == (4, 2)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_from_one_data_set_to_the_other(process: dict[str, object]) -> None:
    """Euler's ODE, and Euler-Maruyama where there is noise, carry exact draws of x_1 to the law of x_0.

    20000 draws, 300 steps on the exact field; allowance 5 standard errors and 3 per cent of the variance.
    """
    path = itoflow.create("process", process["name"], **{k: v for k, v in process.items() if k != "name"})
    oracle = InterpolantOracle(path, NEAR, FAR, (0.4, 0.3))
    _, x1 = oracle.ends(20_000, generator=torch.Generator().manual_seed(0))
    names = ["euler", "euler-maruyama"] if "sigma" in process else ["euler"]
    mean, covariance = oracle.near.mean(0), oracle.near.T.cov(correction=0) + 0.16 * torch.eye(2, dtype=torch.float64)
    for name in names:
        start = path.depart(x1, generator=torch.Generator().manual_seed(1))
        sampler = itoflow.create("sampler", name, steps=300)
        x = sampler(oracle, start, generator=torch.Generator().manual_seed(2))
        expect_moments(x, mean, covariance, f"{name} on {path!r}", relative=0.03)


def test_noise_that_is_left_on_data_of_small_deviation_is_a_warning() -> None:
    """The bridge of s = 1 ends with noise of 0.03."""
    parts: dict[str, Any] = {"objective": "flow-matching", "backbone": "mlp", "data": (2,), "std": 0.01}
    with pytest.warns(itoflow.ItoflowWarning, match=r"at t_min noise 3\.2 times as large is left on them"):
        itoflow.compose(process="sb", **parts)
    itoflow.compose(process={"name": "sb", "sigma": 0.01}, **parts)


def test_sampling_starts_from_data() -> None:
    built = model({"name": "interpolant"}, score=False, sampler="euler")
    with pytest.raises(InputError, match=r"starts from data at its far end: sample\(x=x1\)"):
        built.sample(4)
    with pytest.raises(InputError, match="3"):
        built.sample(x=torch.randn(4, 3))
    with pytest.raises(InputError, match="leave n out"):
        built.sample(3, x=torch.randn(4, 2))

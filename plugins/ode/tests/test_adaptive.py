"""Accuracy against exact solutions, and failures as errors that name the time."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow import Dynamics, NumericalError, OptionError
from itoflow.likelihood import decode, encode, likelihood
from itoflow.testing import GaussianOracle
from itoflow.testing.problems import Exploding, Preserving, Straight, gaussian, seeded
from itoflow_ode.dopri5 import Dopri5
from itoflow_ode.dopri8 import Dopri8

SOLVERS = [Dopri5, Dopri8]
PROCESSES = [Preserving(), Exploding(), Straight()]


class Drift(Dynamics):
    """dx = f(x, t) dt."""

    def __init__(self, f):
        self.f, self.times = f, []

    def drift(self, x, t):
        self.times.append(float(t))
        return self.f(x, t)

    def diffusion(self, t):
        return torch.zeros_like(t)


ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("begin", "end"), [(0.25, 1.0), (1.0, 0.25)])
def test_exponential_either_way_without_leaving_the_interval(solver, begin, end):
    dynamics = Drift(lambda x, t: 3 * x)
    found = solver(rtol=1e-9, atol=1e-12).integrate(dynamics, ONE, begin, end)
    assert float(found) == pytest.approx(math.exp(3 * (end - begin)), rel=1e-8)
    assert 0.25 <= min(dynamics.times) <= max(dynamics.times) <= 1.0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_tolerance_is_what_comes_out(solver, process):
    """The error of a Gaussian's log density falls with rtol, to within 20 times of it."""
    field = gaussian(process)
    x = field.sample(20, generator=seeded(0))
    start = float(process.ends()[0].alpha) * x
    for rtol in (1e-4, 1e-6, 1e-8):
        found = likelihood(field, x, method=solver(rtol=rtol, atol=rtol / 10))
        late = field.log_prob(found.latent, process.t_max)
        error = float((late + found.change - field.log_prob(start, process.t_min)).abs().max())
        print(f"\n{solver.__name__}, {type(process).__name__}, rtol {rtol:g}: {error:.1e}, {found.evaluations} calls")
        assert error < 20 * rtol


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_round_trip(process):
    field = gaussian(process)
    x = field.sample(20, generator=seeded(0))
    back = decode(field, encode(field, x, rtol=1e-7), rtol=1e-7)
    assert float((back - x).abs().max()) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("std", [1e-3, 1.0, 1e3])
def test_errors_are_in_proportion_to_the_data(solver, std):
    """With the defaults, on Gaussian data whose mean is three deviations off; from sigma = 0 on."""
    process = Straight()
    field = GaussianOracle(process, std * torch.tensor([3.0, -3.0], dtype=torch.float64), std**2)
    start = field.sample(20, process.t_max, generator=seeded(0))
    exact = field.flow(start, process.t_max, process.t_min)
    sampled = float((solver()(field, start) - exact).abs().max()) / std
    returned = float((decode(field, encode(field, exact, method=solver()), method=solver()) - exact).abs().max()) / std
    print(f"\n{solver.__name__}, deviation {std:g}: {sampled:.1e} of it, there and back {returned:.1e}")
    assert max(sampled, returned) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
class TestFailures:
    """Each names the solver, the dynamics and the time."""

    def test_the_drift_is_not_finite(self, solver):
        dynamics = Drift(lambda x, t: x if t < 0.5 else x * math.nan)
        with pytest.raises(
            NumericalError, match=rf"{solver.__name__} on Drift got values .* not finite .* t = 0\.[5-9]"
        ):
            solver().integrate(dynamics, ONE, 0.0, 1.0)

    def test_the_step_underflows(self, solver):
        """dx = x^2 leaves every bound at t = 1/2."""
        with pytest.raises(NumericalError, match=rf"{solver.__name__} on Drift .* t = 0\.(5|49)"):
            solver(rtol=1e-10, atol=1e-10).integrate(Drift(lambda x, t: 2 * x.square()), ONE, 0.0, 1.0)

    def test_the_evaluations_run_out(self, solver):
        dynamics = Drift(lambda x, t: torch.cos(1000 * t) * x)
        with pytest.raises(NumericalError, match="did not finish within 50 evaluations"):
            solver(max_evaluations=50).integrate(dynamics, ONE, 0.0, 1.0)

    @pytest.mark.parametrize("option", [{"rtol": 0.0}, {"atol": -1e-3}, {"rtol": math.nan}])
    def test_tolerances_are_positive(self, solver, option):
        with pytest.raises(OptionError, match=next(iter(option))):
            solver(**option)
        with pytest.raises(OptionError, match=next(iter(option))):
            likelihood(gaussian(Straight()), torch.zeros(1, 2), method=solver(), **option)


def test_an_empty_batch_stays_empty():
    assert Dopri5()(gaussian(Preserving()), torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 2)

"""Score matching without a kernel: the constant that separates the losses, and a process that is not Gaussian."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from itoflow import Field, IncompatibleError, ProcessSpec
from itoflow.backbone import DataSpec
from itoflow.prediction import DynamicsPrediction
from itoflow.testing.problems import Preserving, gaussian, mixture, seeded
from itoflow_score.implicit import ImplicitScoreMatching
from itoflow_score.sliced import SlicedScoreMatching

OBJECTIVES = {
    "implicit": ImplicitScoreMatching(),
    "sliced": SlicedScoreMatching(),
    "sliced, 3 Gaussian directions": SlicedScoreMatching(probes=3, law="gaussian", variance_reduced=False),
    "sliced, weight 1": SlicedScoreMatching(weighting="uniform", stratified=True),
}
G2 = 0.5


class DoubleWell(ProcessSpec):
    """dx = (x - x^3) dt + g dw: not Gaussian given x_0; stationary at p proportional to exp((x^2 - x^4/2) / g^2)."""

    simulation_steps: ClassVar[int] = 100

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.full_like(t, G2**0.5)

    def prior(self, shape, *, like, generator=None):
        raise NotImplementedError

    def prior_log_prob(self, x):
        raise NotImplementedError


def stationary(n):
    """n draws of the stationary law, (n, 1), by the inverse of its distribution function."""
    grid = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    mass = ((grid**2 - grid**4 / 2) / G2).exp().cumsum(0)
    u = torch.rand(n, dtype=torch.float64, generator=seeded(0))
    return grid[torch.searchsorted(mass / mass[-1], u)][:, None]


class Cubic(Field):
    """score = theta . (x, x^3); the stationary one has theta = (2, -2) / g^2."""

    def __init__(self, theta):
        super().__init__(DoubleWell())
        self.theta = theta

    def forward(self, x, t, cond=None):
        return DynamicsPrediction(self.process, x, t, score=self.theta[0] * x + self.theta[1] * x**3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_minimiser_is_the_score_of_a_process_that_is_not_gaussian(name):
    """The loss is quadratic in theta, so one Newton step is its minimum: (2, -2) / g^2 = (4, -4).

    40000 paths of 100 Euler steps; at 10 batches, 6 standard errors and 0.05 for the step of the simulation, which
    shifts the stationary law by O(dt). Where p_t is wrong, theta is not: for data N(0, 1/4) it is far away.
    """

    def minimum(x0, seed):
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        loss = OBJECTIVES[name](Cubic(theta), x0, generator=seeded(seed)).mean()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient])
        return -torch.linalg.solve(hessian, gradient.detach())

    found = torch.stack([minimum(x0, i) for i, x0 in enumerate(stationary(40_000).chunk(10))])
    mean, error = found.mean(0), found.std(0) / 10**0.5
    target = torch.tensor([4.0, -4.0], dtype=torch.float64)
    print(f"{name}: {mean.tolist()} +- {error.tolist()}")
    assert bool(((mean - target).abs() <= 6 * error + 0.05).all()), (mean, error)
    other = minimum(0.5 * torch.randn(4000, 1, dtype=torch.float64, generator=seeded(1)), 1)
    assert float((other - target).abs().max()) > 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_differ_as_squared_errors_of_the_score_do(name):
    """E[loss(s) - loss(s*)] = E[w |s - s*|^2] / D for a wrong s; 60000 draws, 6 standard errors."""
    right, wrong = mixture(Preserving()), gaussian(Preserving())
    x0, t = right.sample(60_000, generator=seeded(0)), torch.linspace(0.2, 0.9, 60_000, dtype=torch.float64)
    x = right.process.perturb(x0, t, generator=seeded(1)).x
    objective = OBJECTIVES[name]
    gain = torch.stack([objective.loss_at(field, x, t, generator=seeded(2)).detach() for field in (wrong, right)])
    weight = right.process.diffusion(t).square() if objective.weighting == "likelihood" else torch.ones_like(t)
    gap = gain[0] - gain[1] - weight * (wrong(x, t).score - right(x, t).score).square().mean(1)
    assert abs(float(gap.mean())) <= 6 * float(gap.std()) / 60_000**0.5


def test_in_one_dimension_a_rademacher_direction_is_exact():
    theta, x0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True), stationary(100)
    t = torch.linspace(0, 1, 100, dtype=torch.float64)
    exact = ImplicitScoreMatching().loss_at(Cubic(theta), x0, t)
    s, slope = x0 + 0.5 * x0**3, 1 + 1.5 * x0**2
    torch.testing.assert_close(exact, (G2 * (s**2 + 2 * slope))[:, 0])
    for reduced in (True, False):
        sliced = SlicedScoreMatching(variance_reduced=reduced).loss_at(Cubic(theta), x0, t, generator=seeded(0))
        torch.testing.assert_close(sliced, exact)


def test_an_ode_has_no_likelihood_weight():
    class Still(DoubleWell):
        def diffusion(self, t):
            return torch.zeros_like(t)

    with pytest.raises(IncompatibleError, match="weighting='uniform'"):
        SlicedScoreMatching().parametrization(Still(), DataSpec(shape=(1,)))
    assert SlicedScoreMatching(weighting="uniform").parametrization(Still(), DataSpec(shape=(1,))).prediction == "score"

"""Order of convergence: the slope of log error over log steps on smooth problems, at the last halving, above round-off.

Two columns: with a Runge-Kutta start, within 0.15 of the nominal order (UniPC's is its predictor's plus one), and with
the start that ships, a ramp, whose first step is of order 1 and leaves order 2 (3 for UniPC, which corrects it). Four
paths, at a distance from their singular ends; data are Gaussian, whose flow is known in closed form.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from itoflow import GaussianProcess
from itoflow.testing import GaussianOracle
from itoflow.testing.problems import Exploding, Preserving, Straight, seeded
from itoflow_samplers.ddim import DDIM
from itoflow_samplers.dpm_solver import DPMSolver
from itoflow_samplers.multistep import DEIS, Adams, ExponentialAdams
from itoflow_samplers.ode import RK4, Euler, Heun, Midpoint
from itoflow_samplers.unipc import UniPC


class VP(GaussianProcess):
    """beta = 0.1 + 19.9 t."""

    t_min: float = 0.05
    t_max: float = 0.6

    def alpha(self, t):
        return torch.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2)

    def sigma(self, t):
        return (-torch.expm1(-(0.1 * t + 19.9 * t**2 / 2))).sqrt()

    def d_alpha(self, t):
        return -(0.1 + 19.9 * t) / 2 * self.alpha(t)

    def d_sigma(self, t):
        return (0.1 + 19.9 * t) * self.alpha(t) ** 2 / (2 * self.sigma(t))


PROCESSES = {
    "VP": VP(),
    "VE": Exploding(t_min=0.26, t_max=0.87),  # sigma from 0.2 to 5
    "linear": Straight(t_min=0.1, t_max=0.9),
    "cosine": Preserving(t_min=0.1, t_max=0.9),
}
ONE_STEP = [
    (Euler(), 1),
    (DDIM(), 1),
    (Heun(), 2),
    (Midpoint(), 2),
    (RK4(), 4),
    (DPMSolver(order=2, method="singlestep"), 2),
    (DPMSolver(order=3, method="singlestep"), 3),
]
MULTISTEP = [
    (Adams(order=2), 2),
    (Adams(order=3), 3),
    (Adams(order=3, predict="data"), 3),
    (Adams(order=2, predict="noise"), 2),
    (Adams(order=3, predict="v"), 3),
    *[(ExponentialAdams(order=k, variable="log-snr"), k) for k in (1, 2, 3)],
    (ExponentialAdams(order=4, predict="data", variable="log-snr"), 4),
    *[(DEIS(order=k), k) for k in (2, 3)],
    *[(DPMSolver(order=k), k) for k in (2, 3)],
    *[(UniPC(order=k), k + 1) for k in (2, 3)],
]
STEPS = {1: 128, 2: 128, 3: 256, 4: 256}
"""Of the finer run."""


@cache
def problem(name):
    """Field, start and exact endpoint."""
    process = PROCESSES[name]
    oracle = GaussianOracle(process, torch.tensor([0.3, -0.5], dtype=torch.float64), torch.tensor([0.5, 0.09]))
    x = oracle.sample(16, process.t_max, generator=seeded(0))
    return oracle, x, oracle.flow(x, process.t_max, process.t_min)


def slope(sampler, name, steps):
    """log2 of the ratio of the errors with half the steps and with all."""
    oracle, x, exact = problem(name)
    errors = []
    for count in (steps // 2, steps):
        run = sampler.replace(steps=count, denoise=False, grid="uniform")
        errors.append(float((run(oracle, x) - exact).square().mean().sqrt()))
    assert errors[1] > 1e-12
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("sampler", "order"), ONE_STEP, ids=repr)
def test_one_step_methods(sampler, order, name):
    if isinstance(sampler, Midpoint) and name == "linear":
        order = 3  # between times of equal distance from the middle the leading error of Gaussian data cancels
    assert abs(slope(sampler, name, STEPS[order]) - order) < 0.15


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("sampler", "order"), MULTISTEP, ids=repr)
def test_multistep_methods(sampler, order, name):
    """Both starts."""
    if order > 1:
        sampler_rk = sampler.replace(start="runge-kutta")
        assert abs(slope(sampler_rk, name, STEPS[order]) - order) < 0.15
    shipped = slope(sampler, name, 128)
    least = min(order, 3 if isinstance(sampler, UniPC) else 2)
    assert least - 0.35 < shipped < order + 0.6

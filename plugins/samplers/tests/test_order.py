"""Order of convergence: the slope of log error over log steps on smooth problems, at the last halving above round-off.

Two columns, both within 0.15. With a Runge-Kutta start, the nominal order (UniPC's is its predictor's plus one). With
the start that ships, a ramp whose first step is of order 1: what it adds to the error is of order 2 (3 for UniPC, which
corrects it), and is measured by itself, as the sum has no slope of its own before the larger order has died out.

Four paths, at a distance from their singular ends. Data are Gaussian, whose flow is known in closed form, of deviation
0.7 and 0.5. With 0.3 the h^4 term of Adams of order 4 nearly vanishes on VP and cosine, and the next one shows: the
slopes from 32 steps on, halving by halving, are 5.2, 4.1, 3.4, 3.7, 3.9, 3.9 (cosine, velocity).
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import nn

from itoflow import GaussianProcess, NetworkField, Parametrization
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
    (ExponentialAdams(order=1, variable="log-snr"), 1),
    *[(Adams(order=k), k) for k in (2, 3, 4)],
    *[(Adams(order=k, predict="v"), k) for k in (3, 4)],
    *[(Adams(order=k, predict="data"), k) for k in (3, 4)],
    *[(Adams(order=k, predict="noise"), k) for k in (2, 4)],
    *[(ExponentialAdams(order=k), k) for k in (2, 3, 4)],
    *[(ExponentialAdams(order=k, predict="data", variable="log-snr"), k) for k in (3, 4)],
    (ExponentialAdams(order=4, predict="noise", variable="log-snr"), 4),
    *[(DEIS(order=k), k) for k in (2, 3, 4)],
    *[(DPMSolver(order=k), k) for k in (2, 3)],
    *[(UniPC(order=k), k + 1) for k in (2, 3)],
]
STEPS = {1: 128, 2: 128, 3: 256, 4: 512}
"""Of the finer run."""
SLOW = (Adams(order=4, predict="noise"), UniPC(order=3))
"""Which need twice as many: steps in t are far from equal in s and log-SNR."""


class Mean(nn.Module):
    """E[x0 | x_t] of independent Gaussian values, as a network that is told t."""

    def __init__(self, process, mean, variance):
        super().__init__()
        self.process, self.mean, self.variance = process, mean, variance

    def forward(self, x, t, cond):
        alpha, sigma = self.process.alpha(t[0]), self.process.sigma(t[0])
        kept = alpha * self.variance
        return self.mean + kept / (alpha * kept + sigma**2) * (x - alpha * self.mean)


@cache
def problem(name):
    """Field, start and exact endpoint."""
    process, mean = PROCESSES[name], torch.tensor([0.3, -0.5], dtype=torch.float64)
    variance = torch.tensor([0.5, 0.25], dtype=torch.float64)
    oracle = GaussianOracle(process, mean, variance)
    x = oracle.sample(16, process.t_max, generator=seeded(0))
    field = NetworkField(Mean(process, mean, variance), process, Parametrization(prediction="x0", scale_input=False))
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(field(x, t).velocity, oracle(x, t).velocity)
    return field, x, oracle.flow(x, process.t_max, process.t_min)


def end(sampler, name, steps):
    """Where a run of so many steps ends."""
    field, x, _ = problem(name)
    return sampler.replace(steps=steps, denoise=False, grid="uniform")(field, x)


def order_of(errors):
    """log2 of the ratio of the root mean squares with half the steps and with all."""
    half, full = (float(e.square().mean().sqrt()) for e in errors)
    assert full > 1e-12
    return math.log2(half / full)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("sampler", "order"), ONE_STEP, ids=repr)
def test_one_step_methods(sampler, order, name):
    steps = 128 if isinstance(sampler, RK4) else STEPS[order]
    if isinstance(sampler, Midpoint) and name == "linear":
        order = 3  # between times of equal distance from the middle the leading error of Gaussian data cancels
    _, _, exact = problem(name)
    assert abs(order_of([end(sampler, name, n) - exact for n in (steps // 2, steps)]) - order) < 0.15


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("sampler", "order"), MULTISTEP, ids=repr)
def test_multistep_methods(sampler, order, name):
    """Both starts."""
    _, _, exact = problem(name)
    steps = 1024 if sampler in SLOW else STEPS[order]
    kutta, ramp = (
        [end(sampler.replace(start=start), name, n) for n in (steps // 2, steps)] for start in ("runge-kutta", "ramp")
    )
    assert abs(order_of([x - exact for x in kutta]) - order) < 0.15
    if order == 1:
        assert torch.equal(ramp[1], kutta[1])
        return
    added = 3 if isinstance(sampler, UniPC) else 2
    assert abs(order_of([a - b for a, b in zip(ramp, kutta, strict=True)]) - added) < 0.15

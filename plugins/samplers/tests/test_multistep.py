"""Multistep and Runge-Kutta tables against the integrals of the papers, evaluated a second time by Simpson's rule."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from itoflow import GaussianProcess, IncompatibleError, NetworkField, OptionError, Parametrization
from itoflow.testing import fitted_order
from itoflow.testing.memory import Scaled, held
from itoflow.testing.problems import Preserving, Straight, Undeclared, mixture, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers.dpm_solver import DPMSolver
from itoflow_samplers.multistep import DEIS, Adams, ExponentialAdams
from itoflow_samplers.ode import RK4, Heun, Midpoint
from itoflow_samplers.unipc import UniPC


class VP(GaussianProcess):
    """beta = 0.1 + 19.9 t."""

    t_min: float = 1e-3

    def alpha(self, t):
        return torch.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2)

    def sigma(self, t):
        return (-torch.expm1(-(0.1 * t + 19.9 * t**2 / 2))).sqrt()


class Line(Straight):
    """alpha = 1 - t, sigma = t, away from its singular ends."""

    grid: ClassVar = "logit"
    t_min: float = 0.02
    t_max: float = 0.98


PROCESSES = [VP(), Line()]
STD = 0.7


def at(value):
    return torch.tensor(value, dtype=torch.float64)


def simpson(values, h):
    """The integral of values (an odd number of them along axis 0) at distances h."""
    return h / 3 * (values[0] + values[-1] + 4 * values[1:-1:2].sum(0) + 2 * values[2:-1:2].sum(0))


def variables(process, t, name):
    s = process.sigma(t) / process.alpha(t)
    return {"time": t, "log-snr": -s.log(), "angle": (s / STD).atan(), "asinh": (s / STD).asinh(), "rho": s}[name]


def through(phi, values, where):
    """The polynomial through `values` at phi, at `where`; by the Vandermonde matrix, scaled."""
    scale = phi.abs().max()
    powers = torch.arange(len(phi), dtype=torch.float64)
    coefficients = torch.linalg.solve((phi / scale)[:, None] ** powers, values.flatten(1))
    return (((where / scale)[:, None] ** powers) @ coefficients).reshape(len(where), *values.shape[1:])


def integrated(process, oracle, x, times, predict, variable, order):
    """Each step's integral with the prediction replaced by its interpolating polynomial.

    noise  x/alpha, proposition 3 of DEIS:       d(x/alpha) = eps d(sigma/alpha)
    data   x/sigma, proposition 4.1 of DPM++:    d(x/sigma) = x0 d(alpha/sigma)
    v      x/n, n^2 = sigma^2 + c^2 alpha^2:     d(x/n) = -(c^2 alpha eps - sigma x0) / (c n) d arctan(sigma/(c alpha))
    """

    def n(t):
        a, s = process.alpha(t), process.sigma(t)
        return {"noise": a, "data": s, "v": (s**2 + (STD * a) ** 2).sqrt()}[predict]

    def measure(t):
        a, s = process.alpha(t), process.sigma(t)
        return {"noise": s / a, "data": a / s, "v": -(s / (STD * a)).atan()}[predict]

    history = []
    for now, after in pairwise(times):
        prediction = oracle(x, at(now))
        a, s = process.alpha(at(now)), process.sigma(at(now))
        value = {
            "noise": prediction.eps,
            "data": prediction.x0,
            "v": (s * prediction.x0 - STD**2 * a * prediction.eps) / (STD * n(at(now))),
        }[predict]
        history = [(now, value), *history][:order]
        knots = variables(process, at([t for t, _ in history]), variable)
        t = torch.linspace(now, after, 4001, dtype=torch.float64)
        rate = torch.func.jvp(measure, (t,), (torch.ones_like(t),))[1]
        values = through(knots, torch.stack([v for _, v in history]), variables(process, t, variable))
        total = simpson(values * rate[:, None, None], float(t[1] - t[0]))
        x = n(at(after)) * (x / n(at(now)) + total)
    return x


CASES = [
    (ExponentialAdams(predict=p, variable=v, order=k, data_std=STD), p, v, k)
    for p, v, k in (
        ("noise", "log-snr", 2),
        ("noise", "time", 3),
        ("data", "log-snr", 2),
        ("data", "angle", 4),
        ("data", "asinh", 3),
        ("v", "angle", 1),
        ("v", "asinh", 3),
        ("v", "time", 2),
        ("v", "log-snr", 4),
    )
] + [
    (Adams(predict="noise", order=3), "noise", "rho", 3),
    (Adams(predict="v", order=2, data_std=STD), "v", "angle", 2),
    (DEIS(order=4), "noise", "time", 4),
    (DEIS(order=2, variable="rho"), "noise", "rho", 2),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("sampler", "predict", "variable", "order"), CASES, ids=repr)
def test_multistep_integrates_its_polynomial(process, sampler, predict, variable, order):
    sampler = sampler.replace(steps=9, denoise=False)
    oracle = mixture(process)
    x = oracle.sample(4, process.t_max, generator=seeded(0))
    times, _ = sampler.times(process)
    expected = integrated(process, oracle, x, times, predict, variable, order)
    torch.testing.assert_close(sampler(oracle, x), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_adams_in_the_velocity_is_adams_bashforth(process):
    """Equal steps: the weights of the textbooks, orders 1 to 4 (Hairer et al., table III.1.1)."""
    weights = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    for order, expected in weights.items():
        sampler = Adams(order=order, steps=8, grid="uniform", denoise=False)
        for i, row in enumerate(sampler.table(process).rows):
            h = (process.t_min - process.t_max) / 8
            if i == 0:
                assert row.b == pytest.approx((h,))
            if i >= order - 1:
                assert row.b == pytest.approx([h * w for w in expected], rel=1e-9)


def test_data_in_log_snr_is_the_second_order_exponential_integrator():
    """a = sigma_1/sigma_0, and D_0 + (D_0 - D_1) / r phi(h) with the exact second phi-function in place of 1/2."""
    process = VP()
    sampler = ExponentialAdams(predict="data", variable="log-snr", order=2, steps=12, denoise=False)
    times, _ = sampler.times(process)
    lam = (process.log_snr(at(times)) / 2).tolist()
    for i, row in enumerate(sampler.table(process).rows):
        h = lam[i + 1] - lam[i]
        alpha = float(process.alpha(at(times[i + 1])))
        assert row.a == pytest.approx(float(process.sigma(at(times[i + 1])) / process.sigma(at(times[i]))), rel=1e-10)
        if i:
            slope = alpha * (math.expm1(-h) + h) / (lam[i] - lam[i - 1])
            assert row.b == pytest.approx((-alpha * math.expm1(-h) + slope, -slope), rel=1e-8)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_runge_kutta_is_that_of_the_textbook(process):
    oracle = mixture(process)
    x = oracle.sample(5, process.t_max, generator=seeded(0))

    def v(y, t):
        return oracle(y, at(t)).velocity

    for method in ("midpoint", "rk4"):
        sampler = {"midpoint": Midpoint, "rk4": RK4}[method](steps=6, denoise=False, grid="uniform")
        u = x
        for t, after in pairwise(sampler.times(process)[0]):
            h = after - t
            k1 = v(u, t)
            k2 = v(u + h / 2 * k1, t + h / 2)
            if method == "midpoint":
                u = u + h * k2
                continue
            k3 = v(u + h / 2 * k2, t + h / 2)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(u + h * k3, after))
        torch.testing.assert_close(sampler(oracle, x), u, rtol=1e-9, atol=1e-9)


def test_evaluations_are_what_the_docstrings_say():
    oracle = mixture(Preserving())
    x = oracle.sample(2, 1.0, generator=seeded(0))
    counts = {
        Midpoint(steps=5): 9,
        Heun(steps=5): 9,
        RK4(steps=5): 17,
        Adams(order=4, steps=8): 8,
        Adams(order=4, steps=8, start="runge-kutta"): 8 + 3 * 2,
        ExponentialAdams(order=3, steps=8, start="runge-kutta"): 8 + 2 * 2,
        DEIS(order=2, steps=8, start="runge-kutta"): 8 + 1,
    }
    for sampler, count in counts.items():
        watched = Watched(oracle)
        sampler(watched, x)
        assert watched.calls == count, sampler


@pytest.mark.parametrize("start", ["ramp", "runge-kutta"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        *[(method(order=k), k) for method in (Adams, ExponentialAdams, DEIS) for k in (1, 2, 3, 4)],
        *[(DPMSolver(order=k), k) for k in (2, 3)],
        *[(UniPC(order=k), k + 1) for k in (1, 2, 3)],
    ],
    ids=repr,
)
def test_memory_is_at_most_order_and_three_tensors(sampler, order, start):
    """Counted by storage over a run, with the network's input and output; UniPC's order is its predictor's plus 1."""
    field = NetworkField(Scaled(), Preserving(), Parametrization(prediction="v"))
    x = torch.randn(16, 100, generator=seeded(0))
    run = sampler.replace(start=start, steps=10)
    assert held(partial(run, field), x) <= order + 3


def test_adams_runs_on_any_process_in_the_velocity_only():
    Adams().check(Undeclared())
    with pytest.raises(IncompatibleError, match="predict='velocity'"):
        Adams(predict="v").check(Undeclared())


@pytest.mark.parametrize("options", [{"order": 5}, {"order": 0}, {"order": 4, "steps": 3}])
def test_orders_that_cannot_be_are_refused(options):
    with pytest.raises(OptionError, match="order"):
        Adams(**options)


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence_on_a_gaussian(order):
    assert order - 0.2 < fitted_order(Adams(order=order)) < order + 0.2

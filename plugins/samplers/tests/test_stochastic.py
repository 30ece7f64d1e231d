"""Stochastic methods against the formulas of the papers, evaluated a second time, and what their noise must keep."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from itoflow import GaussianProcess, OptionError
from itoflow.testing import GaussianOracle
from itoflow.testing.assertions import expect_moments
from itoflow.testing.problems import Exploding, Preserving, Straight, gaussian, mixture, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers.churn import Churn
from itoflow_samplers.ddim import Ancestral
from itoflow_samplers.frames import points
from itoflow_samplers.multistep import ExponentialAdams
from itoflow_samplers.predictor_corrector import PredictorCorrector, langevin
from itoflow_samplers.sa_solver import SASolver, StochasticAdams
from itoflow_samplers.sde_dpm_solver import SDEDPMSolver
from itoflow_samplers.stochastic import LogSNRStep

PATHS = [Preserving(), Exploding()]
ORDERS = [(1, 0, 1.0), (3, 0, 0.5), (2, 2, 1.0), (3, 3, 0.7), (4, 1, 1.0)]
STRONG = [SDEDPMSolver(), SASolver(), StochasticAdams(), SASolver(corrector=0), SASolver(denoise=False)]
STRENGTHS = [0.0, 0.5, 1.0, 1.7]


class Karras(GaussianProcess):
    """EDM: sigma = 80 t, from 0.002."""

    grid: ClassVar = "karras"
    t_min: float = 0.002 / 80

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 80 * t


def at(value):
    return torch.tensor(value, dtype=torch.float64)


def normal_like(x, generator):
    return torch.randn(x.shape, dtype=torch.float64, generator=generator)


def levels(process, times):
    """(t, alpha, sigma, l) of each time."""
    k = process.kernel(at(times))
    return list(zip(times, k.alpha.tolist(), k.sigma.tolist(), (k.alpha / k.sigma).log().tolist(), strict=True))


@pytest.mark.parametrize("process", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver(process, order):
    """Equations 18 and 19 of the paper, written in x0 and log-SNR."""
    oracle, sampler = mixture(process), SDEDPMSolver(steps=12, order=order, grid="log-snr")
    x = u = oracle.sample(5, 1.0, generator=seeded(0))
    times, _ = sampler.times(process)
    generator, last, h_last = seeded(7), None, None
    for (t, _, s0, l0), (_, a1, s1, l1) in pairwise(levels(process, times)):
        h = l1 - l0
        x0 = oracle(u, at(t)).x0
        d = x0
        if order == 2 and last is not None:
            r = h_last / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last
        z = normal_like(u, generator)
        u = s1 / s0 * math.exp(-h) * u + a1 * (1 - math.exp(-2 * h)) * d + s1 * math.sqrt(1 - math.exp(-2 * h)) * z
        last, h_last = x0, h
    u = oracle(u, at(times[-1])).x0
    torch.testing.assert_close(sampler(oracle, x, generator=seeded(7)), u, rtol=1e-9, atol=1e-9)


def adams_weights(known, l0, l1, alpha1, k, variable, count=40_001):
    """alpha_1 int (1 + k^2) e^(-(1 + k^2)(l_1 - l)) L_j dl by Simpson's rule."""
    ls = torch.linspace(l0, l1, count, dtype=torch.float64)
    simpson = torch.ones(count, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    density = (1 + k**2) * torch.exp(-(1 + k**2) * (l1 - ls)) * simpson * (l1 - l0) / (count - 1) / 3
    place = (lambda v: v) if variable == "log-snr" else (lambda v: torch.atan(torch.exp(-v)))
    weights = []
    for j in range(len(known)):
        basis = torch.ones_like(ls)
        for i in range(len(known)):
            if i != j:
                basis = basis * (place(ls) - place(at(known[i]))) / (place(at(known[j])) - place(at(known[i])))
        weights.append(alpha1 * float((basis * density).sum()))
    return weights


@pytest.mark.parametrize("process", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("order", "corrector", "strength"), ORDERS)
@pytest.mark.parametrize("variable", ["log-snr", "angle"])
def test_sa_solver(process, order, corrector, strength, variable):
    """Algorithm 1 with equations 14 to 17: predict, evaluate, correct with the same noise."""
    oracle, k = mixture(process), strength
    sampler = SASolver(steps=8, order=order, corrector=corrector, strength=k, variable=variable, grid="log-snr")
    x = u = oracle.sample(5, 1.0, generator=seeded(0))
    times, _ = sampler.times(process)
    knots, generator = levels(process, times), seeded(7)
    x0s, ls = [oracle(u, at(times[0])).x0], [knots[0][3]]
    for (_, _, s0, l0), (t1, a1, s1, l1) in pairwise(knots):
        moved = s1 / s0 * math.exp(-(k**2) * (l1 - l0)) * u
        moved = moved + s1 * math.sqrt(1 - math.exp(-2 * k**2 * (l1 - l0))) * normal_like(u, generator)
        w = adams_weights(ls[:order], l0, l1, a1, k, variable)
        u = moved + sum(c * v for c, v in zip(w, x0s, strict=False))
        x0s, ls = [oracle(u, at(t1)).x0, *x0s], [l1, *ls]
        if corrector:
            w = adams_weights(ls[:corrector], l0, l1, a1, k, variable)
            u = moved + sum(c * v for c, v in zip(w, x0s, strict=False))
    torch.testing.assert_close(sampler(oracle, x, generator=seeded(7)), x0s[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", [*PATHS, Straight(t_min=0.05)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("k", STRENGTHS)
def test_stochastic_adams_is_exact_for_gaussian_data(process, k):
    """Data N(0, c^2): mean and variance of x_s | x_t follow from the joint law, any step; F drops out.

    The joint law: x_t and x_s of the strength-k SDE have correlation r, for k = 1 alpha_t n_s / (alpha_s n_t).
    """
    c = 0.6
    oracle = GaussianOracle(process, torch.zeros(1, dtype=torch.float64), c**2)
    x = oracle.sample(7, 1.0, generator=seeded(0))
    sampler = StochasticAdams(steps=1, denoise=False, data_std=c, strength=k, corrector=0, grid=(1.0, 0.3))
    (_, a_t, s_t, _), (_, a_s, s_s, _) = levels(process, (1.0, 0.3))
    row = sampler.table(process).rows[0]
    n_t, n_s = math.hypot(s_t, c * a_t), math.hypot(s_s, c * a_s)
    if k == 1.0:
        assert row.a == pytest.approx(a_t * n_s**2 / (a_s * n_t**2), rel=1e-9, abs=1e-15)
    assert (row.a * n_t) ** 2 + row.c**2 == pytest.approx(n_s**2, rel=1e-9)
    h = getattr(oracle(x, at(1.0)), row.out) + row.f * x
    torch.testing.assert_close(row.b[0] * h, torch.zeros_like(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        StochasticAdams,
        ExponentialAdams,
        partial(Ancestral, grid="optimal"),
        lambda **options: PredictorCorrector(predictor=Ancestral(grid="optimal", **options)),
    ],
    ids=["stochastic-adams", "exponential-adams", "the grid", "of a predictor"],
)
def test_the_deviation_of_the_data_is_the_field_s_unless_it_is_given(make):
    oracle = GaussianOracle(Straight(), torch.tensor([300.0, 0.0]), 100.0**2)
    x = oracle.sample(5, 1.0, generator=seeded(0))
    found, known, other = (
        make(steps=6, **options)(oracle, x, generator=seeded(1))
        for options in ({}, {"data_std": 100.0}, {"data_std": 1.0})
    )
    torch.testing.assert_close(found, known, rtol=0, atol=0)
    assert float((found - other).abs().max()) > 1


@pytest.mark.parametrize("process", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("order", "corrector", "strength"), ORDERS)
def test_stochastic_adams(process, order, corrector, strength):
    """Equation (3) with F from x0 and eps as they are defined, and weights by Simpson's rule."""
    oracle, k, c = mixture(process), strength, 0.8
    sampler = StochasticAdams(steps=8, order=order, corrector=corrector, strength=k, data_std=c, grid="log-snr")
    x = u = oracle.sample(5, 1.0, generator=seeded(0))
    times, _ = sampler.times(process)
    knots, generator = levels(process, times), seeded(7)

    def force(u, t, alpha, sigma):
        p, n = oracle(u, at(t)), math.hypot(sigma, c * alpha)
        return (sigma * p.x0 - c**2 * alpha * p.eps) / (c * n)

    def integral(values, places, low, high):
        theta = torch.linspace(low, high, 20_001, dtype=torch.float64)
        simpson = torch.ones(20_001, dtype=torch.float64)
        simpson[1:-1:2], simpson[2:-1:2] = 4, 2
        density = (1 + k**2) * (theta.cos() / math.cos(low)) ** (k**2) * simpson * (high - low) / 60_000
        total = 0
        for j, value in enumerate(values):
            basis = torch.ones_like(theta)
            for i, place in enumerate(places[: len(values)]):
                if i != j:
                    basis = basis * (theta - place) / (places[j] - place)
            total = total + float((basis * density).sum()) * value
        return total

    forces, places = [force(u, *knots[0][:3])], [math.atan(knots[0][2] / knots[0][1] / c)]
    for (_, a0, s0, _), (t1, a1, s1, _) in pairwise(knots):
        high, low = math.atan(s0 / a0 / c), math.atan(s1 / a1 / c)
        n0, n1, r = math.hypot(s0, c * a0), math.hypot(s1, c * a1), (math.cos(high) / math.cos(low)) ** (k**2)
        moved = n1 * (r * u / n0 + math.sqrt(1 - r**2) * normal_like(u, generator))
        u = moved + n1 * integral(forces[:order], places, low, high)
        end = oracle(u, at(t1)).x0
        forces, places = [force(u, t1, a1, s1), *forces], [low, *places]
        if corrector:
            u = moved + n1 * integral(forces[:corrector], places, low, high)
    torch.testing.assert_close(sampler(oracle, x, generator=seeded(7)), end, rtol=1e-7, atol=1e-7)


def churned(process, oracle, x, sampler, generator):
    """Algorithm 2 in y = x / alpha and s = sigma / alpha, with the last step to s = 0."""
    times, _ = sampler.times(process)
    path = [(t, s / a) for t, a, s, _ in levels(process, times)]
    y, n = x / float(process.alpha(at(times[0]))), sampler.steps

    def eps(y, s):
        t = process.log_snr_inverse(at(-2 * math.log(s)))
        return (y - oracle(process.alpha(t) * y, t).x0) / s

    for (_, s), after in zip(path, [*(s for _, s in path[1:]), 0.0], strict=True):
        gamma = min(sampler.s_churn / n, math.sqrt(2) - 1) if sampler.s_min <= s <= sampler.s_max else 0.0
        top = path[0][1]
        hat = min(s * (1 + gamma), top)
        z = normal_like(y, generator) if hat > s else torch.zeros_like(y)
        y = y + math.sqrt(max(hat**2 - s**2, 0)) * sampler.s_noise * z
        d = eps(y, hat)
        euler = y + (after - hat) * d
        y = euler if after == 0 else y + (after - hat) * (d + eps(euler, after)) / 2
    return y


@pytest.mark.parametrize("process", [Karras(), Preserving()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("options", [{"s_min": 0.0, "s_noise": 1.007}, {"s_churn": 3.0, "s_min": 0.3, "s_max": 2.0}])
def test_churn_is_algorithm_2_of_edm(process, options):
    oracle, sampler = mixture(process), Churn(steps=9, **options)
    x = oracle.sample(5, 1.0, generator=seeded(0))
    watched = Watched(oracle)
    expected = churned(process, oracle, x, sampler, seeded(7))
    torch.testing.assert_close(sampler(watched, x, generator=seeded(7)), expected, rtol=1e-6, atol=1e-6)
    assert watched.calls == 2 * 9 - 1
    assert not torch.equal(expected, sampler(oracle, x, generator=seeded(8)))


@pytest.mark.parametrize("process", [*PATHS, Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("k", STRENGTHS)
def test_the_exact_step_keeps_every_marginal(process, k):
    """With x0 known, mean alpha_1 x0 and variance sigma_1^2 follow from those before, for every strength."""
    for now, after in pairwise(points(process, (1.0, 0.8, 0.79, 0.2, 0.05))):
        exact = LogSNRStep(now, after, k)
        assert exact.kept * now.alpha + exact.gain * after.alpha == pytest.approx(after.alpha, rel=1e-12)
        assert (exact.kept * now.sigma) ** 2 + exact.std**2 == pytest.approx(after.sigma**2, rel=1e-12)
        for variable in ("log-snr", "angle"):
            known = points(process, (now.t,) if now.alpha == 0 else (now.t, 0.9, 0.85))
            weights = LogSNRStep(now, after, k, variable).weights(known)
            assert sum(weights) == pytest.approx(after.alpha * exact.gain, rel=1e-9)


@pytest.mark.parametrize("process", [*PATHS, Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", STRONG, ids=repr)
@pytest.mark.parametrize("k", STRENGTHS)
def test_every_strength_samples_the_same_law(process, sampler, k):
    """Correlated Gaussian data, 4000 draws, 150 steps; 5 standard errors and 4 per cent."""
    oracle = gaussian(process)
    x = oracle.sample(4000, 1.0, generator=seeded(0))
    end = sampler.replace(strength=k, steps=150)(oracle, x, generator=seeded(1))
    expect_moments(end, *oracle.moments(), f"{type(sampler).__name__} of strength {k}", relative=0.04)


@pytest.mark.parametrize("variance", [0.2, 1.0, 3.0])
def test_a_langevin_step_holds_a_gaussian_at_half_its_size_too_much(variance):
    """x <- (1 - e/V) x + sqrt(2 e) z holds the variance V / (1 - e / (2 V)) = V + e/2 + O(e^2)."""
    sigma, m = 0.4, 0.9
    snr = PredictorCorrector().snr
    row = langevin(0.5, sigma, m * snr)
    kept, added = 1 + row.b[0] * sigma / variance, row.c  # eps = -sigma score
    e = 2 * (m * snr * sigma) ** 2
    assert added**2 / (1 - kept**2) == pytest.approx(variance / (1 - e / (2 * variance)), rel=1e-12)
    assert added**2 / (1 - kept**2) - variance == pytest.approx(e / 2, rel=e / variance)


def law(x, means):
    """Mean, covariance and the share of each cluster."""
    shares = torch.bincount(torch.cdist(x, means).argmin(1), minlength=len(means)) / len(x)
    return torch.cat([x.mean(0), torch.cov(x.T)[*torch.triu_indices(2, 2)], shares])


def test_the_law_of_predictor_corrector():
    """1,000 steps, 4,000 samples, within 3 standard errors and an allowance; tests/benchmarks draws 100,000.

    The error is of order 1 in the steps and, apart from that, in the Langevin step's size e, which they do not change.
    So what 500 and 1,000 steps differ by is allowed for, and what e and 2 e differ by. False alarms: 2 % of seeds.
    """
    oracle, count = mixture(Preserving()), 4_000
    x = oracle.sample(count, oracle.process.t_max, generator=seeded(1))
    many = oracle.sample(1_000_000, generator=seeded(2))
    exact = law(many, oracle.means)
    errors = torch.stack([law(part, oracle.means) for part in many.split(count)]).std(0)
    doubled = PredictorCorrector(snr=math.sqrt(2) * PredictorCorrector().snr)
    ends = [
        sampler.with_steps(steps)(oracle, x, generator=seeded(3 + steps))
        for sampler, steps in ((PredictorCorrector(), 500), (PredictorCorrector(), 1000), (doubled, 1000))
    ]
    half, full, coarse = (law(end, oracle.means) for end in ends)
    allowed = 3 * errors + (half - full).abs() + (coarse - full).abs()
    assert bool(((full - exact).abs() <= allowed).all()), ((full - exact) / errors, allowed / errors)
    wide = law(1.1 * ends[1], oracle.means)
    assert not bool(((wide - exact).abs() <= allowed).all())  # it fires


@pytest.mark.parametrize("process", [*PATHS, Karras(), Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("denoise", [True, False])
def test_stochastic_adams_has_times_of_its_own(process, denoise):
    """Equation (1): from 1 to 100 steps no step without a length, one row a step, t_max first and t_min last."""
    c = 0.6
    ends = [math.atan2(s, c * a) for _, a, s, _ in levels(process, (process.t_max, process.t_min))]
    for steps in range(1, 101):
        sampler = StochasticAdams(steps=steps, denoise=denoise, data_std=c)
        times, _ = sampler.times(process)
        knots = levels(process, times)
        theta = [math.atan2(s, c * a) for _, a, s, _ in knots]
        expected = [ends[1] + (ends[0] - ends[1]) * (1 - i / steps) ** 1.2 for i in range(len(theta))]
        assert theta == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert all(after < now for now, after in pairwise(times))
        assert steps not in (1, 2, 5, 30) or len(sampler.table(process).rows) == steps
        if not denoise and float(process.ends()[0].sigma):
            assert times[-1] == process.t_min


def test_orders_out_of_range_are_refused():
    with pytest.raises(OptionError, match=r"order = 3 needs at least as many steps\. Given: steps = 2"):
        SASolver(order=3, steps=2)
    with pytest.raises(OptionError, match="less than or equal to 4"):
        SASolver(order=5)
    with pytest.raises(OptionError, match="less than or equal to 2"):
        SDEDPMSolver(order=3)

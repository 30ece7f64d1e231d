"""Tables against the formulas of the papers, evaluated a second time on VP and VE."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from itoflow import GaussianProcess, OptionError, Table
from itoflow.grids import time_grid
from itoflow.loop import run_table
from itoflow.testing import GaussianOracle, fitted_order
from itoflow.testing.assertions import expect_moments
from itoflow.testing.problems import Preserving, gaussian, mixture, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers.ddim import DDIM, Ancestral
from itoflow_samplers.dpm_solver import DPMSolver
from itoflow_samplers.multistep import DEIS, ExponentialAdams
from itoflow_samplers.ode import Euler, Heun
from itoflow_samplers.predictor_corrector import PredictorCorrector, langevin
from itoflow_samplers.sa_solver import SASolver, StochasticAdams
from itoflow_samplers.sde import EulerMaruyama, ReverseDiffusion
from itoflow_samplers.sde_dpm_solver import SDEDPMSolver
from itoflow_samplers.unipc import UniPC


class VP(GaussianProcess):
    """beta = 0.1 + slope t."""

    t_min: float = 1e-3
    slope: float = 19.9

    def alpha(self, t):
        return torch.exp(-(0.1 * t + self.slope * t**2 / 2) / 2)

    def sigma(self, t):
        return (-torch.expm1(-(0.1 * t + self.slope * t**2 / 2))).sqrt()


class VE(GaussianProcess):
    """sigma = 0.01 * 5000^t."""

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 0.01 * 5000**t


class Karras(VE):
    """sigma = 80 t, from 0.002."""

    grid: ClassVar = "karras"
    t_min: float = 0.002 / 80

    def sigma(self, t):
        return 80 * t


PROCESSES = [VP(), VE()]


def at(value):
    return torch.tensor(value, dtype=torch.float64)


def steps_of(process, sampler):
    """Each row of a one-evaluation table with (alpha, sigma) at its time and at the next."""
    rows = sampler.replace(denoise=False).table(process).rows
    times = [*(row.t for row in rows), process.t_min]
    ends = [(float(process.alpha(at(t))), float(process.sigma(at(t)))) for t in times]
    return list(zip(rows, pairwise(times), pairwise(ends), strict=True))


def on_eps(row, alpha, sigma):
    """A row in x0 as coefficients of x and of eps: x0 = (x - sigma eps) / alpha."""
    assert row.out == "x0"
    return row.a + row.b[0] / alpha, -row.b[0] * sigma / alpha


def test_ancestral_on_vp_is_ddpm():
    """Equation 11: x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(a_t) + sigma_t z, both choices of sigma_t."""
    for variance in ("posterior", "forward"):
        for row, _, ((a_t, s_t), (a_s, s_s)) in steps_of(VP(), Ancestral(steps=30, variance=variance)):
            beta = 1 - (a_t / a_s) ** 2
            on_x, on_noise = on_eps(row, a_t, s_t)
            assert on_x == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-9)
            assert on_noise == pytest.approx(-beta / (s_t * math.sqrt(1 - beta)), rel=1e-8)
            expected = beta * s_s**2 / s_t**2 if variance == "posterior" else beta
            assert row.c**2 == pytest.approx(expected, rel=1e-8)


def test_ancestral_on_ve_is_that_of_smld():
    """Score SDE, equation 47: x + (s_t^2 - s_s^2) score + sqrt(s_s^2 (s_t^2 - s_s^2) / s_t^2) z."""
    for row, _, ((a_t, s_t), (_, s_s)) in steps_of(VE(), Ancestral(steps=30)):
        on_x, on_noise = on_eps(row, a_t, s_t)
        assert on_x == pytest.approx(1, rel=1e-9)
        assert on_noise == pytest.approx(-(s_t**2 - s_s**2) / s_t, rel=1e-9)
        assert row.c == pytest.approx(math.sqrt(s_s**2 * (s_t**2 - s_s**2) / s_t**2), rel=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        SASolver(),
        SASolver(variable="log-snr", corrector=0),
        SDEDPMSolver(),
        StochasticAdams(order=3),
        ExponentialAdams(order=3),
        ExponentialAdams(order=3, predict="v", variable="angle"),
        DEIS(),
        DPMSolver(),
        UniPC(),
        Ancestral(),
        Heun(),
    ],
    ids=repr,
)
def test_steps_without_signal_at_either_end_are_taken(sampler):
    """No signal is left for the last quarter of the time.

    2000 draws, 5 standard errors and a quarter for the steps, which are long where there is signal.
    """
    oracle = GaussianOracle(VP(slope=199.9), torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5)
    x = oracle.sample(2000, 1.0, generator=seeded(0))
    end = sampler.replace(steps=200, grid="uniform")(oracle, x, generator=seeded(1))
    mean, covariance = oracle.moments(0.0)
    expect_moments(end, mean, covariance, repr(sampler), relative=0.25)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(process, eta):
    """Equations 12 and 16, with x / alpha the paper's x where the variance is not preserved."""
    for row, _, ((a_t, s_t), (a_s, s_s)) in steps_of(process, DDIM(steps=30, eta=eta)):
        tau = eta * (s_s / s_t) * math.sqrt(s_t**2 - (a_t / a_s) ** 2 * s_s**2)
        on_x, on_noise = on_eps(row, a_t, s_t)
        kept = math.sqrt(s_s**2 - tau**2)
        assert row.c == pytest.approx(tau, rel=1e-9, abs=1e-15)
        assert on_x == pytest.approx(a_s / a_t, rel=1e-9)
        assert on_noise == pytest.approx(kept - a_s * s_t / a_t, rel=1e-7)


def test_ddim_without_noise_moves_a_gaussian_along_its_flow_in_one_step_if_it_is_a_point():
    """Data at one point: x0 is exact, so any step is."""
    oracle = GaussianOracle(VP(), torch.tensor([0.4, -1.0], dtype=torch.float64), 0.0)
    x = oracle.sample(10, 1.0, generator=seeded(0))
    got = DDIM(steps=1, denoise=False)(oracle, x)
    torch.testing.assert_close(got, oracle.flow(x, 1.0, VP().t_min), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_reverse_diffusion(process):
    """Score SDE, equation 46 (and its VP case): x = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z; VE likewise."""
    for row, _, ((a_t, s_t), (a_s, s_s)) in steps_of(process, ReverseDiffusion(steps=30)):
        variance = 1 - (a_t / a_s) ** 2 if isinstance(process, VP) else s_t**2 - s_s**2
        root = math.sqrt(1 - variance) if isinstance(process, VP) else 1.0
        assert row.out == "eps"
        assert row.a == pytest.approx(2 - root, rel=1e-12)
        assert row.b[0] == pytest.approx(-variance / s_t, rel=1e-8)
        assert row.c == pytest.approx(math.sqrt(variance), rel=1e-8)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_euler_maruyama_is_the_discretised_reverse_sde(process, strength):
    """x + h [f - (1 + k^2) g^2 / 2 score] + k g sqrt(-h) z: with k = 1 equation 6. VP: f = -beta x / 2, g^2 = beta."""
    oracle, sampler = mixture(process), EulerMaruyama(steps=200, strength=strength, denoise=False)
    table = sampler.table(process)
    x = u = oracle.sample(6, 1.0, generator=seeded(0))
    generator = seeded(5)
    for t, s in pairwise(time_grid(process, "uniform", 201)):
        if isinstance(process, VP):
            beta = 0.1 + 19.9 * t
            f, g = -beta / 2 * u, math.sqrt(beta)
        else:
            f, g = torch.zeros_like(u), 0.01 * 5000**t * math.sqrt(2 * math.log(5000))
        z = torch.randn(u.shape, dtype=torch.float64, generator=generator)
        score = oracle(u, at(t)).score
        u = u + (s - t) * (f - (1 + strength**2) * g**2 / 2 * score) + strength * g * math.sqrt(t - s) * z
    torch.testing.assert_close(run_table(table, oracle, x, generator=seeded(5)), u, rtol=1e-7, atol=1e-7)


def test_heun_is_algorithm_1_of_edm():
    """Deterministic sampling in sigma, 2 N - 1 evaluations, the last step Euler to sigma = 0."""
    process, n = Karras(), 18
    oracle = mixture(process)
    x = u = oracle.sample(6, 1.0, generator=seeded(0))
    i = torch.arange(n, dtype=torch.float64)
    sigmas = [*((80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]

    def slope(v, sigma):
        return (v - oracle(v, at(sigma / 80)).x0) / sigma

    for now, after in pairwise(sigmas):
        d = slope(u, now)
        euler = u + (after - now) * d
        u = euler if after == 0 else u + (after - now) / 2 * (d + slope(euler, after))
    watched = Watched(oracle)
    torch.testing.assert_close(Heun(steps=n)(watched, x), u, rtol=1e-8, atol=1e-8)
    assert watched.calls == 2 * n - 1


@pytest.mark.parametrize(("sampler", "order"), [(Euler(), 1), (DDIM(), 1), (Heun(), 2)], ids=repr)
def test_order_of_convergence(sampler, order):
    assert order - 0.2 < fitted_order(sampler) < order + 0.4


@pytest.mark.parametrize("start", [1.0, 3.0])
def test_the_corrector_keeps_p_t_and_leads_to_it(start):
    """Langevin steps alone at one time, from draws of p_t and from draws three times too wide.

    8000 draws, 5 standard errors; the step's own bias, e / 2 V, is below 4 per cent of the variance.
    """
    process, t = Preserving(), 0.6
    oracle = gaussian(process)
    mean, covariance = oracle.moments(t)
    sigma = float(process.sigma(at(t)))
    table = Table((langevin(t, sigma, PredictorCorrector().snr),) * 150)
    x = mean + start * (oracle.sample(8000, t, generator=seeded(0)) - mean)
    x = run_table(table, oracle, x, generator=seeded(1))
    expect_moments(x, mean, covariance, "the corrector", relative=0.04)


def test_corrector_step_is_that_of_algorithm_4():
    """e = 2 m^2 (r |z| / |score|)^2 and x + e score + sqrt(2 e) z, with norms as they are expected: |z| = sqrt(D)."""
    x, z = (torch.randn(1, 64, dtype=torch.float64, generator=seeded(i)) for i in range(2))
    sigma, m, r = 0.7, 0.9, 0.2
    z, eps = z * 8 / z.norm(), x * 8 / x.norm()
    score = -eps / sigma
    size = 2 * m**2 * (r * z.norm() / score.norm()) ** 2
    row = langevin(0.5, sigma, m * r)
    torch.testing.assert_close(x + row.b[0] * eps + row.c * z, x + size * score + (2 * size).sqrt() * z)


@pytest.mark.parametrize(
    "predictor",
    [
        EulerMaruyama(steps=40),
        Ancestral(steps=40, noise="brownian"),
        ExponentialAdams(order=1, steps=40),
        StochasticAdams(order=1, steps=40),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_without_correctors_it_is_the_predictor(predictor):
    """Whatever the predictor's rows hold: strengths, clocks, shares of the network's input."""
    oracle = gaussian(Preserving())
    x = oracle.sample(5, 1.0, generator=seeded(0))
    alone = predictor(oracle, x, generator=seeded(1))
    corrected = PredictorCorrector(predictor=predictor, corrector_steps=0)(oracle, x, generator=seeded(1))
    torch.testing.assert_close(corrected, alone, rtol=0, atol=0)


def test_predictor_corrector_costs_and_refuses_what_it_says():
    process = VP()
    watched = Watched(mixture(process))
    x = mixture(process).sample(2, 1.0, generator=seeded(0))
    PredictorCorrector(predictor=ReverseDiffusion(steps=5), corrector_steps=2)(watched, x, generator=seeded(0))
    assert watched.calls == 5 + 2 * 4  # no correction after the last step
    with pytest.raises(OptionError, match="one evaluation a step; Heun takes more"):
        PredictorCorrector(predictor=Heun()).check(process)
    with pytest.raises(OptionError, match="ExponentialAdams takes more, or looks back"):
        PredictorCorrector(predictor=ExponentialAdams(order=2)).check(process)

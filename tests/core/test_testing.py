"""The kit's oracles against independent answers, and the kit's frame: checks, run_checks."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch

from itoflow import InputError, Parametrization, UnknownComponentError
from itoflow.process import GaussianProcess
from itoflow.testing import GaussianOracle, MixtureOracle, OracleField, checks, run_checks
from itoflow.testing.interpolants import Joined
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared, gaussian, mixture, seeded

PROCESSES = [Preserving(), Exploding(), Straight(), Preserving(t_min=0.0)]
TIMES = [0.0, 1e-4, 0.2, 0.7, 1.0]


def at(values):
    return torch.tensor(values, dtype=torch.float64)


class RootStart(GaussianProcess):
    """sigma^2 = 400 t: d_sigma is infinite at 0, where g = 20."""

    grid: ClassVar = "karras"

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 20 * t.sqrt()

    def diffusion(self, t):
        return torch.full_like(t, 20.0)


@pytest.mark.parametrize("process", [*PROCESSES, RootStart()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_score_is_the_gradient_of_the_density_at_both_ends_too(process, make):
    oracle = make(process)
    for t in TIMES:
        x = oracle.sample(20, t, generator=seeded(0)).requires_grad_()
        (expected,) = torch.autograd.grad(oracle.log_prob(x, t).sum(), x)
        torch.testing.assert_close(oracle(x, at(t)).score, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_density_satisfies_the_continuity_equation(process, make):
    """d log p/dt = -div v - v . score, the time derivative by central differences: binds velocity to density."""
    oracle, t, h = make(process), 0.4, 1e-5
    x = oracle.sample(10, t, generator=seeded(0))
    change = (oracle.log_prob(x, t + h) - oracle.log_prob(x, t - h)) / (2 * h)
    jacobian = torch.autograd.functional.jacobian(lambda y: oracle(y, at(t)).velocity.sum(0), x)
    divergence = torch.einsum("ibi->b", jacobian)
    prediction = oracle(x, at(t))
    expected = -divergence - (prediction.velocity * prediction.score).sum(1)
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)


def test_posterior_mean_of_a_mixture_equals_quadrature():
    """E[x0 | x_t] = int x0 p(x0) N(x; alpha x0, sigma^2) dx0 / int ... on a fine grid in one dimension."""
    process = Preserving()
    oracle = MixtureOracle(process, at([[-1.0], [0.5]]), at([0.3, 0.7]), stds=at([0.2, 0.4]))
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    data = sum(
        w / (s * math.sqrt(2 * math.pi)) * torch.exp(-((grid - m) ** 2) / (2 * s**2))
        for w, m, s in ((0.3, -1.0, 0.2), (0.7, 0.5, 0.4))
    )
    x = torch.tensor([[-1.5], [0.1], [1.2]], dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        k = process.kernel(t)
        weight = data * torch.exp(-((x - k.alpha * grid) ** 2) / (2 * k.sigma**2))
        norm = torch.trapezoid(weight, grid)
        prediction = oracle(x, at(t))
        expected = torch.trapezoid(weight * grid, grid) / norm
        torch.testing.assert_close(prediction.x0.flatten(), expected, rtol=1e-8, atol=1e-9)
        noise = torch.trapezoid(weight * (x - k.alpha * grid) / k.sigma, grid) / norm
        torch.testing.assert_close(prediction.eps.flatten(), noise, rtol=1e-8, atol=1e-9)
        density = norm / (k.sigma * math.sqrt(2 * math.pi))
        torch.testing.assert_close(oracle.log_prob(x, t), density.log(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_denoiser_field_agrees_with_the_gaussian_oracle(process):
    mean, variance = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5
    exact = GaussianOracle(process, mean, variance)

    def denoise(x, alpha, sigma):
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    field = OracleField(process, denoise, math.sqrt(variance))
    t = torch.tensor([1e-3, 0.3, 0.9, 1.0], dtype=torch.float64)
    x = exact.sample(4, 0.5, generator=seeded(0))
    for member in ("x0", "eps", "score", "velocity"):
        given, wanted = getattr(field(x, t), member), getattr(exact(x, t), member)
        torch.testing.assert_close(given, wanted, rtol=1e-7, atol=1e-7)
    clean = field(x, torch.tensor(0.0)) if float(process.sigma(torch.zeros(()))) == 0 else None
    if clean is not None:
        torch.testing.assert_close(clean.x0, x)
        assert bool((clean.eps == 0).all())
        assert bool(clean.score.isnan().all())  # a denoiser does not fix it, and must not pretend to


def test_exact_flow_solves_the_probability_flow_ode():
    oracle = gaussian(Preserving())
    x = oracle.sample(5, 0.9, generator=seeded(0))
    y, n = x, 200  # Runge-Kutta 4
    for i in range(n):
        h, t = -0.8 / n, 0.9 - 0.8 * i / n
        v = [oracle(y, at(t)).velocity]
        for c in (0.5, 0.5, 1.0):
            v.append(oracle(y + c * h * v[-1], at(t + c * h)).velocity)
        y = y + h / 6 * (v[0] + 2 * v[1] + 2 * v[2] + v[3])
    torch.testing.assert_close(oracle.flow(x, 0.9, 0.1), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [None, 0.3, 1.0])
def test_oracle_samples_have_the_oracle_moments(t):
    """5 standard errors of 40000 draws; the moments themselves are compared with the log-density's Hessian."""
    oracle = mixture(Preserving())
    x = oracle.sample(40_000, t, generator=seeded(0))
    mean, covariance = oracle.moments(t)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * float(covariance.diagonal().max() / 40_000) ** 0.5)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=5 * float(covariance.max()) * (3 / 40_000) ** 0.5)


def test_oracle_keeps_dtype_and_takes_images_and_one_time_per_row():
    oracle = GaussianOracle(Exploding(), torch.zeros(1, 2, 2), 0.25)
    x = oracle.sample(3, 0.5, generator=seeded(0)).float()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = oracle(x, t).velocity
    assert together.dtype == torch.float32
    assert together.shape == (3, 1, 2, 2)
    alone = torch.cat([oracle(x[i : i + 1], t[i]).velocity for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_oracle_refuses_what_it_cannot_be():
    with pytest.raises(InputError, match="symmetric"):
        GaussianOracle(Preserving(), torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(InputError, match="negative eigenvalue"):
        GaussianOracle(Preserving(), torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InputError, match="positive weights"):
        MixtureOracle(Preserving(), torch.zeros(2, 1), torch.tensor([1.0, -1.0]), stds=1.0)
    with pytest.raises(InputError, match="either"):
        MixtureOracle(Preserving(), torch.zeros(2, 1))
    with pytest.raises(InputError, match="shape"):
        gaussian(Preserving())(torch.zeros(4, 3), torch.tensor(0.5))


@pytest.mark.parametrize("check", checks("process"))
@pytest.mark.parametrize(
    "process", [Preserving(), Exploding(), Straight(), Undeclared(), RootStart(), Joined()], ids=repr
)
def test_the_kit_passes_its_own_processes(check, process):
    check(process)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "velocity", "score", "edm"])
@pytest.mark.parametrize("std", [1.0, 0.3])
@pytest.mark.parametrize("check", checks("parametrization"))
def test_parametrizations_conform(check, prediction, std):
    check(Parametrization(prediction=prediction, data_std=std))


def test_run_checks_reports_every_check_with_its_error():
    class Wrong(Preserving):
        def alpha(self, t):
            return 0.5

    results = dict(run_checks(Wrong()))
    assert list(results) == [check.__name__ for check in checks("process")]
    assert results["check_options"] is None
    assert "Wrong.alpha(t) returned a float" in str(results["check_shapes"])


def test_a_plural_names_the_same_checks_and_a_misspelt_kind_none():
    assert checks("processes") == checks("process")
    with pytest.raises(UnknownComponentError, match="Did you mean 'process'"):
        checks("proces")

"""The likelihood on every installed Gaussian process: each term against its exact value. -s prints them."""

from __future__ import annotations

from typing import cast

import pytest
import torch

import itoflow
from itoflow import GaussianProcess
from itoflow.likelihood import decode, encode, likelihood
from itoflow.testing import MixtureOracle
from itoflow.testing.problems import Straight, seeded

POINTS = 200


def law(process: GaussianProcess, size: int) -> MixtureOracle:
    """Four correlated Gaussians of unequal weight at unit scale, the narrowest direction 0.22 wide."""
    generator = seeded(0)
    means = torch.randn(4, size, generator=generator, dtype=torch.float64)
    factor = torch.randn(4, size, size, generator=generator, dtype=torch.float64) * 0.3 / size**0.5
    covariances = factor @ factor.mT + 0.05 * torch.eye(size, dtype=torch.float64)
    return MixtureOracle(process, means, torch.tensor([0.4, 0.3, 0.2, 0.1]), covariances=covariances)


def processes() -> list[str]:
    return [n for n in itoflow.available("process") if isinstance(itoflow.create("process", n), GaussianProcess)]


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", processes())
def test_every_process_at_rtol_1e_6(name: str, size: int) -> None:
    """Solver error, from the oracle's own density at t_max to the exact one at t_min: at most 1e-5 nats at any point.

    The other two terms, printed: the prior in place of p at t_max, and p at t_min in place of that of the data. The
    three add up to all of the error, and where sigma(t_min) = 0 or alpha(t_max) = 0 a term vanishes.
    """
    process = cast(GaussianProcess, itoflow.create("process", name))
    field = law(process, size)
    x = field.sample(POINTS, generator=seeded(1))
    found = likelihood(field, x, rtol=1e-6)
    start, end = process.ends()
    late, early = field.log_prob(found.latent, process.t_max), field.log_prob(start.alpha * x, process.t_min)
    data = law(Straight(), size).log_prob(x, 0.0)
    solver, prior, smooth = late + found.change - early, found.prior - late, early + found.scale - data
    terms = {"solver": solver, "prior": prior, "t_min": smooth}
    figures = ", ".join(f"{k} {float(v.mean()):+.1e} (max {float(v.abs().max()):.1e})" for k, v in terms.items())
    print(f"\n{name}, {size}-D: {figures}; {found.evaluations} evaluations")
    assert float(solver.abs().max()) <= 1e-5
    torch.testing.assert_close(solver + prior + smooth, found.log_prob - data, rtol=0, atol=1e-10)
    if float(end.alpha) == 0:
        assert float(prior.abs().max()) < 1e-13
    if float(start.sigma) == 0:
        assert float(smooth.abs().max()) < 1e-12
    assert float(prior.abs().mean()) < 0.03
    assert float(smooth.abs().mean()) < 0.03


@pytest.mark.parametrize("name", processes())
def test_encoding_comes_back(name: str) -> None:
    """To 1e-5 of the latents' scale at rtol 1e-6."""
    process = cast(GaussianProcess, itoflow.create("process", name))
    field = law(process, 2)
    x = field.sample(50, generator=seeded(1))
    back = decode(field, encode(field, x, rtol=1e-6), rtol=1e-6)
    error = float((back - x).abs().max())
    print(f"\n{name}: round trip within {error:.1e}")
    assert error < 1e-5 * max(1.0, process.prior_std())


@pytest.mark.parametrize("name", processes())
def test_continuity_equation(name: str) -> None:
    """d log p / dt + div v + v . grad log p = 0 on oracle densities, to 1e-6 of its terms in float64, by autograd."""
    process = cast(GaussianProcess, itoflow.create("process", name))
    field, worst = law(process, 2), 0.0
    for t in torch.linspace(process.t_min, process.t_max, 13, dtype=torch.float64)[1:-1]:
        x = field.sample(50, float(t), generator=seeded(1)).requires_grad_()
        time = t.expand(50).clone().requires_grad_()
        change, gradient = torch.autograd.grad(field.log_prob(x, time).sum(), (time, x))
        v = field(x, t).velocity
        divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        along = (v * gradient).sum(1)
        residual = (change + divergence + along) / (1 + change.abs() + along.abs())
        worst = max(worst, float(residual.detach().abs().max()))
    print(f"\n{name}: residual {worst:.1e}")
    assert worst < 1e-6

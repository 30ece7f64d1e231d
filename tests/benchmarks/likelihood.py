r"""Likelihoods on oracle fields, term by term: mixtures in 2 and 8 dimensions, every installed Gaussian process.

    solver     log p_{t_max}(x_{t_max}) + int div v dt - log p_{t_min}(x_{t_min}): of rtol 1e-6, exact divergence
    prior      log prior - log p_{t_max}, at x_{t_max}: the mismatch of the prior
    t_min      log p_{t_min} + D log alpha - log p_0: the end that is left at t_min
    Hutchinson mean over 200 probes less exact, over its standard error, largest of 16 points (3.5 is passed by chance
               in 1 of 130 tables' rows)
    residual   largest |d log p/dt + div v + v . grad log p| over 1 and its terms, at 11 times, float64, autograd

    python tests/benchmarks/likelihood.py

about five minutes on one core.
"""

from __future__ import annotations

from typing import cast

import torch

import itoflow
from itoflow import GaussianProcess
from itoflow.likelihood import likelihood
from itoflow.testing import MixtureOracle
from itoflow.testing.problems import Straight, seeded

POINTS, PROBES, PROBED = 200, 200, 16


def law(process: GaussianProcess, size: int) -> MixtureOracle:
    """Four correlated Gaussians of unequal weight at unit scale."""
    generator = seeded(0)
    means = torch.randn(4, size, generator=generator, dtype=torch.float64)
    factor = torch.randn(4, size, size, generator=generator, dtype=torch.float64) * 0.3 / size**0.5
    covariances = factor @ factor.mT + 0.05 * torch.eye(size, dtype=torch.float64)
    return MixtureOracle(process, means, torch.tensor([0.4, 0.3, 0.2, 0.1]), covariances=covariances)


def terms(field: MixtureOracle, process: GaussianProcess, size: int) -> tuple[list[torch.Tensor], int]:
    """Solver, prior and t_min terms of each point, and the number of evaluations."""
    x = field.sample(POINTS, generator=seeded(1))
    found = likelihood(field, x, rtol=1e-6)
    start = process.ends()[0]
    late, early = field.log_prob(found.latent, process.t_max), field.log_prob(start.alpha * x, process.t_min)
    data = law(Straight(), size).log_prob(x, 0.0)
    return [late + found.change - early, found.prior - late, early + found.scale - data], found.evaluations


def hutchinson(field: MixtureOracle) -> float:
    """The largest deviation of the mean, in standard errors."""
    x = field.sample(PROBED, generator=seeded(2))
    exact = likelihood(field, x, rtol=1e-5).log_prob
    repeated = x.repeat(PROBES, 1)
    found = likelihood(field, repeated, rtol=1e-5, batch=len(repeated), divergence="hutchinson", generator=seeded(3))
    draws = found.log_prob.view(PROBES, PROBED)
    return float(((draws.mean(0) - exact).abs() / (draws.std(0) / PROBES**0.5 + 1e-6)).max())


def residual(field: MixtureOracle, process: GaussianProcess, size: int) -> float:
    """The largest relative residual of the continuity equation."""
    worst = 0.0
    for t in torch.linspace(process.t_min, process.t_max, 13, dtype=torch.float64)[1:-1]:
        x = field.sample(50, float(t), generator=seeded(4)).requires_grad_()
        time = t.expand(50).clone().requires_grad_()
        change, gradient = torch.autograd.grad(field.log_prob(x, time).sum(), (time, x))
        v = field(x, t).velocity
        parts = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(size)]
        along = (v * gradient).sum(1)
        relative = (change + torch.stack(parts).sum(0) + along) / (1 + change.abs() + along.abs())
        worst = max(worst, float(relative.detach().abs().max()))
    return worst


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    names = [n for n in itoflow.available("process") if isinstance(itoflow.create("process", n), GaussianProcess)]
    print("nats per point; mean (largest)")
    print(
        f"{'process':<15}{'D':>2}{'solver':>20}{'prior':>20}{'t_min':>20}{'Hutchinson':>12}{'residual':>10}{'calls':>7}"
    )
    for name in names:
        process = cast(GaussianProcess, itoflow.create("process", name))
        for size in (2, 8):
            field = law(process, size)
            values, calls = terms(field, process, size)
            cells = "".join(f"{float(v.mean()):>+11.1e} ({float(v.abs().max()):.0e})" for v in values)
            tail = f"{hutchinson(field):>12.1f}{residual(field, process, size):>10.0e}{calls:>7}"
            print(f"{name:<15}{size:>2}{cells}{tail}", flush=True)


if __name__ == "__main__":
    main()

r"""The family of reverse-time dynamics shares every marginal.

For any strength eta(t), dx = [velocity - eta^2/2 score] dt + eta dw with dt < 0 has the marginals p_t that velocity and
score belong to: eta = 0 is the probability-flow ODE, eta = g the reverse SDE. Here eta runs over multiples of g, from
exact draws of p at t_max to t_min, and the law of x is compared with the exact one on the way.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, appendix B.5.
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023),
    https://arxiv.org/abs/2303.08797, theorem 18.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from itoflow.dynamics import ReverseSDE, simulate
from itoflow.grids import time_grid
from itoflow.interpolant import InterpolantProcess
from itoflow.process import GaussianProcess, ProcessSpec
from itoflow.testing.assertions import expect
from itoflow.testing.interpolants import InterpolantOracle, strength
from itoflow.testing.oracles import MixtureOracle

STRENGTHS = (0.0, 0.5, 1.0, 2.0)
"""Multiples of g."""
DRAWS, STEPS = 3000, 300
STEP_ERROR = 0.02
"""What the first-order steps may move the distribution function by."""
_RATE = 50.0
"""Largest eta^2 / Var(x_t), per unit of t: where g is infinite the strength is cut, which no marginal notices."""

_MEANS = torch.tensor([[1.2], [-1.0], [0.1]], dtype=torch.float64)


def check_marginals(process: ProcessSpec) -> None:
    """ODE and SDEs of strength g/2, g, 2g have p_t at t_min and on the way (Kolmogorov-Smirnov, one coordinate).

    3000 draws, 300 Euler-Maruyama steps on the process's own grid, a mixture of three Gaussians. Allowance: 0.02 for
    the steps, and what chance exceeds once in 10^6.
    """
    oracle = _oracle(process)
    if oracle is None:
        return
    grid = time_grid(process, process.grid, STEPS + 1)
    stops = [STEPS // 3, 2 * STEPS // 3, STEPS]
    limit = math.sqrt(math.log(2 / 1e-6) / 2 / DRAWS) + STEP_ERROR
    for multiple in STRENGTHS if strength(process, torch.tensor([0.5], dtype=torch.float64)) is not None else (0.0,):
        generator = torch.Generator().manual_seed(11)
        x, begin = oracle.sample(DRAWS, process.t_max, generator=generator), 0
        dynamics = ReverseSDE(oracle, eta=_eta(process, oracle, multiple))
        for stop in stops:
            x, begin = simulate(dynamics, x, grid[begin : stop + 1], generator=generator), stop
            gap = distribution_gap(x, oracle, grid[stop])
            expect(
                gap <= limit,
                f"{type(process).__name__}: with strength {multiple:g} g, the law of x at t = {grid[stop]:.4g} differs "
                f"from p_t by {gap:.3g} in distribution; {limit:.3g} is allowed. Velocity and score must belong to one "
                "p_t: see d_alpha, d_sigma and diffusion.",
            )


def distribution_gap(x: Tensor, oracle: MixtureOracle | InterpolantOracle, t: float) -> float:
    """Kolmogorov-Smirnov distance of draws x (N, 1) from the oracle's p_t."""
    centre, width = x.mean(), 6 * x.std()
    points = torch.linspace(float(centre - width), float(centre + width), 4001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(oracle.log_prob(points[:, None], t).exp(), points)
    ordered, step = x[:, 0].sort().values, torch.arange(len(x), dtype=torch.float64)
    expected = cumulative[torch.searchsorted(points, ordered).clamp(1, len(points) - 1) - 1]
    gaps = torch.maximum((expected - step / len(x)).abs(), ((step + 1) / len(x) - expected).abs())
    return float(gaps.max())


def _oracle(process: ProcessSpec) -> MixtureOracle | InterpolantOracle | None:
    if isinstance(process, InterpolantProcess):
        return InterpolantOracle(process, _MEANS, torch.tensor([[2.0], [-0.5]]), (0.3, 0.4))
    if isinstance(process, GaussianProcess):
        return MixtureOracle(process, _MEANS, torch.tensor([0.5, 0.3, 0.2]), stds=0.3)
    return None


def _eta(
    process: ProcessSpec, oracle: MixtureOracle | InterpolantOracle, multiple: float
) -> Callable[[Tensor], Tensor] | None:
    def eta(t: Tensor) -> Tensor:
        if multiple == 0:
            return torch.zeros_like(t)
        if isinstance(process, InterpolantProcess):
            return multiple * process.diffusion(t)
        assert isinstance(process, GaussianProcess)
        spread = (process.alpha(t) * oracle.data_std).square() + process.sigma(t).square()
        return torch.minimum(multiple * process.diffusion(t), (_RATE * spread).sqrt())

    return eta

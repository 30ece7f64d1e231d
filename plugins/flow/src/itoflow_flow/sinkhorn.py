r"""Entropic optimal transport: pairs drawn from the plan that trades distance against entropy.

    minimise  <P, C> - epsilon H(P)   over P >= 0 with uniform marginals,   C_ij = |x0_i - x1_j|^2

solved by Sinkhorn's iteration on the logarithms of P = exp((f + g - C) / epsilon):

    f_i <- -epsilon log mean_j exp((g_j - C_ij) / epsilon),   g_j likewise over i,

until the columns are balanced to a tolerance once the rows are exactly. x0_i's partner is then drawn from row i, so
x1's marginal holds on average. Towards epsilon = 0 the plan is that of
`optimal-transport`, and large ones give independent pairs. For the Brownian bridge of diffusion s, epsilon = 2 s^2
makes the plan Schroedinger's.

References:
    Sinkhorn Distances: Lightspeed Computation of Optimal Transport (Cuturi, 2013), https://arxiv.org/abs/1306.0895.
    Computational Optimal Transport (Peyre and Cuturi, 2019), https://arxiv.org/abs/1803.00567, section 4.4 (log
    domain).
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import ItoflowWarning
from itoflow_flow.coupling import BlockCoupling


class Sinkhorn(BlockCoupling):
    """Partners drawn from the entropic plan, per block."""

    epsilon: Annotated[float, Gt(0)] = 0.05
    """Weight of the entropy: in units of the mean of C, or if not relative in data units squared."""
    relative: bool = True
    """Whether epsilon is in units of the mean of C."""
    tolerance: Annotated[float, Gt(0)] = 0.01
    """Relative error of the column marginals at which the iteration stops: how unevenly the x1 are used on average."""
    iterations: Annotated[int, Ge(1)] = 1000
    """Most Sinkhorn iterations; each scales both marginals once. A warning says when they did not suffice."""

    def match(self, cost: Tensor, generator: torch.Generator | None) -> Tensor:
        """One column of each row, drawn from the plan."""
        return _draw(self.log_plan(cost), generator)

    def log_plan(self, cost: Tensor) -> Tensor:
        """log P for cost (N, N), up to a constant: (N, N), float64. Warns where its columns stay unbalanced."""
        scaled = -cost / (self.epsilon * cost.mean().clamp(min=1e-300) if self.relative else self.epsilon)
        g = torch.zeros(cost.shape[1], dtype=cost.dtype, device=cost.device)
        for _ in range(self.iterations):
            f = -(scaled + g).logsumexp(1)
            columns = (scaled + f[:, None]).logsumexp(0) + g  # log of N times the marginals
            error = float(columns.abs().max())
            if error <= self.tolerance:
                return scaled + f[:, None] + g
            g = g - columns
        warnings.warn(
            f"Sinkhorn's plan is not balanced after iterations={self.iterations}: some x1 is used too often or too "
            f"rarely by a factor of {math.exp(min(error, 99)):.3g}; tolerance={self.tolerance:g}. Raise epsilon (now "
            f"{self.epsilon:g}) or iterations, or use 'optimal-transport'.",
            ItoflowWarning,
            stacklevel=4,
        )
        return scaled - (scaled + g).logsumexp(1)[:, None] + g


def _draw(log_plan: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column of each row, with the row's probabilities: (N,), int64."""
    rows = log_plan.softmax(1)
    if generator is None:
        return torch.multinomial(rows, 1)[:, 0]
    return torch.multinomial(rows.to(generator.device), 1, generator=generator)[:, 0].to(log_plan.device)

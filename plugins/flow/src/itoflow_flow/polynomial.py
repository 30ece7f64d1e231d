r"""A straight line that is run through at a polynomial pace.

    x_t = (1 - t)^n x_0 + (1 - (1 - t)^n) eps
    u(x_t | x_0, eps) = n (1 - t)^(n - 1) (eps - x_0)

Here data is at t = 0 and noise at t = 1. As taught, with data at tau = 1 = 1 - t:

    x_tau = tau^n x_data + (1 - tau^n) x_base,   u_tau = n tau^(n - 1) (x_data - x_base) = -u_t.

n = 1 is the linear path; a larger n leaves the noise slowly and reaches the data fast. The velocity is finite at both
ends but vanishes at t = 1 for n > 1, where it determines nothing: so t_max is below 1, which leaves a signal of
alpha = (1 - t_max)^n, 1e-6 by default, in the prior.

References:
    Flow Matching Guide and Code (Lipman et al., 2024), https://arxiv.org/abs/2412.06264, and
    its PolynomialConvexScheduler.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from itoflow import GaussianProcess


class Polynomial(GaussianProcess):
    """alpha = (1 - t)^n, sigma = 1 - alpha; prior N(0, I) up to (1 - t_max)^n."""

    power: Annotated[float, Ge(1), Le(10)] = 2.0
    """n."""
    t_max: Annotated[float, Gt(0), Le(1)] = 0.999
    """Prior end of the time interval; at 1 the velocity is 0."""

    def alpha(self, t: Tensor) -> Tensor:
        """(1 - t)^n."""
        return (1 - t) ** self.power

    def sigma(self, t: Tensor) -> Tensor:
        """1 - (1 - t)^n, without cancellation at small t."""
        return -torch.expm1(self.power * torch.log1p(-t))

    def d_alpha(self, t: Tensor) -> Tensor:
        """-n (1 - t)^(n - 1)."""
        return -self.power * (1 - t) ** (self.power - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        """n (1 - t)^(n - 1)."""
        return -self.d_alpha(t)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """1 - (1 + exp(-lambda/2))^(-1/n), clipped to [t_min, t_max]."""
        ratio = torch.exp(-log_snr.to(torch.float64) / 2)
        return (-torch.expm1(-torch.log1p(ratio) / self.power)).clamp(self.t_min, self.t_max)

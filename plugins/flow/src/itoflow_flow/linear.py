r"""The straight line between data and noise: the path of rectified flow, and the optimal-transport path of flow
matching.

    x_t = (1 - t) x_0 + (s + (1 - s) t) eps,   s = sigma_min
    u(x_t | x_0, eps) = dx_t/dt = (1 - s) eps - x_0

Here data is at t = 0 and noise at t = 1. Flow matching as taught runs the other way, with its base at tau = 0 and its
data at tau = 1: with tau = 1 - t,

    x_tau = tau x_data + (1 - (1 - s) tau) x_base,   u_tau = x_data - (1 - s) x_base = -u_t.

The velocity is finite at both ends, so t covers all of [0, 1]: g is infinite at t = 1, where alpha = 0, and no x_0 is
determined there by noise or score (`compose` lowers t_max for these predictions).

References:
    Flow Matching for Generative Modeling (Lipman et al., 2023), https://arxiv.org/abs/2210.02747, section 4.1, example
    II. Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023),
    https://arxiv.org/abs/2209.03003, equation 1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from itoflow import GaussianProcess


class Linear(GaussianProcess):
    """alpha = 1 - t, sigma = s + (1 - s) t; prior N(0, I)."""

    sigma_min: Annotated[float, Ge(0), Lt(1)] = 0.0
    """s, the noise that is left on the data at t = 0, data units."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """s + (1 - s) t."""
        return self.sigma_min + (1 - self.sigma_min) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """1 - s."""
        return torch.full_like(t, 1 - self.sigma_min)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with sigma/alpha = exp(-lambda/2): w / (1 + w), w = exp(-lambda/2) - s; clipped to [t_min, t_max]."""
        w = torch.exp(-log_snr.to(torch.float64) / 2).clamp(max=1e300) - self.sigma_min
        return (w / (1 + w)).clamp(self.t_min, self.t_max)

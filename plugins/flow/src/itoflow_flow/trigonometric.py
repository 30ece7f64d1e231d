r"""A quarter of a circle from data to noise: the variance-preserving path of flow matching.

    x_t = cos(pi t / 2) x_0 + sin(pi t / 2) eps
    u(x_t | x_0, eps) = pi/2 (cos(pi t / 2) eps - sin(pi t / 2) x_0)

Here data is at t = 0 and noise at t = 1. As taught, with data at tau = 1 = 1 - t:

    x_tau = sin(pi tau / 2) x_data + cos(pi tau / 2) x_base,   u_tau = -u_t.

alpha^2 + sigma^2 = 1, so data at unit scale keep their variance, and u / (pi/2) is the prediction `v`. The velocity
is finite at both ends; g is infinite at t = 1, where alpha = 0.

References:
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023),
    https://arxiv.org/abs/2303.08797.
    Building Normalizing Flows with Stochastic Interpolants (Albergo and Vanden-Eijnden, 2023),
    https://arxiv.org/abs/2209.15571.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itoflow import GaussianProcess


class Trigonometric(GaussianProcess):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2); prior N(0, I)."""

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2), written as a sine of what is left to t = 1 so that alpha(1) = 0 exactly."""
        return torch.sin(math.pi / 2 * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """-pi/2 sin(pi t / 2)."""
        return -math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """pi/2 cos(pi t / 2)."""
        return math.pi / 2 * self.alpha(t)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """2/pi arctan(exp(-lambda/2)), clipped to [t_min, t_max]."""
        t = torch.atan(torch.exp(-log_snr.to(torch.float64) / 2)) * (2 / math.pi)
        return t.clamp(self.t_min, self.t_max)

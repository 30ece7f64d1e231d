r"""Stochastic interpolants between two data sets, with noise in between or without.

    x_t = alpha(t) x_0 + beta(t) x_1 + s sin^2(pi t) z,   z ~ N(0, I),   s = sigma
    linear          alpha = 1 - t,          beta = t
    trigonometric   alpha = cos(pi t / 2),  beta = sin(pi t / 2)
    u(x_t | x_0, x_1, z) = d_alpha x_0 + d_beta x_1 + s pi sin(2 pi t) z

Here x_0 is at t = 0 and x_1 at t = 1. In the paper's orientation, tau = 1 - t, they are called x_1 and x_0, and

    I_tau = beta(1 - tau) x_0 + alpha(1 - tau) x_1 + ...,   dI/dtau = -u.

u is finite at both ends. With s = 0 the paths are deterministic given their ends, and a velocity alone can be learnt.
With s > 0 the score exists inside (0, 1); the SDEs have strength g = s sqrt(2 pi) sin(pi t), with which g^2 score is
finite at both ends. The choice of g is free: every strength has the marginals p_t.

References:
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023),
    https://arxiv.org/abs/2303.08797, definition 1, table 4 for the choices of alpha, beta and gamma.
    Building Normalizing Flows with Stochastic Interpolants (Albergo and Vanden-Eijnden, 2023),
    https://arxiv.org/abs/2209.15571, for s = 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from itoflow import IncompatibleError, InterpolantProcess


class Interpolant(InterpolantProcess):
    """alpha, beta along a line or a quarter of a circle, gamma = s sin^2(pi t)."""

    curve: Literal["linear", "trigonometric"] = "linear"
    """alpha and beta."""
    sigma: Annotated[float, Ge(0)] = 0.0
    """s, the standard deviation of the noise half way, data units."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t, or cos(pi t / 2), written as a sine so that alpha(1) = 0 exactly."""
        return 1 - t if self.curve == "linear" else torch.sin(math.pi / 2 * (1 - t))

    def beta(self, t: Tensor) -> Tensor:
        """t, or sin(pi t / 2)."""
        return t.clone() if self.curve == "linear" else torch.sin(math.pi / 2 * t)

    def gamma(self, t: Tensor) -> Tensor:
        """s sin^2(pi t), as sin(pi t) sin(pi (1 - t)) so that gamma(1) = 0 exactly."""
        return self.sigma * torch.sin(math.pi * t) * torch.sin(math.pi * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        """-1, or -pi/2 sin(pi t / 2)."""
        return -torch.ones_like(t) if self.curve == "linear" else -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_beta(self, t: Tensor) -> Tensor:
        """1, or pi/2 cos(pi t / 2)."""
        return torch.ones_like(t) if self.curve == "linear" else math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def d_gamma(self, t: Tensor) -> Tensor:
        """s pi sin(2 pi t)."""
        return self.sigma * math.pi * torch.sin(2 * math.pi * t)

    def diffusion(self, t: Tensor) -> Tensor:
        """s sqrt(2 pi) sin(pi t).

        Raises:
            IncompatibleError: s = 0.
        """
        if self.sigma == 0:
            raise IncompatibleError(
                "Interpolant(sigma=0) has no noise between its ends, so that no score can be learnt and no SDE is "
                "known. Use a sampler without noise, e.g. 'heun', or sigma > 0."
            )
        return (2 * math.pi * self.sigma * self.gamma(t).clamp(min=0)).sqrt()

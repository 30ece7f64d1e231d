r"""The sub-variance-preserving SDE: the drift of VP, and a variance that is bounded by VP's at every time.

    dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw
    alpha = exp(-B/2),   sigma = 1 - exp(-B),   B(t) = int_0^t beta

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equations 12 and 29, appendix B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itoflow_sde.vp import VP


class SubVP(VP):
    """dx = -beta/2 x dt + sqrt(beta (1 - exp(-2B))) dw with beta linear in t; prior N(0, I)."""

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B), without cancellation at small t."""
        return -torch.expm1(-self.integral(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        """beta exp(-B)."""
        return self.beta(t) * torch.exp(-self.integral(t))

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta (1 - exp(-2B)))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integral(t))).sqrt()

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with sigma/alpha = 2 sinh(B/2) = exp(-lambda/2), clipped to [t_min, t_max]."""
        return self._time(2 * torch.asinh(torch.exp(-log_snr.to(torch.float64) / 2) / 2))

r"""The variance preserving SDE, of which DDPM is the discretisation.

    dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,   beta(t) = beta_min + t (beta_max - beta_min)

With B(t) = int_0^t beta = beta_min t + (beta_max - beta_min) t^2 / 2,

    alpha = exp(-B/2),   sigma^2 = 1 - exp(-B),   so that alpha^2 + sigma^2 = 1.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equations 11 and 29-33, appendices B and C.
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from pydantic import model_validator
from torch import Tensor

from itoflow import GaussianProcess


class VP(GaussianProcess):
    """dx = -beta/2 x dt + sqrt(beta) dw with beta linear in t; prior N(0, I).

    Data are expected at unit scale: then the variance is 1 at all times. beta is per unit of t.
    """

    beta_min: Annotated[float, Gt(0)] = 0.1
    """beta(0)."""
    beta_max: Annotated[float, Gt(0)] = 20.0
    """beta(1), above beta_min."""
    t_min: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """Data end of the time interval; at 0 the score is singular."""

    @model_validator(mode="after")
    def _rising(self) -> VP:
        if self.beta_max <= self.beta_min:
            raise ValueError(f"beta_max = {self.beta_max} must be above beta_min = {self.beta_min}")
        return self

    def beta(self, t: Tensor) -> Tensor:
        """beta(t): the shape of t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t): the shape of t."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-self.integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B)), without cancellation at small t."""
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """-beta alpha / 2."""
        return -self.beta(t) * self.alpha(t) / 2

    def d_sigma(self, t: Tensor) -> Tensor:
        """beta exp(-B) / (2 sigma); infinite at t = 0."""
        return self.beta(t) * torch.exp(-self.integral(t)) / (2 * self.sigma(t))

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta), finite at both ends."""
        return self.beta(t).sqrt()

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with B(t) = log(1 + exp(-lambda)), clipped to [t_min, t_max]."""
        return self._time(torch.nn.functional.softplus(-log_snr.to(torch.float64), threshold=100))

    def _time(self, integral: Tensor) -> Tensor:
        """The t with this B(t), the positive root of a quadratic, clipped to [t_min, t_max]."""
        integral, slope = integral.clamp(max=1e300), self.beta_max - self.beta_min  # at infinity it is inf / inf
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return t.clamp(self.t_min, self.t_max)

    def prior_std(self) -> float:
        """1: the stationary law of the SDE, from which sigma(t_max) differs by alpha(t_max)^2 / 2."""
        return 1.0

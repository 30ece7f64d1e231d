r"""The variance exploding SDE, of which score matching with Langevin dynamics (NCSN) is the discretisation.

    dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw,   sigma(t) = sigma_min (sigma_max / sigma_min)^t
    alpha = 1

The kernel's standard deviation is sigma(t), which starts at sigma_min > 0: data at t = 0 carry that much noise.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equations 9 and 30, appendix C.
    Generative Modeling by Estimating Gradients of the Data Distribution (Song and Ermon, 2019),
    https://arxiv.org/abs/1907.05600.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from pydantic import model_validator
from torch import Tensor

from itoflow import GaussianProcess


class VE(GaussianProcess):
    """dx = g dw with sigma(t) geometric from sigma_min to sigma_max; prior N(0, sigma_max^2 I)."""

    sigma_min: Annotated[float, Gt(0)] = 0.01
    """sigma(0), data units."""
    sigma_max: Annotated[float, Gt(0)] = 50.0
    """sigma(1), data units: about the largest distance between two examples."""

    @model_validator(mode="after")
    def _rising(self) -> VE:
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"sigma_max = {self.sigma_max} must be above sigma_min = {self.sigma_min}")
        return self

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * torch.exp(self._rate * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """sigma log(sigma_max / sigma_min)."""
        return self._rate * self.sigma(t)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with sigma(t) = exp(-lambda/2), clipped to [t_min, t_max]."""
        t = (-log_snr.to(torch.float64) / 2 - math.log(self.sigma_min)) / self._rate
        return t.clamp(self.t_min, self.t_max)

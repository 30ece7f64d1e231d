r"""The cosine schedule in continuous time: the signal falls like a cosine, slowly at both ends.

    phi(t) = (pi/2) (t + s) / (1 + s),   alpha = cos(phi) / cos(phi(0)),   sigma^2 = 1 - alpha^2

alpha(1) = 0: no signal is left, and the forward SDE is singular there (g grows without bound). Noise then determines
no data, so `compose` lowers t_max for predictions that need it.

References:
    Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021),
    https://arxiv.org/abs/2102.09672, equation 17.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from itoflow import GaussianProcess
from itoflow.process import ALPHA_ZERO


class Cosine(GaussianProcess):
    """alpha = cos(phi) / cos(phi(0)), alpha^2 + sigma^2 = 1; prior N(0, I) for data at unit scale."""

    s: Annotated[float, Ge(0), Lt(1)] = 0.008
    """Offset that keeps the noise near t = 0 from being too small."""
    t_min: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """Data end of the time interval; at 0 the score is singular."""

    def _phase(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    @property
    def _speed(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        """cos(phi) / cos(phi(0)), written as a sine of what is left to t = 1 so that alpha(1) = 0 exactly."""
        return torch.sin(self._speed * (1 - t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2) = sqrt(sin(phi - phi(0)) sin(phi + phi(0))) / cos(phi(0)), without cancellation."""
        squared = torch.sin(self._speed * t) * torch.sin(self._speed * t + 2 * self._start)
        return squared.clamp(min=0).sqrt() / math.cos(self._start)

    def d_alpha(self, t: Tensor) -> Tensor:
        """-phi' sin(phi) / cos(phi(0))."""
        return -self._speed * torch.sin(self._phase(t)) / math.cos(self._start)

    def d_sigma(self, t: Tensor) -> Tensor:
        """-alpha d_alpha / sigma; infinite at t = 0 unless s = 0, where sigma = sin(phi)."""
        if self.s == 0:
            return self._speed * torch.cos(self._phase(t))
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(-2 d log alpha / dt) = sqrt(2 phi' tan(phi)); infinite at t = 1."""
        alpha = self.alpha(t)
        return torch.where(alpha > ALPHA_ZERO, (-2 * self.d_alpha(t) / alpha).sqrt(), math.inf)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with alpha^2 = 1 / (1 + exp(-lambda)), clipped to [t_min, t_max]; precise at both ends.

        phi - phi(0) by its sine and cosine, sin(phi - phi(0)) = (sigma cos(phi(0)))^2 / sin(phi + phi(0)).
        """
        sine, cosine = math.sin(self._start), math.cos(self._start)
        alpha2, sigma2 = torch.sigmoid(log_snr.to(torch.float64)), torch.sigmoid(-log_snr.to(torch.float64))
        sin, cos = (sine**2 + sigma2 * cosine**2).sqrt(), alpha2.sqrt() * cosine  # of phi
        ahead = sigma2 * cosine**2 / (sin * cosine + cos * sine).clamp(min=1e-300)
        t = torch.atan2(ahead, cos * cosine + sin * sine) / self._speed
        return t.clamp(self.t_min, self.t_max)

    def prior_std(self) -> float:
        """1, the standard deviation of x at t = 1."""
        return 1.0

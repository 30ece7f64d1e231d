r"""The process of EDM: no drift, noise of standard deviation proportional to time.

    alpha = 1,   sigma(t) = sigma_max t,   t from sigma_min / sigma_max to 1

so that the probability-flow ODE dx/d sigma = (x - x0) / sigma has trajectories that are nearly straight. In the
paper time is sigma itself, in data units; here t = sigma / sigma_max.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, table 1, last column.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from itoflow import GaussianProcess
from itoflow.process import GridName


class EDM(GaussianProcess):
    """alpha = 1, sigma = sigma_max t; prior N(0, sigma_max^2 I). The defaults suit data of deviation near 0.5."""

    grid: ClassVar[GridName] = "karras"

    sigma_max: Annotated[float, Gt(0)] = 80.0
    """sigma(1), the largest noise, data units."""
    t_min: Annotated[float, Ge(0), Lt(1)] = 0.002 / 80.0
    """Data end of the time interval; the smallest noise is sigma_max t_min, 0.002 data units."""

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_max t."""
        return self.sigma_max * t

    def d_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """sigma_max."""
        return torch.full_like(t, self.sigma_max)

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t with sigma(t) = exp(-lambda/2), clipped to [t_min, t_max]."""
        return (torch.exp(-log_snr.to(torch.float64) / 2) / self.sigma_max).clamp(self.t_min, self.t_max)

    def network_time(self, t: Tensor) -> Tensor:
        """log sigma, as in the paper, from 1e-4 to 1e4 data units mapped to [0, 1]: t itself crowds towards 0.

        From sigma(t_min) where that is less, and to sigma_max where that is more, so that no two times look alike.
        """
        low = math.log(min(1e-4, self.sigma_max * self.t_min or 1e-4))
        high = math.log(max(1e4, self.sigma_max))
        return (((t * self.sigma_max).log() - low) / (high - low)).clamp(0, 1)

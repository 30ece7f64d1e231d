r"""The transition of a Gaussian process between two times s < t, by which samplers are written.

    x_t = m x_s + G z,   m = alpha_t / alpha_s,   G^2 = sigma_t^2 - m^2 sigma_s^2                (forward)
    q(x_s | x_t, x0) has standard deviation sigma_s G / sigma_t                                  (posterior)

References:
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch

from itoflow import GaussianProcess, ProcessSpec


@dataclass(frozen=True)
class Transition:
    """alpha and sigma at t and at s < t, float64."""

    t: float
    s: float
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float

    @property
    def m(self) -> float:
        """Scale of x_s in x_t; 0 where no signal is left at t."""
        return self.alpha_t / self.alpha_s

    @property
    def snr(self) -> tuple[float, float]:
        """(alpha / sigma)^2 at t and at s: the clock of a unit strength."""
        return (self.alpha_t / self.sigma_t) ** 2, (self.alpha_s / self.sigma_s) ** 2

    @property
    def forward_std(self) -> float:
        """G, the standard deviation of x_t given x_s."""
        return math.sqrt(max(self.sigma_t**2 - (self.m * self.sigma_s) ** 2, 0.0))

    @property
    def posterior_std(self) -> float:
        """Standard deviation of x_s given x_t and x0."""
        return self.sigma_s * self.forward_std / self.sigma_t


def transitions(process: ProcessSpec, times: Sequence[float]) -> list[Transition]:
    """The transitions between successive times, which fall."""
    kernel = cast(GaussianProcess, process).kernel(torch.tensor(times, dtype=torch.float64))
    ends = list(zip(times, kernel.alpha.tolist(), kernel.sigma.tolist(), strict=True))
    return [Transition(t, s, at, st, as_, ss) for (t, at, st), (s, as_, ss) in pairwise(ends)]

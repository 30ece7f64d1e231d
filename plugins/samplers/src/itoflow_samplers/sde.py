r"""One-step methods for the reverse SDE dx = [f - g^2 score] dt + g dw, dt < 0.

Euler-Maruyama, with h = t_next - t < 0 and any strength eta(t) (g by default; all strengths share the marginals):

    x <- x + h [velocity - eta^2/2 score] + eta sqrt(-h) z                                      (1)

Reverse diffusion discretises the reverse SDE as the forward one is: with the forward transition x_t = m x_s + G z,

    x_s = (2 - m) x_t + G^2 score(x_t, t) + G z.                                                (2)

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equation 6 and appendix E (equation 46).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

from itoflow import GaussianProcess, ProcessSpec, Row, Table
from itoflow_samplers.stochastic import StochasticSampler
from itoflow_samplers.transitions import transitions


class EulerMaruyama(StochasticSampler):
    """Equation (1); one network evaluation a step; weak order 1.

    In the noisy half (sigma > alpha) the strength is held to eta^2 <= sigma^2 / |h|, a quarter of where the explicit
    step stops to contract: its score term keeps 1 - eta^2 |h| / (2 sigma^2) of the noise, no less than half. g exceeds
    it only near an end where g is infinite, or with very few steps.
    """

    requires: ClassVar[type] = ProcessSpec

    steps: Annotated[int, Ge(1)] = 500
    """Number of time steps."""
    strength: Annotated[float, Ge(0)] = 1.0
    """eta as a multiple of g: 1 is the reverse SDE, 0 the probability-flow ODE."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step: the velocity with its strength, and noise."""
        times, ending = self.times(process)
        g = process.diffusion(torch.tensor(times, dtype=torch.float64)).tolist()
        rows = []
        for (t, after), g_t in zip(pairwise(times), g, strict=False):
            h = after - t
            eta = min(self.strength * g_t, _limit(process, t, h)) if self.strength else 0.0
            clock = self.clock(1 - t, 1 - after) if eta else None
            rows.append(Row(t, b=(h,), c=eta * math.sqrt(-h), eta=eta, clock=clock))
        return Table((*rows, *ending))


class ReverseDiffusion(StochasticSampler):
    """Equation (2); one network evaluation a step; weak order 1."""

    steps: Annotated[int, Ge(1)] = 500
    """Number of time steps."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step: score = -eps / sigma."""
        times, ending = self.times(process)
        rows = []
        for step in transitions(process, times):
            std = step.forward_std
            b = (-(std**2) / step.sigma_t,)
            rows.append(Row(step.t, out="eps", a=2 - step.m, b=b, c=std, clock=self.clock(*step.snr)))
        return Table((*rows, *ending))


def _limit(process: ProcessSpec, t: float, h: float) -> float:
    """The largest strength of a step h from t."""
    if not isinstance(process, GaussianProcess):
        return math.inf
    k = process.kernel(t)
    sigma = float(k.sigma)
    return sigma / math.sqrt(-h) if sigma > float(k.alpha) else math.inf

r"""The stochastic step of a Gaussian process, exact but for what the network predicts.

For every strength k (k times g; 1 is the reverse SDE, 0 the probability-flow ODE) the marginals p_t are the same. With
l = log(alpha / sigma), h = l_1 - l_0, m = 1 + k^2 the step is

    x_1 = (sigma_1/sigma_0) e^(-k^2 h) x_0 + alpha_1 int m e^(-m (l_1 - l)) x0 dl
          + sigma_1 sqrt(1 - e^(-2 k^2 h)) z.                                                  (1)

It is finite at both ends of time: with no signal left at the start (l_0 = -inf) and k > 0, nothing is kept of x_0. The
noise is an increment of a Brownian motion in the clock (alpha / sigma)^(2 k^2), divided by its standard deviation, so
that two steps with their own noise are one step with the sum, and a path stays itself when the steps change.

With x0 replaced by a polynomial through the last estimates, (1) gives one coefficient for each:

    w_j = alpha_1 int m e^(-m (l_1 - l)) L_j(v(l)) dl,                                         (2)

L_j the Lagrange polynomial in a variable v: l itself, or theta = arctan(sigma / alpha), which is finite at both ends.

References:
    SA-Solver (Xue et al., 2023), https://arxiv.org/abs/2309.05019, proposition 4.2 for (1), equation 14 for (2).
    SDE-DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095, appendix A, for k = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Le
from pydantic import model_validator

from itoflow import GaussianProcess, TableSampler
from itoflow.process import ALPHA_ZERO
from itoflow_samplers.frames import _gauss_legendre
from itoflow_samplers.transitions import Transition

NoiseName = Literal["independent", "brownian"]
Variable = Literal["angle", "log-snr"]
_DECAYED = 40.0
"""e^-40 is below float64's resolution of 1: what lies further back than this has no weight in (2)."""


class StochasticSampler(TableSampler):
    """A table with fresh noise in every step."""

    requires: ClassVar[type] = GaussianProcess

    noise: NoiseName = "independent"
    """independent: drawn anew for every step; brownian: increments of one path, which other numbers of steps keep."""

    def clock(self, start: float, end: float) -> tuple[float, float] | None:
        """Of a row whose noise is the path's increment from `start` to `end`."""
        return (start, end) if self.noise == "brownian" and start < end else None


class StrongSampler(StochasticSampler):
    """A stochastic sampler that takes the exact step (1) with any strength."""

    order: Annotated[int, Ge(1), Le(4)] | None = None
    """How many estimates of x0 a step uses; None is as many as the method does best with, and as there are steps."""
    strength: Annotated[float, Ge(0), Le(5)] = 1.0
    """k, the diffusion as a multiple of g: 1 is the reverse SDE, 0 the probability-flow ODE."""

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.order is not None and self.order > self.steps:
            raise ValueError(f"order = {self.order} needs at least as many steps. Given: steps = {self.steps}")
        return self

    def step(self, transition: Transition) -> ExactStep:
        """The exact step with this strength."""
        return ExactStep(transition, self.strength)

    def stretch(self, step: ExactStep) -> tuple[float, float] | None:
        """The clock of a step."""
        return self.clock(*step.clock) if self.strength else None


class ExactStep:
    """Equation (1) from t to s < t.

    Attributes:
        kept: what multiplies x_0.
        gain: 1 - e^(-m h); alpha_1 times it is the sum of all w_j.
        std: of the noise.
        h: l_1 - l_0, infinite from a start without signal.
        start, end: l_0 and l_1.
    """

    def __init__(self, transition: Transition, strength: float) -> None:
        self.transition, self.k2 = transition, strength**2
        self.start = half_log_snr(transition.alpha_t, transition.sigma_t)
        self.end = half_log_snr(transition.alpha_s, transition.sigma_s)
        self.h = self.end - self.start
        self.kept = transition.sigma_s / transition.sigma_t * (math.exp(-self.k2 * self.h) if self.k2 else 1.0)
        self.gain = -math.expm1(-(1 + self.k2) * self.h)
        self.std = transition.sigma_s * math.sqrt(-math.expm1(-2 * self.k2 * self.h)) if self.k2 else 0.0

    @property
    def clock(self) -> tuple[float, float]:
        """(alpha / sigma)^(2 k^2) at both ends."""
        return math.exp(2 * self.k2 * self.start), math.exp(2 * self.k2 * self.end)

    def weights(self, known: Sequence[float], variable: Variable = "log-snr") -> tuple[float, ...]:
        """w_j of equation (2) for x0 known at the half log-SNRs given, in their order.

        Those where no signal was left (-inf) get no weight in the variable `log-snr`, unless there is no other.
        """
        use = [value for value in known if variable == "angle" or value > -math.inf]
        if len(use) <= 1:
            only = known.index(use[0]) if use else 0
            return tuple(self.transition.alpha_s * self.gain if j == only else 0.0 for j in range(len(known)))
        m = 1 + self.k2
        start = max(self.start, self.end - _DECAYED / m)
        nodes, measure = _gauss_legendre()
        half_log_snrs = (start + self.end) / 2 + (self.end - start) / 2 * nodes
        density = m * torch.exp(-m * (self.end - half_log_snrs)) * measure * (self.end - start) / 2
        at, places = _in(variable, half_log_snrs), _in(variable, torch.tensor(use, dtype=torch.float64))
        found = {
            value: float((density * _lagrange(at, places, j)).sum()) * self.transition.alpha_s
            for j, value in enumerate(use)
        }
        return tuple(found.get(value, 0.0) for value in known)


def half_log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), -inf where no signal is left."""
    return math.log(alpha / sigma) if alpha > ALPHA_ZERO else -math.inf


def _in(variable: Variable, value: torch.Tensor) -> torch.Tensor:
    return torch.atan(torch.exp(-value)) if variable == "angle" else value


def _lagrange(at: torch.Tensor, places: torch.Tensor, j: int) -> torch.Tensor:
    others = torch.cat([places[:j], places[j + 1 :]])
    ratios: torch.Tensor = (at[:, None] - others) / (places[j] - others)
    return ratios.prod(1)

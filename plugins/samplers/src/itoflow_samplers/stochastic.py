r"""The stochastic step of a Gaussian process, exact but for what the network predicts.

For every strength k (k times g; 1 is the reverse SDE, 0 the probability-flow ODE) the marginals p_t are the same. With
l = log(alpha / sigma), h = l_1 - l_0, m = 1 + k^2 the step is

    x_1 = (sigma_1/sigma_0) e^(-k^2 h) x_0 + alpha_1 int m e^(-m (l_1 - l)) x0 dl
          + sigma_1 sqrt(1 - e^(-2 k^2 h)) z.                                                  (1)

It is finite at both ends of time: with no signal left at the start (l_0 = -inf) and k > 0, nothing is kept of x_0. With
x0 a polynomial through the last estimates, (1) gives one coefficient for each,

    w_j = alpha_1 int m e^(-m (l_1 - l)) L_j(v(l)) dl,                                         (2)

L_j the Lagrange polynomial in a variable v: l itself, or arctan(sigma / alpha), which is finite at both ends.

The same step in the frame v, x = n y with n^2 = sigma^2 + c^2 alpha^2, theta = arctan(sigma / (c alpha)) and
F = (sigma x0 - c^2 alpha eps) / (c n): there the score is -x/n^2 + alpha c F / (sigma n), so that
dy = m F dw - y dM + sqrt(2 dM) dW with w = -theta and M = k^2 log cos theta, and

    y_1 = r y_0 + m int (cos theta / cos theta_1)^(k^2) F dtheta + sqrt(1 - r^2) z,
    r = (cos theta_0 / cos theta_1)^(k^2).                                                     (3)

For Gaussian data of standard deviation c, F = 0 and (3) is the exact transition, whatever the step.

The noise of (1) and of (3) is an increment of a Brownian motion in the clocks (alpha / sigma)^(2 k^2) and
cos(theta)^(2 k^2), divided by its standard deviation: two steps with their own noise are one step with the sum, so
that a path stays itself when the steps change.

References:
    SA-Solver (Xue et al., 2023), https://arxiv.org/abs/2309.05019, proposition 4.2 for (1), equation 14 for (2).
    DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095, appendix A, for (1) at k = 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le

from itoflow import GaussianProcess, TableSampler
from itoflow_samplers.frames import Frame, Point, distinct, lagrange_integrals, quadrature
from itoflow_samplers.ordered import OrderedSampler

NoiseName = Literal["independent", "brownian"]
Variable = Literal["angle", "log-snr"]
_LARGEST_EXPONENT = 700.0
"""Of a clock, just below where float64 ends; what lies beyond is drawn apart from the path."""
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


class StrongSampler(StochasticSampler, OrderedSampler):
    """A stochastic sampler that takes an exact step with any strength."""

    strength: Annotated[float, Ge(0), Le(5)] = 1.0
    """k, the diffusion as a multiple of g: 1 is the reverse SDE, 0 the probability-flow ODE."""

    def stretch(self, step: ExactStep) -> tuple[float, float] | None:
        """The clock of a step."""
        return self.clock(*step.clock) if step.std else None


class ExactStep(ABC):
    """A step with what the network predicts as a polynomial through known values.

    Attributes:
        kept: what multiplies x_0.
        std: of the noise.
        clock: of the noise, at both ends.
    """

    kept: float
    std: float
    clock: tuple[float, float]

    @abstractmethod
    def weights(self, known: Sequence[Point]) -> tuple[float, ...]:
        """What multiplies the values known at these points, in their order."""


class LogSNRStep(ExactStep):
    """Equations (1) and (2).

    Attributes:
        h: l_1 - l_0, infinite from a start without signal, and 0 where the end has none either.
        gain: 1 - e^(-m h); alpha_1 times it is the sum of all w_j.
    """

    def __init__(self, start: Point, end: Point, strength: float, variable: Variable = "log-snr") -> None:
        k2 = strength**2
        self.m, self.variable, self.alpha = 1 + k2, variable, end.alpha
        self.start, self.end = start.half_log_snr, end.half_log_snr
        self.h = self.end - self.start if self.end > -math.inf else 0.0
        self.kept = end.sigma / start.sigma * (math.exp(-k2 * self.h) if k2 else 1.0)
        self.gain = -math.expm1(-self.m * self.h)
        self.std = end.sigma * math.sqrt(-math.expm1(-2 * k2 * self.h)) if k2 else 0.0
        first, last = (math.exp(min(2 * k2 * at, _LARGEST_EXPONENT)) for at in (self.start, self.end))
        self.clock = first, last

    def weights(self, known: Sequence[Point]) -> tuple[float, ...]:
        """w_j of x0; in the variable `log-snr`, points without signal get none unless there is no other."""
        if not self.gain:
            return (0.0,) * len(known)

        def place(half_log_snr: float) -> float:
            return math.atan(math.exp(-half_log_snr)) if self.variable == "angle" else half_log_snr

        start, places = max(self.start, self.end - _DECAYED / self.m), [place(at.half_log_snr) for at in known]
        use = distinct(places, place(self.end) - place(start))
        if len(use) <= 1:
            only = use[0] if use else 0
            return tuple(self.alpha * self.gain if j == only else 0.0 for j in range(len(known)))
        nodes, measure = quadrature(start, self.end)
        density = self.alpha * self.m * torch.exp(-self.m * (self.end - nodes)) * measure
        nodes = torch.atan(torch.exp(-nodes)) if self.variable == "angle" else nodes
        integrals = lagrange_integrals(density, nodes, [places[j] for j in use])
        found = dict(zip(use, integrals, strict=True))
        return tuple(found.get(j, 0.0) for j in range(len(known)))


class AngleStep(ExactStep):
    """Equation (3)."""

    def __init__(self, start: Point, end: Point, strength: float, c: float) -> None:
        self.k2, self.frame = strength**2, Frame("v", c)
        self.n = self.frame.scale(end)
        self.thetas = -self.frame.w(start), -self.frame.w(end)
        now, after = (c * at.alpha / self.frame.scale(at) for at in (start, end))  # cos theta
        self.after = after
        r = (now / after) ** self.k2 if after else 1.0
        self.kept = self.n / self.frame.scale(start) * r
        self.std = self.n * math.sqrt(max(1 - r**2, 0.0)) if self.k2 else 0.0
        self.clock = now ** (2 * self.k2), after ** (2 * self.k2)

    def weights(self, known: Sequence[Point]) -> tuple[float, ...]:
        """What multiplies F / unit of the frame."""
        if not self.after:  # no signal at either end: the angle stays
            return (0.0,) * len(known)
        theta, measure = quadrature(self.thetas[1], self.thetas[0])
        density = self.n * (1 + self.k2) * (theta.cos() / self.after).clamp(min=0) ** self.k2 * measure
        places = [-self.frame.w(at) for at in known]
        use = distinct(places, self.thetas[0] - self.thetas[1])
        found = dict(zip(use, lagrange_integrals(density, theta, [places[j] for j in use]), strict=True))
        return tuple(found.get(j, 0.0) * self.frame.call(at)[2] for j, at in enumerate(known))

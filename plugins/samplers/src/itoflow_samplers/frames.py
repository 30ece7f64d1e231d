r"""Frames: variables in which the probability-flow ODE is dz = F dw, so that a linear method has only F to sum.

Every Gaussian process has the same flow up to scale and time: with y = x / alpha and s = sigma / alpha it is
dy/ds = eps. In a frame x = n z, and z moves by what the network predicts alone:

    name        n                               w                F
    velocity    1                               t                dx/dt                                 (1)
    noise       alpha                           s                eps                                   (2)
    data        sigma                           1/s              x0                                    (3)
    v           sqrt(sigma^2 + c^2 alpha^2)     -arctan(s/c)     (sigma x0 - c^2 alpha eps) / (c n)    (4)

(1) holds for every process. (4) turns noise into data at a constant rate: for c = 1 and alpha^2 + sigma^2 = 1 F is the
v-prediction, for c the standard deviation of the data it is EDM's network, and Gaussian data of that deviation have
F = 0, so that any step is exact. (2) is singular where alpha = 0, (3) where sigma = 0, (4) nowhere.

A step is x_1 = (n_1/n_0) x_0 + n_1 int F dw. Multistep methods put a polynomial through the last values of F, in w
itself or in another variable phi, and integrate it exactly:

    int F dw = sum_j beta_j F_j,   beta_j = int l_j(phi) (dw/dphi) dphi,   l_j of Lagrange.            (5)

References:
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang and Chen, 2022),
    https://arxiv.org/abs/2204.13902, proposition 3 for (2), equation 15 for (5).
    DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095, proposition 4.1 for (3).
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 7 for F of (4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from itoflow import GaussianProcess, ProcessSpec
from itoflow.field import Member
from itoflow.process import ALPHA_ZERO

FrameName = Literal["velocity", "noise", "data", "v"]
Variable = Literal["own", "time", "log-snr", "angle", "asinh", "bounded"]
"""phi of (5): the frame's own w, t, -log s, arctan(s/c), asinh(s/c), asinh(1 / (a (c/s + 1/b)))."""

_APART = 1e-7
_NODES = 48
"""Gauss-Legendre nodes of (5), exact for polynomials of degree 95."""


@dataclass(frozen=True)
class Point:
    """A time, with alpha and sigma there; NaN for a process that is not Gaussian."""

    t: float
    alpha: float = math.nan
    sigma: float = math.nan

    @property
    def s(self) -> float:
        """sigma / alpha; infinite where no signal is left."""
        return self.sigma / self.alpha if self.alpha > ALPHA_ZERO else math.inf

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma): -inf where no signal is left, inf where no noise is."""
        return -math.log(self.s) if self.s > 0 else math.inf


def points(process: ProcessSpec, times: Sequence[float]) -> list[Point]:
    """The points of a process at these times."""
    if not isinstance(process, GaussianProcess):
        return [Point(t) for t in times]
    k = process.kernel(torch.tensor(times, dtype=torch.float64))
    return [Point(*values) for values in zip(times, k.alpha.tolist(), k.sigma.tolist(), strict=True)]


@dataclass(frozen=True)
class Frame:
    """One of (1) to (4).

    Arguments:
        name: which.
        c: the constant of (4) and of the variables, data units.
        bend: (a, b) of the variable `bounded`, which is like log s between a c and b c, and finite at both ends.
    """

    name: FrameName
    c: float = 1.0
    bend: tuple[float, float] = (0.3, 2.0)

    def scale(self, at: Point) -> float:
        """n."""
        match self.name:
            case "velocity":
                return 1.0
            case "noise":
                return at.alpha
            case "data":
                return at.sigma
            case "v":
                return math.hypot(at.sigma, self.c * at.alpha)

    def w(self, at: Point) -> float:
        """w; infinite where the frame is singular."""
        match self.name:
            case "velocity":
                return at.t
            case "noise":
                return at.s
            case "data":
                return at.alpha / at.sigma if at.sigma > 0 else math.inf
            case "v":
                return -math.atan2(at.sigma, self.c * at.alpha)

    def regular(self, at: Point) -> bool:
        """Whether the frame is defined there."""
        return math.isfinite(self.w(at))

    def call(self, at: Point) -> tuple[Member, float, float]:
        """(out, f, unit): F = unit (out + f x), out a member of the prediction at x."""
        match self.name:
            case "velocity":
                return "velocity", 0.0, 1.0
            case "noise":
                return "eps", 0.0, 1.0
            case "data":
                return "x0", 0.0, 1.0
            case "v":
                n2, a = self.scale(at) ** 2, self.c * at.alpha
                if at.sigma > a:  # eps is eliminated where x0 is the small part of x, x0 where eps is
                    return "x0", -self.c * a / n2, math.sqrt(n2) / (self.c * at.sigma)
                return "eps", -at.sigma / n2, -math.sqrt(n2) / a

    def time(self, w: float, process: ProcessSpec) -> float:
        """The t at which the frame's variable is w."""
        match self.name:
            case "velocity":
                return w
            case "noise":
                log_s = math.log(w)
            case "data":
                log_s = -math.log(w)
            case "v":
                log_s = math.log(-self.c * math.tan(w))
        at = cast(GaussianProcess, process).log_snr_inverse(torch.tensor([-2 * log_s], dtype=torch.float64))
        return float(at)

    def weights(
        self, start: Point, end: Point, nodes: Sequence[Point], variable: Variable, process: ProcessSpec
    ) -> list[float]:
        """beta_j of (5), in the order of the nodes.

        Where phi is infinite at an end of the step, the first node's F is held; a node with an infinite phi, at which
        the frame is singular, or which coincides with one before it, gets no weight.
        """
        phi = [self._phi(variable, at) for at in nodes]
        low, high = self._phi(variable, start), self._phi(variable, end)
        defined = [value if self.regular(at) else math.inf for at, value in zip(nodes, phi, strict=True)]
        used = distinct(defined, high - low)
        if len(used) <= 1 or not math.isfinite(low + high):
            only = used[0] if used else 0
            return [self.w(end) - self.w(start) if j == only else 0.0 for j in range(len(nodes))]
        at, measure = quadrature(low, high)
        integrals = lagrange_integrals(self._density(variable, at, process) * measure, at, [phi[j] for j in used])
        found = dict(zip(used, integrals, strict=True))
        return [found.get(j, 0.0) for j in range(len(nodes))]

    def _phi(self, variable: Variable, at: Point) -> float:
        match variable:
            case "own":
                return self.w(at)
            case "time":
                return at.t
            case "log-snr":
                return at.half_log_snr
            case "angle":
                return math.atan2(at.sigma, self.c * at.alpha)
            case "asinh":
                return math.asinh(at.s / self.c)
            case "bounded":
                a, b = self.bend
                return math.asinh(at.sigma / (a * (self.c * at.alpha + at.sigma / b)))

    def _density(self, variable: Variable, phi: Tensor, process: ProcessSpec) -> Tensor:
        """dw/dphi: with W = alpha sigma' - sigma alpha', W/alpha^2, -W/sigma^2 and -c W/(sigma^2 + c^2 alpha^2)."""
        if variable == "own" or self.name == "velocity":
            return torch.ones_like(phi)
        c, one = self.c, torch.ones_like(phi)
        match variable:
            case "time":
                k = cast(GaussianProcess, process).kernel(phi)
                alpha, sigma, wronskian = k.alpha, k.sigma, k.alpha * k.d_sigma - k.sigma * k.d_alpha
            case "log-snr":
                alpha, sigma, wronskian = one, torch.exp(-phi), -torch.exp(-phi)
            case "angle":
                alpha, sigma, wronskian = phi.cos(), c * phi.sin(), c * one
            case "asinh":
                alpha, sigma, wronskian = one, c * phi.sinh(), c * phi.cosh()
            case "bounded":
                a, b = self.bend
                alpha, sigma, wronskian = 1 - a * phi.sinh() / b, c * a * phi.sinh(), c * a * phi.cosh()
        match self.name:
            case "noise":
                return wronskian / alpha.square()
            case "data":
                return -wronskian / sigma.square()
            case _:
                return -c * wronskian / (sigma.square() + (c * alpha).square())


def quadrature(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature from low to high, float64."""
    x, measure = _gauss_legendre()
    return (low + high) / 2 + (high - low) / 2 * x, measure * (high - low) / 2


def lagrange_integrals(density: Tensor, at: Tensor, places: Sequence[float]) -> list[float]:
    """The integral of each Lagrange polynomial of the places.

    Arguments:
        density: what it is integrated against, at the nodes, times their weights.
        at: the nodes.
    """
    found, p = [], torch.tensor(places, dtype=torch.float64)
    for j in range(len(p)):
        others = torch.cat([p[:j], p[j + 1 :]])
        found.append(float((((at[:, None] - others) / (p[j] - others)).prod(1) * density).sum()))
    return found


def distinct(places: Sequence[float], span: float) -> list[int]:
    """The indices of places that are finite, and apart from those before them by more than `_APART` of a step.

    Where no signal is left, times differ and angles do not: a polynomial through such values is all rounding.
    """
    found = list[int]()
    for j, place in enumerate(places):
        if math.isfinite(place) and all(abs(place - places[i]) > _APART * abs(span) for i in found):
            found.append(j)
    return found


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1], from the eigenvalues of the Jacobi matrix (Golub and Welsch, 1969)."""
    k = torch.arange(1, _NODES, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    eigen: Any = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return eigen.eigenvalues, 2 * eigen.eigenvectors[0].square()

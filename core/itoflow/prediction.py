"""Predictions: x0, eps, velocity and score at (x, t), consistent whatever the network gives.

For a Gaussian process each of them is c x0 + d eps and follows from x and the output by equation (2) of
`itoflow.parametrization`: (c, d) = (d_alpha, d_sigma) for the velocity, score = -eps / sigma. For other processes
velocity and score follow from each other where there is noise, velocity = f - g^2/2 score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor

from itoflow.errors import UndefinedError
from itoflow.interpolant import InterpolantKernel
from itoflow.parametrization import solve
from itoflow.process import Kernel, PathSample, ProcessSpec, broadcast_time


class Prediction(ABC):
    """What a field knows at (x, t): x0, eps, score and velocity, consistent, each computed when asked for.

    Each is (B, *S). x0 = E[x0 | x_t] and eps = E[eps | x_t] are in data units and standard deviations, score =
    grad log p_t(x) per data unit, velocity = dx/dt of the probability-flow ODE in data units per unit of t (forward
    time: it points from data to noise).

    Raises:
        UndefinedError: the process and the network do not determine what was asked.
    """

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        raise self._undefined("x0")

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t]."""
        raise self._undefined("eps")

    @property
    @abstractmethod
    def score(self) -> Tensor:
        """grad log p_t(x)."""

    @property
    @abstractmethod
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE."""

    def _undefined(self, what: str) -> UndefinedError:
        return UndefinedError(
            f"{type(self).__name__} does not determine {what}: x0 and eps exist only for Gaussian processes, "
            "x_t = alpha x0 + sigma eps; a velocity alone, or one learnt with coupled ends, gives no score. Use a "
            "sampler and an objective that need only what is known."
        )


class GaussianPrediction(Prediction):
    """Equations (1) and (2) of `itoflow.parametrization`.

    Arguments:
        x: (B, *S).
        output: y, (B, *S): what the network gave, in its own meaning.
        kernel: at the times of x, float64, broadcastable against it.
        a, b: the meaning of y, float64, broadcastable against it.
        coupled: x0 and eps were not drawn independently, so that -eps / sigma is no score.
    """

    def __init__(
        self, x: Tensor, output: Tensor, kernel: Kernel, a: Tensor, b: Tensor, *, coupled: bool = False
    ) -> None:
        self.x, self.output, self.kernel, self.a, self.b, self.coupled = x, output, kernel, a, b, coupled

    def combine(self, c: Tensor, d: Tensor) -> Tensor:
        """c x0 + d eps, for coefficients that broadcast against x: (B, *S)."""
        m_x, m_y = solve(self.kernel, self.a, self.b, c, d)
        return m_x.to(self.x.dtype) * self.x + m_y.to(self.x.dtype) * self.output

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        return self.combine(torch.ones_like(self.a), torch.zeros_like(self.a))

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t]."""
        return self.combine(torch.zeros_like(self.a), torch.ones_like(self.a))

    @property
    def score(self) -> Tensor:
        """-eps / sigma.

        Raises:
            UndefinedError: x0 and eps were coupled in training.
        """
        if self.coupled:
            raise self._undefined("the score")
        return self.combine(torch.zeros_like(self.a), -1 / self.kernel.sigma)

    @property
    def velocity(self) -> Tensor:
        """d_alpha x0 + d_sigma eps."""
        return self.combine(self.kernel.d_alpha, self.kernel.d_sigma)

    def error(self, sample: PathSample, c: Tensor, d: Tensor, weight: Tensor) -> Tensor:
        """weight |c x0 + d eps - (c x0_hat + d eps_hat)|^2 / D, (B,), for the x0 and eps that made x_t.

        Computed where the network's output lives, as weight m_y^2 |y - (a x0 + b eps)|^2 / D with the m_y of equation
        (2): only the product of weight and m_y^2, taken in float64, need be finite.

        Arguments:
            c, d: broadcastable against x, float64.
            weight: (B,), float64.
        """
        dtype = self.output.dtype
        target = self.a.to(dtype) * sample.x0 + self.b.to(dtype) * cast(Tensor, sample.eps)
        squared = (self.output - target).square().flatten(1).mean(1)
        m_y = solve(self.kernel, self.a, self.b, c, d)[1]
        return (weight * m_y.square().reshape(sample.t.shape)).to(dtype) * squared


class DynamicsPrediction(Prediction):
    """For a process that is not Gaussian: velocity and score from each other, velocity = f - g^2/2 score.

    Arguments:
        process: gives f and g.
        x, t: (B, *S) and () or (B,).
        velocity, score: what the network gave; at least one.
    """

    def __init__(
        self, process: ProcessSpec, x: Tensor, t: Tensor, *, velocity: Tensor | None = None, score: Tensor | None = None
    ) -> None:
        self._process, self._x, self._t = process, x, t
        self._velocity, self._score = velocity, score

    def _half_g2(self) -> Tensor:
        return broadcast_time(self._process.diffusion(self._t).square() / 2, self._x.ndim).to(self._x.dtype)

    @property
    def velocity(self) -> Tensor:
        """As given, or f - g^2/2 score."""
        if self._velocity is not None:
            return self._velocity
        return self._process.drift(self._x, self._t) - self._half_g2() * self.score

    @property
    def score(self) -> Tensor:
        """As given, or (f - velocity) / (g^2/2) where g > 0.

        Raises:
            UndefinedError: g = 0, an ODE, whose velocity determines no score.
        """
        if self._score is not None:
            return self._score
        half_g2 = self._half_g2()
        if self._velocity is None or not bool((half_g2 > 0).all()):
            raise self._undefined("the score")
        return (self._process.drift(self._x, self._t) - self._velocity) / half_g2


class InterpolantPrediction(Prediction):
    """For an `InterpolantProcess`: the velocity, or its two parts.

    Arguments:
        velocity: E[d_alpha x_0 + d_beta x_1 + d_gamma z | x_t]; without the last term if `noise` is given.
        noise: E[z | x_t]; None where it was not learnt.
        kernel: at the times of x.
    """

    def __init__(self, velocity: Tensor, noise: Tensor | None, kernel: InterpolantKernel) -> None:
        self.output, self.noise, self.kernel = velocity, noise, kernel

    @property
    def velocity(self) -> Tensor:
        """The first output, and d_gamma E[z | x_t] where it is given apart."""
        if self.noise is None:
            return self.output
        return self.output + self.kernel.d_gamma.to(self.output.dtype) * self.noise

    @property
    def score(self) -> Tensor:
        """-E[z | x_t] / gamma.

        Raises:
            UndefinedError: only a velocity was learnt.
        """
        if self.noise is None:
            raise self._undefined("the score")
        return -self.noise / self.kernel.gamma.to(self.noise.dtype)

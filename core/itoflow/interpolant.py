r"""Processes between two data sets: stochastic interpolants.

    x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z,   z ~ N(0, I)                                   (1)

with alpha(0) = beta(1) = 1 and the other coefficients 0 at both ends, so that p_0 and p_1 are the laws of x_0 and x_1,
whatever their joint law. The velocity and the score of p_t are conditional means,

    velocity = E[d_alpha x_0 + d_beta x_1 + d_gamma z | x_t],   score = -E[z | x_t] / gamma,       (2)

and neither gives the other: the Gaussian relation between them needs x_1 to be noise. The score exists where gamma > 0.

Here x_0 is at t = 0 and x_1 at t = 1; sampling starts from x_1 and runs to t = 0. In the paper's orientation, tau = 1 -
t, the two change their names and the velocity its sign.

References:
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023),
    https://arxiv.org/abs/2303.08797, definition 1, theorem 6 and section 2.4.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from itoflow.errors import UndefinedError
from itoflow.noise import Generators, normal
from itoflow.process import PathProcess, PathSample, broadcast_time, derivative


@dataclass(frozen=True)
class InterpolantKernel:
    """alpha, beta, gamma and their time derivatives, float64, shaped to broadcast against (B, *S)."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    d_gamma: Tensor


class InterpolantProcess(PathProcess):
    """Equation (1); a subclass writes `alpha`, `beta`, `gamma` and `diffusion`.

    All map t (any shape, float64) to a tensor of t's shape. Where d_gamma is infinite at an end of time, t_min and
    t_max stay away from it. The far end comes at call time: `model.loss(x, x1=...)`, `model.sample(x=x1)`.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of x_0 in x_t: the shape of t, dimensionless; 1 at t = 0 and 0 at t = 1."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Scale of x_1 in x_t: the shape of t, dimensionless; 0 at t = 0 and 1 at t = 1."""

    @abstractmethod
    def gamma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t: the shape of t, data units; 0 at both ends."""

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt: the shape of t; by forward-mode automatic differentiation unless overridden."""
        return derivative(self.alpha, t)

    def d_beta(self, t: Tensor) -> Tensor:
        """d beta / dt: the shape of t; by forward-mode automatic differentiation unless overridden."""
        return derivative(self.beta, t)

    def d_gamma(self, t: Tensor) -> Tensor:
        """d gamma / dt: the shape of t; by forward-mode automatic differentiation unless overridden."""
        return derivative(self.gamma, t)

    def kernel(self, t: Tensor | float, ndim: int = 0) -> InterpolantKernel:
        """All coefficients at t, float64, each with trailing axes so that it has `ndim` of them.

        Raises:
            SpecError: one does not return a tensor of t's shape.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        names = ("alpha", "beta", "gamma", "d_alpha", "d_beta", "d_gamma")
        return InterpolantKernel(**{name: broadcast_time(self._checked(name, t), ndim) for name in names})

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """The strength g(t) of the SDEs that samplers run by default: the shape of t. Any strength keeps p_t.

        Raises:
            IncompatibleError: gamma = 0, so that no score is known and no SDE.
        """

    def path(
        self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None, z: Tensor | None = None
    ) -> PathSample:
        """x_t, equation (1), for x0 and x1 (B, *S) and t (B,); z is drawn unless given."""
        t = t.to(torch.float64)
        k = self.kernel(t, x0.ndim)
        if z is None:
            z = normal(x0.shape, like=x0, generator=generator)
        x = k.alpha.to(x0.dtype) * x0 + k.beta.to(x0.dtype) * x1 + k.gamma.to(x0.dtype) * z
        return PathSample(x=x, t=t, x0=x0, eps=z, x1=x1)

    def path_velocity(self, sample: PathSample) -> Tensor:
        """d_alpha x_0 + d_beta x_1 + d_gamma z."""
        k, dtype = self.kernel(sample.t, sample.x.ndim), sample.x.dtype
        ends = k.d_alpha.to(dtype) * sample.x0 + k.d_beta.to(dtype) * cast(Tensor, sample.x1)
        return ends + k.d_gamma.to(dtype) * cast(Tensor, sample.eps)

    def depart(self, x1: Tensor, *, generator: Generators = None) -> Tensor:
        """Where sampling starts, (B, *S): x at t_max for x1 (B, *S) and x_0 = 0, which is x1 itself if t_max = 1."""
        k = self.kernel(self.t_max)
        x = x1 * float(k.beta)
        gamma = float(k.gamma)
        return x + gamma * normal(x.shape, like=x, generator=generator) if gamma else x

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Undefined: the forward drift depends on both laws.

        Raises:
            UndefinedError: always.
        """
        raise self._joins("has no forward drift of its own; it depends on both laws")

    def prior(self, shape: Sequence[int], *, like: Tensor, generator: Generators = None) -> Tensor:
        """Undefined: the far end is data.

        Raises:
            UndefinedError: always.
        """
        raise self._joins("has no prior to draw from. Give the far end: model.sample(x=x1)")

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Undefined: the far end is data.

        Raises:
            UndefinedError: always.
        """
        raise self._joins("has no prior density, and so no log_prob. Use a GaussianProcess, whose prior is normal")

    def perturb(self, x0: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathSample:
        """Undefined: x_t depends on the far end; see `path`.

        Raises:
            UndefinedError: always.
        """
        raise self._joins("draws x_t given both ends: path(x0, x1, t)")

    def _joins(self, what: str) -> UndefinedError:
        return UndefinedError(f"{type(self).__name__} joins two data sets and {what}.")

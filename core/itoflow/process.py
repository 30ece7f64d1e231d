"""Processes: how data becomes noise.

Time t is in [0, 1] and dimensionless: data at t = 0, prior at t = 1. The forward SDE

    dx = f(x, t) dt + g(t) dw                                                                  (1)

runs 0 -> 1 and has marginals p_t. A Gaussian process is one whose transition from data is

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I),   alpha >= 0,                          (2)

and (2) fixes (1): with lambda(t) = log(alpha^2 / sigma^2), the log signal-to-noise ratio,

    f(x, t) = (d log alpha / dt) x,   g(t)^2 = -sigma^2 d lambda / dt
                                             = d sigma^2 / dt - 2 (d log alpha / dt) sigma^2.   (3)

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, sections 3.1 and 3.4.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630, section 3 for (2) and (3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator
from torch import Tensor

from itoflow.errors import NumericalError, SpecError
from itoflow.noise import Generators, normal
from itoflow.spec import Spec

ALPHA_ZERO = 1e-12
"""An alpha below this counts as zero: there the forward SDE is singular and noise determines no x_0."""

GridName = Literal["uniform", "quadratic", "logit", "log-snr", "karras", "optimal"]
"""The named time grids; see `itoflow.grids`."""


@dataclass(frozen=True)
class PathSample:
    """A draw of x_t given x_0.

    Arguments:
        x: x_t, (B, *S), data units.
        t: (B,), float64.
        x0: (B, *S), data units.
        eps: the noise in x_t, (B, *S), that of equation (2) for a Gaussian process; None where it was simulated.
        x1: the far end, (B, *S), data units; None unless the process joins two data sets.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor | None = None
    x1: Tensor | None = None


@dataclass(frozen=True)
class Kernel:
    """alpha, sigma and their time derivatives, float64, shaped to broadcast against (B, *S)."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class ProcessSpec(Spec, ABC):
    """A process given by its drift, its diffusion and its prior: dx = f(x, t) dt + g(t) dw, t from 0 to 1.

    Training and sampling stay inside [t_min, t_max].
    """

    kind: ClassVar[str] = "process"
    grid: ClassVar[GridName] = "uniform"
    """The time grid that suits this process; what a sampler with `grid="auto"` uses."""
    simulation_steps: ClassVar[int] = 1000
    """Euler-Maruyama steps by which `perturb` simulates the forward SDE where no closed form is known."""

    t_min: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Data end of the time interval."""
    t_max: Annotated[float, Gt(0), Le(1)] = 1.0
    """Prior end of the time interval."""

    @model_validator(mode="after")
    def _ordered(self) -> ProcessSpec:
        if not 0 <= self.t_min < self.t_max <= 1:  # here too, since a subclass may declare them with bare types
            raise ValueError(f"0 <= t_min < t_max <= 1 must hold. Given: t_min = {self.t_min}, t_max = {self.t_max}")
        return self

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t): (B, *S), data units per unit of t, for x (B, *S) and t () or (B,)."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t): the shape of t, data units per square root of a unit of t; zero only for an ODE."""

    @abstractmethod
    def prior(self, shape: Sequence[int], *, like: Tensor, generator: Generators = None) -> Tensor:
        """A draw of x at t_max: `shape` (B, *S), dtype and device of `like`."""

    @abstractmethod
    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log of the prior's density at x (B, *S): (B,), nats."""

    def perturb(self, x0: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathSample:
        """Draw x_t given x_0: by default, simulate the forward SDE by Euler-Maruyama from 0 to each t.

        Arguments:
            x0: (B, *S), data units.
            t: (B,), each sample's own time.

        Raises:
            NumericalError: a state became non-finite; names the process and the time.
        """
        t = t.to(torch.float64)
        step = t / self.simulation_steps
        x = x0
        for i in range(self.simulation_steps):
            now = step * i
            scale = broadcast_time(self.diffusion(now) * step.sqrt(), x.ndim).to(x.dtype)
            drift = self.drift(x, now) * broadcast_time(step, x.ndim).to(x.dtype)
            x = x + drift + scale * normal(x.shape, like=x, generator=generator)
            if i % 50 == 49 or i == self.simulation_steps - 1:
                self._check_finite(x, now)
        return PathSample(x=x, t=t, x0=x0)

    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told of t: the shape of t, in [0, 1]; t itself unless a process knows better."""
        return t

    def _check_finite(self, x: Tensor, t: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(
                f"Simulating the forward SDE of {self!r} gave a non-finite state near t = {float(t.max()):.4g}. Its "
                "drift or diffusion grows too fast for this step: lower t_max, or raise simulation_steps."
            )


class PathProcess(ProcessSpec):
    """A process whose x_t is an explicit function of its ends and of noise, so that dx_t/dt given them is known.

    The mean of dx_t/dt given x_t = x is the velocity that carries p_0 to p_1.
    """

    @abstractmethod
    def path_velocity(self, sample: PathSample) -> Tensor:
        """dx_t/dt at fixed ends and noise: (B, *S), data units per unit of t, forward time."""

    def _checked(self, name: str, t: Tensor) -> Tensor:
        value = getattr(self, name)(t)
        if not isinstance(value, Tensor) or value.shape != t.shape:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(
                f"{type(self).__name__}.{name}(t) must return a tensor of t's shape {tuple(t.shape)}; it returned "
                f"{got}. Write it with torch operations on t, e.g. torch.ones_like(t)."
            )
        return value


class GaussianProcess(PathProcess):
    """A process with x_t = alpha(t) x_0 + sigma(t) eps; a subclass writes `alpha` and `sigma`, all else follows.

    Both map t (any shape, float64) to a tensor of t's shape, use torch operations, and give a log signal-to-noise
    ratio that decreases on [t_min, t_max]. Override `d_alpha`, `d_sigma`, `diffusion` or `log_snr_inverse` where a
    closed form is known, and must where an end of time is singular (a sigma that grows like sqrt(t) has
    d_sigma(0) = inf although g(0) is finite).
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in x_t: the shape of t, dimensionless."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t: the shape of t, data units."""

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt: the shape of t; by forward-mode automatic differentiation unless overridden."""
        return self._derivative("alpha", t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt: the shape of t; by forward-mode automatic differentiation unless overridden."""
        return self._derivative("sigma", t)

    def _derivative(self, name: str, t: Tensor) -> Tensor:
        function = getattr(self, name)
        try:
            return derivative(function, t)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if not isinstance(function(t), Tensor):  # of which `kernel` says more
                raise
            raise SpecError(
                f"{type(self).__name__}.{name} has no derivative by forward-mode differentiation: {error}. Write it "
                f"with torch operations on t, not with numpy or math, or define d_{name}(t)."
            ) from error

    def kernel(self, t: Tensor | float, ndim: int = 0) -> Kernel:
        """alpha, sigma and their derivatives at t, float64, each with trailing axes so that it has `ndim` of them.

        It broadcasts time against data by `broadcast_time`, as everything does.

        Raises:
            SpecError: `alpha` or `sigma` does not return a tensor of t's shape.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        parts = {name: self._checked(name, t) for name in ("alpha", "sigma", "d_alpha", "d_sigma")}
        return Kernel(**{name: broadcast_time(value, ndim) for name, value in parts.items()})

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha^2 / sigma^2): the shape of t; +inf where sigma = 0 and -inf where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def log_snr_inverse(self, log_snr: Tensor) -> Tensor:
        """The t in [t_min, t_max] at which lambda(t) is `log_snr`: its shape, float64; clipped at the ends.

        By bisection to float64 resolution unless overridden.
        """
        target = log_snr.to(torch.float64)
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.log_snr(middle) > target  # lambda decreases, so the root lies later
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t) = (d log alpha / dt) x, equation (3); infinite where alpha = 0."""
        k = self.kernel(t, x.ndim)
        return (k.d_alpha / k.alpha).to(x.dtype) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), equation (3): the shape of t, float64; infinite where alpha counts as zero."""
        k = self.kernel(t)
        squared = 2 * k.sigma * (k.d_sigma - k.sigma * k.d_alpha / k.alpha)
        return torch.where(k.alpha > ALPHA_ZERO, squared.clamp(min=0).sqrt(), math.inf)

    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I), data units: sigma(t_max)."""
        return float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))

    def prior(self, shape: Sequence[int], *, like: Tensor, generator: Generators = None) -> Tensor:
        """A draw of N(0, prior_std^2 I): `shape` (B, *S), dtype and device of `like`."""
        return normal(shape, like=like, generator=generator) * self.prior_std()

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, prior_std^2 I) for x (B, *S): (B,), nats."""
        std = self.prior_std()
        z = x.flatten(1) / std
        return -0.5 * z.square().sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))

    def perturb(self, x0: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathSample:
        """Draw x_t = alpha x_0 + sigma eps, equation (2), for x0 (B, *S) and t (B,)."""
        return self.path(x0, normal(x0.shape, like=x0, generator=generator), t)

    def path(self, x0: Tensor, eps: Tensor, t: Tensor) -> PathSample:
        """x_t = alpha x_0 + sigma eps, equation (2), for given x0 and eps (B, *S) and t (B,)."""
        t = t.to(torch.float64)
        k = self.kernel(t, x0.ndim)
        x = k.alpha.to(x0.dtype) * x0 + k.sigma.to(x0.dtype) * eps
        return PathSample(x=x, t=t, x0=x0, eps=eps)

    def path_velocity(self, sample: PathSample) -> Tensor:
        """d_alpha x_0 + d_sigma eps."""
        k = self.kernel(sample.t, sample.x.ndim)
        return k.d_alpha.to(sample.x.dtype) * sample.x0 + k.d_sigma.to(sample.x.dtype) * cast(Tensor, sample.eps)

    def ends(self) -> tuple[Kernel, Kernel]:
        """The kernel at t_min and at t_max."""
        return self.kernel(self.t_min), self.kernel(self.t_max)


def broadcast_time(value: Tensor, ndim: int) -> Tensor:
    """A function of time of shape () or (B,) with trailing axes, so that it broadcasts against (B, *S)."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim)) if value.ndim else value


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt by forward-mode automatic differentiation: the shape of t."""
    value_and_tangent: Any = torch.func.jvp(function, (t,), (torch.ones_like(t),))
    tangent: Tensor = value_and_tangent[1]
    return tangent

r"""Exact fields: data laws for which E[x0 | x_t], score, velocity and density are known at every time.

For data from a mixture of Gaussians, x_0 ~ sum_k w_k N(mu_k, C_k), a Gaussian process x_t = alpha x_0 + sigma eps has

    p_t = sum_k w_k N(alpha mu_k, V_k),   V_k = alpha^2 C_k + sigma^2 I                                (1)

and, with responsibilities r_k = P(k | x_t) and z_k = x_t - alpha mu_k,

    score    = -sum_k r_k V_k^-1 z_k                                                                  (2)
    c x0 + d eps = sum_k r_k [c mu_k + (c alpha C_k + d sigma) V_k^-1 z_k]                            (3)

for any c, d: (1, 0) is x0, (0, 1) is eps, (d_alpha, d_sigma) is the velocity. All V_k share the eigenvectors of C_k, so
that an eigendecomposition at construction serves all times. (3) is evaluated for the output pair

    (a, b) = (-sigma, alpha) / sqrt(alpha^2 + sigma^2),   whose determinant alpha b - sigma a never vanishes,

so that x0 and eps are accurate at both ends, sigma = 0 and alpha = 0. Score and velocity come from (2) and (3)
directly. For a single Gaussian the probability-flow ODE is solved too: z_t = V_t^(1/2) V_s^(-1/2) z_s.

Everything is computed in float64 and returned in the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from itoflow.errors import InputError
from itoflow.field import Conditions, Field
from itoflow.prediction import GaussianPrediction
from itoflow.process import GaussianProcess, Kernel

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


class OracleField(Field):
    """The field of an exact denoiser.

    At sigma = 0 a denoiser fixes x0 = x / alpha and eps = 0; score (and velocity, where d_sigma is infinite) are NaN
    there. `GaussianOracle` and `MixtureOracle` have them.

    Arguments:
        process: any Gaussian process.
        denoise: (x_t, alpha, sigma) -> E[x0 | x_t], float64; alpha and sigma broadcast against x_t (B, *S).
        data_std: standard deviation of the data, data units.
    """

    def __init__(self, process: GaussianProcess, denoise: Denoise, data_std: float = 1.0) -> None:
        super().__init__(process, data_std)
        self.denoise = denoise

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> GaussianPrediction:
        """The prediction at x (B, *S) and t () or (B,)."""
        k = _kernel(self.process, t, x, x.ndim)
        x64 = x.to(torch.float64)
        x0 = torch.where(k.sigma > 0, self.denoise(x64, k.alpha, k.sigma), x64 / k.alpha)
        eps = torch.where(k.sigma > 0, (x64 - k.alpha * x0) / torch.where(k.sigma > 0, k.sigma, 1.0), 0.0)
        a, b = _balanced(k)
        return GaussianPrediction(x, (a * x0 + b * eps).to(x.dtype), k, a, b)


class ExactPrediction(GaussianPrediction):
    """A `GaussianPrediction` whose score and velocity are given, so that they are exact where sigma = 0 too.

    Arguments:
        exact: the score and the velocity, each a function without arguments.
    """

    def __init__(
        self,
        x: Tensor,
        output: Tensor,
        kernel: Kernel,
        a: Tensor,
        b: Tensor,
        exact: tuple[Callable[[], Tensor], Callable[[], Tensor]],
    ) -> None:
        super().__init__(x, output, kernel, a, b)
        self._exact = exact

    @property
    def score(self) -> Tensor:
        """grad log p_t(x), equation (2)."""
        return self._exact[0]()

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE, equation (3)."""
        return self._exact[1]()


class _GaussianMixture(Field):
    """Equations (1) to (3), of which both public oracles are cases.

    Arguments:
        means: (K, *S), data units.
        weights: (K,), positive; normalised here.
        covariances: (K, D, D), or (K, D) for diagonal ones, D the number of values in S.
    """

    def __init__(self, process: GaussianProcess, means: Tensor, weights: Tensor, covariances: Tensor) -> None:
        means, weights = means.to(torch.float64), weights.to(torch.float64)
        self.shape = tuple(means.shape[1:])
        count, size = means.shape[0], math.prod(self.shape)
        if weights.shape != (count,) or not bool((weights > 0).all()):
            raise InputError(f"{count} means need {count} positive weights. Given: {weights.tolist()}.")
        self.means, self.weights = means.reshape(count, size), weights / weights.sum()
        self.variances, self.axes = _decompose(covariances.to(torch.float64), count, size)
        mean = self.weights @ self.means
        centred = self.means - mean
        within = torch.einsum("k,kij,kj,klj->il", self.weights, self.axes, self.variances, self.axes)
        self._mean = mean
        self._covariance = within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        super().__init__(process, float((self._covariance.trace() / size).sqrt()))

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> ExactPrediction:
        """The prediction at x (B, *S) and t () or (B,)."""
        k, wide = _kernel(self.process, t, x, x.ndim), _kernel(self.process, t, x, 3)
        z, variance = self._centred(x, wide)
        shares = self._log_joint(z, variance).softmax(1)[:, :, None]

        def combination(at_mean: Tensor, per_variance: Tensor) -> Tensor:
            """sum_k r_k [at_mean mu_k + U_k (per_variance z_k)] as (B, *S) of x's dtype."""
            inner = at_mean * self._on(x, self.means) + self._rotate(per_variance * z, x)
            return (shares * inner).sum(1).reshape(x.shape).to(x.dtype)

        a, b = _balanced(wide)
        pull = (a * wide.alpha * self._on(x, self.variances) + b * wide.sigma) / variance
        zero = torch.zeros_like(wide.alpha)

        def velocity() -> Tensor:
            grown = wide.alpha * wide.d_alpha * self._on(x, self.variances) + self._half_growth(t, wide)
            return combination(wide.d_alpha, grown / variance)

        exact = (lambda: combination(zero, -1 / variance), velocity)
        return ExactPrediction(x, combination(a, pull), k, *_balanced(k), exact)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x), equation (1): (B,), nats, float64."""
        wide = _kernel(self.process, t, x, 3)
        return self._log_joint(*self._centred(x, wide)).logsumexp(1)

    def sample(self, n: int, t: float | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws of p_t, or of the data where t is None: (n, *S), float64."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        x = self.means[chosen] + torch.einsum(
            "nij,nj->ni", self.axes[chosen], self.variances[chosen].clamp(min=0).sqrt() * noise
        )
        if t is not None:
            k = cast(GaussianProcess, self.process).kernel(t)
            x = k.alpha * x + k.sigma * torch.randn(x.shape, dtype=torch.float64, generator=generator)
        return x.reshape(n, *self.shape)

    def moments(self, t: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of p_t, or of the data where t is None; float64."""
        if t is None:
            return self._mean, self._covariance
        k = cast(GaussianProcess, self.process).kernel(t)
        identity = torch.eye(len(self._mean), dtype=torch.float64)
        return k.alpha * self._mean, k.alpha.square() * self._covariance + k.sigma.square() * identity

    def _centred(self, x: Tensor, wide: Kernel) -> tuple[Tensor, Tensor]:
        """z_k in the eigenvectors of C_k, (B, K, D), and the eigenvalues of V_k, broadcastable to it."""
        flat = x.to(torch.float64).flatten(1)
        if flat.shape[1] != self.means.shape[1]:
            raise InputError(f"This oracle is for data of shape {self.shape}. Given: x of shape {tuple(x.shape)}.")
        z = torch.einsum("kij,bki->bkj", self._on(x, self.axes), flat[:, None] - wide.alpha * self._on(x, self.means))
        return z, wide.alpha.square() * self._on(x, self.variances) + wide.sigma.square()

    def _log_joint(self, z: Tensor, variance: Tensor) -> Tensor:
        """log of w_k N(x; alpha mu_k, V_k): (B, K)."""
        quadratic = (z.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return self._on(z, self.weights).log() - quadratic / 2

    def _rotate(self, values: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("kij,bkj->bki", self._on(x, self.axes), values)

    def _half_growth(self, t: Tensor | float, wide: Kernel) -> Tensor:
        """sigma d_sigma, which is g^2/2 where sigma = 0 and d_sigma may be infinite."""
        if bool((wide.sigma > 0).all()):
            return wide.sigma * wide.d_sigma
        g = self.process.diffusion(torch.as_tensor(t, dtype=torch.float64, device=wide.sigma.device))
        return torch.where(wide.sigma > 0, wide.sigma * wide.d_sigma, g.square().reshape(wide.sigma.shape) / 2)

    def _on(self, x: Tensor, value: Tensor) -> Tensor:
        return value.to(x.device)


class GaussianOracle(_GaussianMixture):
    """The exact field of data from N(mean, covariance).

    Arguments:
        process: any Gaussian process.
        mean: S, data units.
        covariance: (D, D), or (D,) for a diagonal one, or a number for a multiple of the identity; data units squared.
    """

    def __init__(self, process: GaussianProcess, mean: Tensor, covariance: Tensor | float) -> None:
        spread = torch.as_tensor(covariance, dtype=torch.float64)
        if spread.ndim == 0:
            spread = spread.expand(mean.numel())
        super().__init__(process, mean[None], torch.ones(1), spread[None])

    def flow(self, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """The probability-flow ODE's exact solution at t_to from x (B, *S) at t_from."""
        start, end = (_kernel(self.process, t, x, 3) for t in (t_from, t_to))
        z, variance = self._centred(x, start)
        grown = end.alpha.square() * self._on(x, self.variances) + end.sigma.square()
        moved = end.alpha * self._on(x, self.means) + self._rotate((grown / variance).sqrt() * z, x)
        return moved.reshape(x.shape).to(x.dtype)


class MixtureOracle(_GaussianMixture):
    """The exact field of data from a mixture of Gaussians.

    Arguments:
        process: any Gaussian process.
        means: (K, *S), data units.
        weights: (K,), positive, normalised here; None is equal ones.
        stds: standard deviations of the components, a number or (K,), data units; 0 is data at points.
        covariances: (K, D, D) instead of `stds`, data units squared.
    """

    def __init__(
        self,
        process: GaussianProcess,
        means: Tensor,
        weights: Tensor | None = None,
        *,
        stds: Tensor | float | None = None,
        covariances: Tensor | None = None,
    ) -> None:
        if (stds is None) == (covariances is None):
            raise InputError("A MixtureOracle takes either `stds` or `covariances`.")
        count, size = means.shape[0], means[0].numel()
        if covariances is None:
            variance = torch.as_tensor(stds, dtype=torch.float64).square()
            covariances = variance.expand(count)[:, None].expand(count, size)
        super().__init__(process, means, torch.ones(count) if weights is None else weights, covariances)


def _decompose(covariances: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, D) and eigenvectors (K, D, D), whose columns they belong to."""
    if covariances.shape == (count, size):
        return covariances, torch.eye(size, dtype=torch.float64).expand(count, size, size)
    if covariances.shape != (count, size, size) or not torch.allclose(covariances, covariances.mT):
        raise InputError(
            f"Covariances must be symmetric, {size} x {size} each. Given: shape {tuple(covariances.shape[1:])}."
        )
    variances, axes = torch.linalg.eigh(covariances)
    if not bool((variances > -1e-10 * variances.abs().max()).all()):
        raise InputError(f"A covariance has a negative eigenvalue, {float(variances.min()):.3g}.")
    return variances.clamp(min=0), axes


def _balanced(k: Kernel) -> tuple[Tensor, Tensor]:
    """(a, b), the direction at a right angle to (alpha, sigma)."""
    norm = torch.hypot(k.alpha, k.sigma)
    return -k.sigma / norm, k.alpha / norm


def _kernel(process: object, t: Tensor | float, x: Tensor, ndim: int) -> Kernel:
    return cast(GaussianProcess, process).kernel(torch.as_tensor(t, dtype=torch.float64, device=x.device), ndim)

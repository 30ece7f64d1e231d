r"""Exact fields of processes between two data sets, and what such processes are held to.

For independent ends x_0 ~ sum_j w_j N(mu_j, c^2 I) and x_1 ~ sum_k v_k N(nu_k, d^2 I), x_t = alpha x_0 + beta x_1 +
gamma z is a mixture over the pairs (j, k),

    p_t = sum_jk w_j v_k N(m_jk, V I),   m_jk = alpha mu_j + beta nu_k,   V = (alpha c)^2 + (beta d)^2 + gamma^2,  (1)

and with responsibilities r_jk, for any a, b, e,

    E[a x_0 + b x_1 + e z | x_t]
        = sum_jk r_jk [a mu_j + b nu_k + (a alpha c^2 + b beta d^2 + e gamma) (x_t - m_jk) / V],                    (2)

of which (d_alpha, d_beta, d_gamma) is the velocity and (0, 0, -1/gamma) the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from itoflow.errors import IncompatibleError, UndefinedError
from itoflow.field import Conditions, Field
from itoflow.interpolant import InterpolantKernel, InterpolantProcess
from itoflow.prediction import InterpolantPrediction
from itoflow.process import ProcessSpec
from itoflow.testing.assertions import expect, expect_close, expect_finite, expect_moments, global_randomness_untouched

_NAMES = ("alpha", "beta", "gamma", "d_alpha", "d_beta", "d_gamma")


class Joined(InterpolantProcess):
    """A straight line with noise 0.5 sin^2(pi t) in between; g = sin(pi t)."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.clone()

    def gamma(self, t: Tensor) -> Tensor:
        """0.5 sin^2(pi t), 0 at both ends exactly."""
        return 0.5 * torch.sin(torch.pi * torch.where(t > 0.5, 1 - t, t)).square()

    def diffusion(self, t: Tensor) -> Tensor:
        """sin(pi t), so that g^2 score is finite at both ends."""
        return torch.sin(torch.pi * torch.where(t > 0.5, 1 - t, t))


class InterpolantOracle(Field):
    """The exact field between two Gaussian mixtures, equations (1) and (2).

    Arguments:
        process: any `InterpolantProcess`.
        near: (J, *S), means of x_0, data units; equally weighted.
        far: (K, *S), means of x_1.
        stds: c and d, data units.
    """

    def __init__(self, process: InterpolantProcess, near: Tensor, far: Tensor, stds: tuple[float, float]) -> None:
        self.shape = tuple(near.shape[1:])
        self.near, self.far = (means.flatten(1).to(torch.float64) for means in (near, far))
        self.stds = stds
        centred = self.near - self.near.mean(0)
        super().__init__(process, float((centred.square().mean() + stds[0] ** 2).sqrt()))

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> InterpolantPrediction:
        """The prediction at x (B, *S) and t () or (B,): both outputs."""
        process = cast(InterpolantProcess, self.process)
        k, z, variance = self._centred(x, t)
        shares = self._log_joint(z, variance).flatten(1).softmax(1).view(len(x), *z.shape[1:3], 1)
        c2, d2 = (std**2 for std in self.stds)

        def mean(a: Tensor | float, b: Tensor | float, pull: Tensor) -> Tensor:
            inner = a * self.near[:, None] + b * self.far[None] + pull / variance * z
            return (shares * inner).sum((1, 2)).reshape(x.shape).to(x.dtype)

        ends = mean(k.d_alpha, k.d_beta, k.d_alpha * k.alpha * c2 + k.d_beta * k.beta * d2)
        narrow = process.kernel(torch.as_tensor(t, dtype=torch.float64), x.ndim)
        return InterpolantPrediction(ends, mean(0.0, 0.0, k.gamma), narrow)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x), equation (1): (B,), nats, float64."""
        _, z, variance = self._centred(x, t)
        pairs = self._log_joint(z, variance).flatten(1)
        return pairs.logsumexp(1) - torch.tensor(pairs.shape[1], dtype=torch.float64).log()

    def ends(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n independent draws of x_0 and of x_1, each (n, *S), float64."""
        drawn = []
        for means, std in zip((self.near, self.far), self.stds, strict=True):
            chosen = means[torch.randint(len(means), (n,), generator=generator)]
            drawn.append(chosen + std * torch.randn(chosen.shape, dtype=torch.float64, generator=generator))
        return drawn[0].reshape(n, *self.shape), drawn[1].reshape(n, *self.shape)

    def sample(self, n: int, t: float | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws of p_t, or of x_0 where t is None: (n, *S), float64."""
        x0, x1 = self.ends(n, generator=generator)
        if t is None:
            return x0
        process = cast(InterpolantProcess, self.process)
        return process.path(x0, x1, torch.full((n,), t, dtype=torch.float64), generator=generator).x

    def _centred(self, x: Tensor, t: Tensor | float) -> tuple[InterpolantKernel, Tensor, Tensor]:
        """The kernel against (B, J, K, D), x - m_jk and V."""
        k = cast(InterpolantProcess, self.process).kernel(torch.as_tensor(t, dtype=torch.float64), 4)
        means = k.alpha * self.near[:, None] + k.beta * self.far[None]
        z = x.to(torch.float64).flatten(1)[:, None, None] - means
        c2, d2 = (std**2 for std in self.stds)
        return k, z, k.alpha.square() * c2 + k.beta.square() * d2 + k.gamma.square()

    def _log_joint(self, z: Tensor, variance: Tensor) -> Tensor:
        """log N(x; m_jk, V I): (B, J, K)."""
        return -((z.square() / variance + variance.log() + torch.log(torch.tensor(2 * torch.pi))) / 2).sum(3)


def joined() -> InterpolantOracle:
    """Three Gaussian clusters in the plane joined to two others by `Joined`."""
    near = torch.tensor([[1.2, 0.5], [-1.0, 0.8], [0.0, -1.1]])
    return InterpolantOracle(Joined(), near, torch.tensor([[1.5, 1.0], [-0.5, -1.5]]), (0.3, 0.5))


def check_ends(process: ProcessSpec) -> None:
    """Functions of time are float64 of t's shape and finite; alpha, beta, gamma are (1, 0, 0) at 0 and (0, 1, 0) at 1.

    For a process between two data sets, as all checks here; on another they return at once.
    """
    if not isinstance(process, InterpolantProcess):
        return
    name = type(process).__name__
    for shape in ((), (3,)):
        t = torch.full(shape, (process.t_min + process.t_max) / 2, dtype=torch.float64)
        for function in _NAMES:
            value = getattr(process, function)(t)
            expect(
                isinstance(value, Tensor) and value.shape == shape and value.dtype == torch.float64,
                f"{name}.{function}(t) must be a float64 tensor of t's shape {shape}.",
            )
    t = torch.linspace(process.t_min, process.t_max, 101, dtype=torch.float64)
    for function in _NAMES:
        expect_finite(getattr(process, function)(t), f"{name}.{function}(t)", at=t)
    expect(bool((process.gamma(t) >= 0).all()), f"{name}.gamma(t) is negative; it is a standard deviation.")
    for end, values in ((0.0, (1.0, 0.0, 0.0)), (1.0, (0.0, 1.0, 0.0))):
        at = torch.tensor(end, dtype=torch.float64)
        for function, expected in zip(_NAMES, values, strict=False):
            value = float(getattr(process, function)(at))
            expect(
                abs(value - expected) < 1e-12,
                f"{name}.{function}({end:g}) is {value:.6g}; it must be {expected:g}: x_0 and x_1 are the ends.",
            )


def check_end_derivatives(process: ProcessSpec) -> None:
    """d_alpha, d_beta and d_gamma are the derivatives of alpha, beta and gamma, by central differences."""
    if not isinstance(process, InterpolantProcess):
        return
    t, h = torch.linspace(process.t_min, process.t_max, 103, dtype=torch.float64)[1:-1], 1e-5
    for function in _NAMES[:3]:
        f = getattr(process, function)
        expected = (f(t + h) - f(t - h)) / (2 * h)
        got = getattr(process, f"d_{function}")(t)
        expect_close(got, expected, 1e-5 * (1 + expected.abs()), f"{type(process).__name__}.d_{function}(t)", at=t)


def check_path(process: ProcessSpec) -> None:
    """A path keeps dtype and shape, draws from the given generator alone, and moves at `path_velocity`.

    Between Gaussians, x_t has the mean and covariance of equation (1), within 5 standard errors of 20000 draws. What is
    undefined (drift, prior, its density, perturb) raises UndefinedError, never a number.
    """
    if not isinstance(process, InterpolantProcess):
        return
    name, n = type(process).__name__, 20_000
    t = torch.linspace(process.t_min, process.t_max, 50, dtype=torch.float64)[1:-1]
    for dtype in (torch.float32, torch.float64):
        x0, x1 = (torch.randn(len(t), 2, generator=_seeded(seed), dtype=dtype) for seed in (0, 1))
        with global_randomness_untouched(f"{name}.path"):
            sample = process.path(x0, x1, t, generator=_seeded(2))
        expect(sample.x.shape == x0.shape and sample.x.dtype == dtype, f"{name}.path does not keep shape and dtype.")
    h = 1e-6
    ahead, behind = (process.path(x0, x1, t + s, z=sample.eps).x for s in (h, -h))
    velocity = process.path_velocity(sample)
    expect_close(velocity, (ahead - behind) / (2 * h), 1e-4 * (1 + velocity.abs()), f"{name}.path_velocity")
    oracle = InterpolantOracle(process, torch.tensor([[0.7]]), torch.tensor([[-1.0]]), (0.6, 0.3))
    for now in (0.2, 0.5, 0.9):
        k = process.kernel(now)
        variance = (0.6 * k.alpha).square() + (0.3 * k.beta).square() + k.gamma.square()
        x = oracle.sample(n, now, generator=_seeded(3))
        what = f"{name}.path at t = {now}"
        expect_moments(x, (0.7 * k.alpha - k.beta).reshape(1), variance.reshape(1, 1), what, relative=0.0)
    unknown: Sequence[tuple[str, tuple[object, ...], dict[str, object]]] = (
        ("drift", (x0, t), {}),
        ("prior", ((2, 2),), {"like": x0}),
        ("prior_log_prob", (x0,), {}),
        ("perturb", (x0, t), {}),
    )
    for function, arguments, options in unknown:
        try:
            getattr(process, function)(*arguments, **options)
        except UndefinedError:
            continue
        raise AssertionError(f"{name}.{function} returned a value; between two data sets it is undefined.")


def strength(process: ProcessSpec, t: Tensor) -> Tensor | None:
    """g(t), or None where a process between two data sets has no noise, and so no SDE."""
    try:
        return process.diffusion(t)
    except IncompatibleError:
        return None


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHECKS = (check_ends, check_end_derivatives, check_path)

r"""What every process is held to.

The forward SDE dx = f dt + g dw moves the mean m and the variance V of a coordinate by

    dm/dt = f(m, t),   dV/dt = 2 (df/dx) V + g^2       (f linear)                              (1)

and a Gaussian process has m = alpha m_0, V = alpha^2 V_0 + sigma^2. So (1) binds (drift, diffusion) to (alpha, sigma),
and the derivatives of the latter are taken here by finite differences, never from the component. For Gaussian data
N(m_0, V_0) the posterior is known,

    E[x0 | x] = m_0 + alpha V_0 / V (x - m),   E[eps | x] = sigma / V (x - m),   score = -(x - m) / V,    (2)

and velocity = f - g^2/2 score. (2) is compared on all of [t_min, t_max], both ends and their neighbourhoods included,
in every prediction type that `compose` accepts there. What is drawn is held in `itoflow.testing.draws`.

Checks of alpha and sigma apply to a `GaussianProcess`; on another process they return at once. A process between two
data sets has neither a forward SDE nor a prior of its own; `interpolants` and `marginals` hold it instead.

References:
    Applied Stochastic Differential Equations (Sarkka and Solin, 2019), section 5.5, for (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from itoflow.grids import time_grid
from itoflow.interpolant import InterpolantProcess
from itoflow.parametrization import Parametrization, PredictionName
from itoflow.prediction import GaussianPrediction
from itoflow.process import GaussianProcess, ProcessSpec
from itoflow.testing.assertions import check_options, expect, expect_close, expect_finite
from itoflow.testing.draws import (
    DATA_MEAN,
    DATA_STD,
    check_forward,
    check_perturb,
    check_prior,
    check_prior_matches,
    check_sampling,
)
from itoflow.testing.problems import seeded, solvable

_DERIVATIVE = 1e-5
"""Relative allowance where a finite difference stands for a derivative; its own error is below 1e-6."""


def check_shapes(process: ProcessSpec) -> None:
    """Functions of time return float64 tensors of t's shape, () or (B,); drift keeps x's shape and dtype."""
    if isinstance(process, InterpolantProcess):
        return
    name, middle = type(process).__name__, (process.t_min + process.t_max) / 2
    functions = ["network_time", "diffusion"]
    if isinstance(process, GaussianProcess):
        functions = ["alpha", "sigma", "d_alpha", "d_sigma", "log_snr", *functions]
    for shape in ((), (1,), (3,)):
        t = torch.full(shape, middle, dtype=torch.float64)
        for function in functions:
            value = getattr(process, function)(t)
            expect(
                isinstance(value, Tensor),
                f"{name}.{function}(t) returned a {type(value).__name__}; it must return a tensor of t's shape. "
                "Write it with torch operations on t, e.g. torch.ones_like(t).",
            )
            expect(
                value.shape == t.shape,
                f"{name}.{function}(t) returned shape {tuple(value.shape)} for t of shape {shape}; it must keep it.",
            )
            expect(
                value.dtype == torch.float64,
                f"{name}.{function}(t) returned {value.dtype} for a float64 t; time is float64 throughout.",
            )
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(3, 2, 2, generator=seeded(0), dtype=dtype)
            drift = process.drift(x, t) if shape != (1,) else x
            expect(
                drift.shape == x.shape and drift.dtype == dtype,
                f"{name}.drift(x, t) returned {drift.dtype} of shape {tuple(drift.shape)} for x {dtype} of shape "
                f"{tuple(x.shape)} and t of shape {shape}; it must keep x's.",
            )


def check_network_time(process: ProcessSpec) -> None:
    """network_time is in [0, 1], finite, and increases, so that a network can tell the times of a run apart."""
    t = torch.tensor(time_grid(process, process.grid, 50), dtype=torch.float64)
    label = process.network_time(t)
    expect_finite(label, "network_time(t)", at=t)
    low, high = float(label.min()), float(label.max())
    expect(low >= 0 and high <= 1, f"network_time(t) ranges over [{low:.6g}, {high:.6g}]; it must stay in [0, 1].")
    steps = -label.diff()
    expect(
        bool((steps > 0).all()),
        f"network_time does not increase with t: between t = {float(t[int(steps.argmin()) + 1]):.6g} and "
        f"{float(t[int(steps.argmin())]):.6g} it changes by {float(steps.min()):.3g}.",
    )


def check_kernel(process: ProcessSpec) -> None:
    """alpha >= 0 and sigma >= 0 are finite on all of [t_min, t_max]; so are their derivatives wherever sigma > 0."""
    if not isinstance(process, GaussianProcess):
        return
    t = times(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    for what, value in (("alpha", alpha), ("sigma", sigma)):
        expect_finite(value, f"{what}(t)", at=t)
        expect(
            bool((value >= 0).all()),
            f"{what}(t) is {float(value.min()):.6g} at t = {float(t[int(value.argmin())]):.6g}; it must be >= 0.",
        )
    inside = t[sigma > 0]
    expect(len(inside) >= len(t) - 1, "sigma(t) is 0 at more than one time; it may be 0 at t_min only.")
    expect(bool((alpha[:-1] > 0).all()), "alpha(t) is 0 before t_max; it may be 0 at t_max only.")
    expect_finite(process.d_alpha(t), "d_alpha(t)", at=t)
    expect_finite(process.d_sigma(inside), "d_sigma(t)", at=inside)


def check_derivatives(process: ProcessSpec) -> None:
    """d_alpha and d_sigma are the derivatives of alpha and sigma, compared with five-point finite differences."""
    if not isinstance(process, GaussianProcess):
        return
    t = times(process)
    t = t[process.sigma(t) > 0]
    span = process.t_max - process.t_min
    for name in ("alpha", "sigma"):
        function = getattr(process, name)
        expected = _finite_difference(function, t, process)
        allowed = _DERIVATIVE * torch.maximum(expected.abs(), function(t).abs() / span) + 1e-12
        expect_close(getattr(process, f"d_{name}")(t), expected, allowed, f"{type(process).__name__}.d_{name}(t)", at=t)


def check_sde(process: ProcessSpec) -> None:
    """drift and diffusion give the mean and the variance that alpha and sigma say: equation (1).

    With m = alpha x0 and V = sigma^2: f(alpha x0) = alpha' x0 and g^2 = (sigma^2)' - 2 (alpha' / alpha) sigma^2.
    """
    if isinstance(process, InterpolantProcess):
        return
    if not isinstance(process, GaussianProcess):
        g = process.diffusion(times(process))
        expect_finite(g, "diffusion(t)", at=times(process))
        expect(bool((g >= 0).all()), f"diffusion(t) is negative, {float(g.min()):.6g}; g >= 0.")
        return
    name, t = type(process).__name__, times(process)
    t = t[process.alpha(t) > 1e-6]
    alpha, sigma = process.alpha(t), process.sigma(t)
    rate = _finite_difference(process.alpha, t, process) / alpha
    x0 = torch.tensor([[1.0, -2.5]], dtype=torch.float64)
    span = process.t_max - process.t_min
    expect_close(
        process.drift(alpha[:, None] * x0, t),
        (rate * alpha)[:, None] * x0,
        _DERIVATIVE * (rate.abs() * alpha + alpha / span)[:, None] * x0.abs(),
        f"{name}.drift(alpha x0, t), which must be d_alpha x0 so that the mean of x_t is alpha x0,",
        at=t[:, None],
    )
    growth = _finite_difference(lambda s: process.sigma(s).square(), t, process)
    expected = growth - 2 * rate * sigma.square()
    allowed = _DERIVATIVE * (growth.abs() + 2 * rate.abs() * sigma.square() + sigma.square() / span)
    allowed = allowed + 1e-10 * process.prior_std() ** 2
    g = process.diffusion(t)
    expect(bool((g >= 0).all()), f"{name}.diffusion(t) is negative, {float(g.min()):.6g}; g >= 0.")
    expect_close(
        g.square(),
        expected,
        allowed,
        f"{name}.diffusion(t)^2, which must be (sigma^2)' - 2 (log alpha)' sigma^2, the marginal's growth,",
        at=t,
    )
    end = torch.tensor([process.t_max], dtype=torch.float64)
    expect(
        not bool(process.diffusion(end).isnan().any()),
        f"{name}.diffusion(t_max) is NaN; it is infinite where alpha = 0.",
    )


def check_log_snr(process: ProcessSpec) -> None:
    """log(alpha^2 / sigma^2) falls strictly, and log_snr_inverse undoes it, clipping beyond the ends."""
    if not isinstance(process, GaussianProcess):
        return
    name, t = type(process).__name__, torch.linspace(process.t_min, process.t_max, 1001, dtype=torch.float64)
    log_snr = process.log_snr(t)
    steps = log_snr.diff()
    expect(
        bool((steps < 0).all()),
        f"{name}: the log signal-to-noise ratio does not fall everywhere; from t = {float(t[int(steps.argmax())]):.6g} "
        f"on it changes by {float(steps.max()):.3g}. Data is at t = 0 and noise at t = 1: noise must grow all the way.",
    )
    inside = torch.isfinite(log_snr) & (log_snr.abs() < 30)
    back = process.log_snr_inverse(log_snr[inside])
    expect(back.dtype == torch.float64, f"{name}.log_snr_inverse returned {back.dtype}; time is float64.")
    expect_close(back, t[inside], 1e-7, f"{name}.log_snr_inverse(log_snr(t))", at=t[inside])
    expect_close(process.log_snr(back), log_snr[inside], 1e-4, f"{name}.log_snr(log_snr_inverse(lambda))", at=t[inside])
    ends = process.log_snr_inverse(torch.tensor([[1e3], [-1e3]], dtype=torch.float64))
    expect(ends.shape == (2, 1), f"{name}.log_snr_inverse does not keep the shape of its argument.")
    limits = torch.tensor([[process.t_min], [process.t_max]], dtype=torch.float64)
    expect_close(ends, limits, 1e-9, f"{name}.log_snr_inverse beyond the range, which clips to [t_min, t_max],")


def check_posterior(process: ProcessSpec) -> None:
    """x0, eps, score and velocity of an exact output are finite and right at all times: equation (2)."""
    if not isinstance(process, GaussianProcess):
        return
    for prediction in get_args(PredictionName):
        for std in (1.0, DATA_STD):
            parametrization = Parametrization(prediction=prediction, data_std=std)
            fitted = solvable(process, parametrization)
            if isinstance(fitted, GaussianProcess):
                _check_prediction(fitted, parametrization)


def _check_prediction(process: GaussianProcess, parametrization: Parametrization) -> None:
    t = times(process)
    t = t[process.sigma(t) > 0]
    k = process.kernel(t, 2)
    v0 = DATA_STD**2
    mean, variance = k.alpha * DATA_MEAN, k.alpha.square() * v0 + k.sigma.square()
    x = mean + variance.sqrt() * torch.tensor([[-2.0, -0.3, 1.0, 3.0]], dtype=torch.float64)
    pull = (x - mean) / variance
    x0, eps = DATA_MEAN + k.alpha * v0 * pull, k.sigma * pull
    a, b = parametrization.coefficients(k)
    prediction = GaussianPrediction(x, a * x0 + b * eps, k, a, b)
    name = f"{type(process).__name__} with prediction {parametrization.prediction!r}:"
    sine = parametrization.determinant(k).abs() / (torch.hypot(a, b) * torch.hypot(k.alpha, k.sigma))
    # rounding of the output, amplified by the solve
    amplified = 1e-13 * (x0.abs() * k.alpha + eps.abs() * k.sigma + 1) / (sine * torch.hypot(k.alpha, k.sigma)) + 1e-11
    place = t[:, None]
    expect_close(prediction.x0, x0, amplified * (1 + k.sigma), f"{name} x0", at=place)
    expect_close(prediction.eps, eps, amplified * (1 + k.alpha), f"{name} eps", at=place)
    expect_close(prediction.score, -pull, amplified * (1 + k.alpha) / k.sigma, f"{name} score", at=place)
    velocity = prediction.velocity
    expect_finite(velocity, f"{name} velocity", at=place)
    g = process.diffusion(t)[:, None]
    usable = (k.alpha > 1e-6).expand(x.shape)
    drift, half = process.drift(x, t), g.square() / 2
    expected = torch.where(usable, drift + half * pull, 0.0)
    scale = drift.abs() + (half * pull).abs() + k.d_alpha.abs() + k.d_sigma.abs()
    allowed = torch.where(usable, scale * (1e-9 + amplified), 1.0)
    expect_close(torch.where(usable, velocity, 0.0), expected, allowed, f"{name} velocity", at=place)


def times(process: ProcessSpec) -> Tensor:
    """t_min, t_max, 33 times between them, and times down to 1e-6 of the interval from either end; sorted, float64."""
    span = process.t_max - process.t_min
    near = span * torch.logspace(-6, -2, 9, dtype=torch.float64)
    even = torch.linspace(process.t_min, process.t_max, 35, dtype=torch.float64)
    every: Tensor = torch.cat([even, process.t_min + near, process.t_max - near]).unique()
    return every


def _finite_difference(function: Callable[[Tensor], Tensor], t: Tensor, process: ProcessSpec) -> Tensor:
    """The derivative from five points inside [t_min, t_max], the step small beside the distance to a singular end."""
    low, high, span = process.t_min, process.t_max, process.t_max - process.t_min
    reach = torch.minimum(t - low, high - t)
    central = (reach / 50).clamp(max=1e-3 * span)
    h = central.clamp(min=1e-14)
    middle = (8 * (function(t + h) - function(t - h)) - (function(t + 2 * h) - function(t - 2 * h))) / (12 * h)
    distance = low if low > 0 else math.inf
    start, end = min(1e-4 * span, distance / 50), -min(1e-4 * span, (1 - high) / 50 if high < 1 else math.inf)
    h = torch.where(t - low < high - t, torch.full_like(t, start), torch.full_like(t, end))
    weights = (-25.0, 48.0, -36.0, 16.0, -3.0)
    edge = torch.stack([w * function(t + i * h) for i, w in enumerate(weights)]).sum(0) / (12 * h)
    return torch.where(reach > 0, middle, edge)


CHECKS = (
    check_options,
    check_shapes,
    check_network_time,
    check_kernel,
    check_derivatives,
    check_sde,
    check_log_snr,
    check_posterior,
    check_sampling,
    check_forward,
    check_perturb,
    check_prior,
    check_prior_matches,
)

r"""What every process is held to.

The forward SDE dx = f dt + g dw moves the mean m and the variance V of a coordinate by

    dm/dt = f(m, t),   dV/dt = 2 (df/dx) V + g^2       (f linear)                              (1)

and a Gaussian process has m = alpha m_0, V = alpha^2 V_0 + sigma^2. So (1) binds (drift, diffusion) to (alpha, sigma),
and the derivatives of the latter are taken here by finite differences, never from the component. For Gaussian data
N(m_0, V_0) the posterior is known,

    E[x0 | x] = m_0 + alpha V_0 / V (x - m),   E[eps | x] = sigma / V (x - m),   score = -(x - m) / V,    (2)

and velocity = f - g^2/2 score. (2) is compared on all of [t_min, t_max], both ends and their neighbourhoods included,
in every prediction type that `compose` accepts there.

Checks of alpha and sigma apply to a `GaussianProcess`; on another process they return at once. A process between two
data sets has neither a forward SDE nor a prior of its own; `interpolants` and `marginals` hold it instead.

References:
    Applied Stochastic Differential Equations (Sarkka and Solin, 2019), section 5.5, for (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from itoflow.dynamics import ForwardSDE, simulate
from itoflow.errors import IncompatibleError, UndefinedError
from itoflow.grids import time_grid
from itoflow.interpolant import InterpolantProcess
from itoflow.loop import run_table
from itoflow.parametrization import Parametrization, PredictionName
from itoflow.prediction import GaussianPrediction
from itoflow.process import GaussianProcess, ProcessSpec
from itoflow.table import Row, Table
from itoflow.testing.assertions import (
    SIGMAS,
    check_options,
    expect,
    expect_close,
    expect_finite,
    expect_moments,
    global_randomness_untouched,
)
from itoflow.testing.oracles import GaussianOracle, OracleField
from itoflow.testing.problems import seeded, solvable

_DERIVATIVE = 1e-5
"""Relative allowance where a finite difference stands for a derivative; its own error is below 1e-6."""
PRIOR_KL = 0.01
"""Largest Kullback-Leibler divergence of p at t_max from the prior, nats per value, for N(0, 1) data shifted by 1."""

DATA_MEAN, DATA_STD = 0.7, 0.6
"""The law of the data, one coordinate, where a check needs one."""


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


def check_sampling(process: ProcessSpec) -> None:
    """Three short runs from the prior, on an exact denoiser, end with the data's mean and variance.

    Deterministic x0 steps (DDIM), ancestral steps and Euler steps of the ODE, 200 each on the process's own grid, 4000
    draws. A run that is finite but of the wrong scale fails. Allowance: 0.15 standard deviations, 15 per cent of the
    variance, and 5 standard errors.
    """
    if not isinstance(process, GaussianProcess):
        return
    field = _denoiser(process)
    times_down = time_grid(process, process.grid, 200)
    if float(process.ends()[0].sigma) == 0:
        times_down = time_grid(process, process.grid, 201)[:-1]
    ending = Row(times_down[-1], out="x0", a=0.0, b=(1.0,))
    euler = [Row(t, b=(s - t,)) for t, s in pairwise(times_down)]
    for what, rows in (
        ("x0 steps", _posterior_rows(process, times_down, 0.0)),
        ("ancestral steps", _posterior_rows(process, times_down, 1.0)),
        ("Euler steps", euler),
    ):
        x = process.prior((4000, 1), like=torch.empty(0, dtype=torch.float64), generator=seeded(1))
        x = run_table(Table((*rows, ending)), field, x, generator=seeded(2), name=what)
        _expect_data(x, f"200 {what} on the grid {process.grid!r} of {type(process).__name__}, from its prior,")


def _posterior_rows(process: GaussianProcess, times_down: tuple[float, ...], eta: float) -> list[Row]:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z with tau = eta times the posterior's deviation."""
    rows = []
    for t, s in pairwise(times_down):
        k, after = process.kernel(t), process.kernel(s)
        m = float(k.alpha / after.alpha)
        forward = float(k.sigma) ** 2 - m**2 * float(after.sigma) ** 2
        tau = eta * float(after.sigma / k.sigma) * math.sqrt(max(forward, 0.0))
        kept = math.sqrt(max(float(after.sigma) ** 2 - tau**2, 0.0)) / float(k.sigma)
        rows.append(Row(t, out="x0", a=kept, b=(float(after.alpha) - kept * float(k.alpha),), c=tau))
    return rows


def _denoiser(process: GaussianProcess) -> OracleField:
    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return DATA_MEAN + alpha * DATA_STD**2 / (alpha.square() * DATA_STD**2 + sigma.square()) * (
            x - alpha * DATA_MEAN
        )

    return OracleField(process, denoise, DATA_STD)


def _expect_data(x: Tensor, what: str) -> None:
    mean, variance = (torch.tensor(value, dtype=torch.float64) for value in ([DATA_MEAN], [[DATA_STD**2]]))
    expect_moments(x, mean, variance, what, relative=0.15)


def check_forward(process: ProcessSpec) -> None:
    """The simulated forward SDE has the marginal's mean and variance; for a process that is not Gaussian, perturb's.

    1000 Euler-Maruyama steps from t_min, 10000 draws, read where the signal-to-noise ratio is 10, 1 and least (or
    alpha = 0.05, short of a singular end). Allowance: 3 per cent for the step, 5 standard errors for chance.
    """
    if isinstance(process, InterpolantProcess):
        return
    if not isinstance(process, GaussianProcess):
        _check_simulated(process)
        return
    generator = seeded(3)
    oracle = GaussianOracle(process, torch.tensor([DATA_MEAN], dtype=torch.float64), DATA_STD**2)
    x, now = oracle.sample(10_000, process.t_min, generator=generator), process.t_min
    last = 2 * math.log(0.05) - 2 * math.log(process.prior_std())
    stops = process.log_snr_inverse(torch.tensor([math.log(10), 0.0, max(last, -2 * math.log(1e3))])).tolist()
    for stop in stops:
        if stop <= now:
            continue
        steps = max(2, round(1000 * (stop - now) / (stops[-1] - process.t_min)))
        grid = torch.linspace(now, stop, steps + 1, dtype=torch.float64).tolist()
        x, now = simulate(ForwardSDE(process), x, grid, generator=generator), stop
        mean, covariance = oracle.moments(stop)
        expect_moments(
            x, mean, covariance, f"the simulated forward SDE of {process!r} at t = {stop:.4g}", relative=0.03
        )


def _check_simulated(process: ProcessSpec) -> None:
    t = process.t_min + 0.5 * (process.t_max - process.t_min)
    x0 = DATA_MEAN + DATA_STD * torch.randn(10_000, 1, dtype=torch.float64, generator=seeded(3))
    drawn = process.perturb(x0, torch.full((10_000,), t, dtype=torch.float64), generator=seeded(4)).x
    grid = torch.linspace(0, t, 1001, dtype=torch.float64).tolist()
    run = simulate(ForwardSDE(process), x0, grid, generator=seeded(5))
    mean, covariance = run.mean(0), run.T.cov().reshape(1, 1)
    what = f"perturb of {process!r} at t = {t:.4g} against a simulation of its forward SDE"
    expect_moments(drawn, mean, covariance, what, relative=0.03, share=2**0.5 * SIGMAS)


def check_perturb(process: ProcessSpec) -> None:
    """perturb keeps dtype and shape, takes each sample's own time, and draws from the generator given alone.

    A Gaussian process returns the eps of x = alpha x0 + sigma eps, standard normal: mean and variance of 20000 values
    within 5 standard errors.
    """
    if isinstance(process, InterpolantProcess):
        return
    name = type(process).__name__
    t = torch.linspace(process.t_min, process.t_max, 100, dtype=torch.float64)[1:-1]
    for dtype in (torch.float32, torch.float64):
        x0 = torch.randn(len(t), 4, generator=seeded(0), dtype=dtype)
        kept = x0.clone()
        with global_randomness_untouched(f"{name}.perturb"):
            sample = process.perturb(x0, t, generator=seeded(1))
        expect(torch.equal(x0, kept), f"{name}.perturb changed x0 in place.")
        expect(
            sample.x.shape == x0.shape and sample.x.dtype == dtype,
            f"{name}.perturb returned {sample.x.dtype} of shape {tuple(sample.x.shape)} for x0 {dtype} of shape "
            f"{tuple(x0.shape)}.",
        )
        expect_finite(sample.x, f"x of {name}.perturb", at=t[:, None])
        expect(sample.t.dtype == torch.float64, f"{name}.perturb returned t as {sample.t.dtype}; time is float64.")
        again = process.perturb(x0, t, generator=seeded(1)).x
        expect(torch.equal(sample.x, again), f"{name}.perturb gives two results for one seed.")
    if not isinstance(process, GaussianProcess):
        return
    x0, t = torch.full((5000, 4), 1.5, dtype=torch.float64), t[torch.arange(5000) % len(t)]
    sample = process.perturb(x0, t, generator=seeded(2))
    expect(sample.eps is not None, f"{name}.perturb returned no eps; a GaussianProcess returns the noise it drew.")
    k = process.kernel(t, 2)
    assert sample.eps is not None
    expect_close(
        sample.x,
        k.alpha * x0 + k.sigma * sample.eps,
        1e-12 * (k.alpha + 5 * k.sigma) * 2,
        f"x of {name}.perturb",
        at=t[:, None],
    )
    unit = torch.eye(4, dtype=torch.float64)
    expect_moments(sample.eps, torch.zeros(4, dtype=torch.float64), unit, f"eps of {name}.perturb", relative=0.0)


def check_prior(process: ProcessSpec) -> None:
    """prior_log_prob is the density of prior draws: it integrates to 1, and draws follow it (Kolmogorov-Smirnov).

    One coordinate, 4000 draws; the test's false-alarm rate is 1e-6. A process without a prior density (its far end is
    data) raises UndefinedError and is not held to this.
    """
    if isinstance(process, InterpolantProcess):
        return
    name, n = type(process).__name__, 4000
    like = torch.empty(0, dtype=torch.float64)
    with global_randomness_untouched(f"{name}.prior"):
        draws = process.prior((n, 1), like=like, generator=seeded(6))
    expect(
        draws.shape == (n, 1) and draws.dtype == torch.float64,
        f"{name}.prior returned {draws.dtype} of shape {tuple(draws.shape)} for shape ({n}, 1) like a float64 tensor.",
    )
    single = process.prior((2, 3), like=torch.empty(0), generator=[seeded(0), seeded(1)])
    expect(single.dtype == torch.float32, f"{name}.prior does not keep the dtype of `like`.")
    alone = process.prior((1, 3), like=torch.empty(0), generator=[seeded(1)])
    expect(torch.equal(single[1:], alone), f"{name}.prior with one generator per sample depends on the batch.")
    try:
        process.prior_log_prob(draws)
    except (UndefinedError, IncompatibleError):
        return
    values = process.prior_log_prob(process.prior((5, 2, 3), like=like, generator=seeded(7)))
    expect(
        values.shape == (5,), f"{name}.prior_log_prob returned shape {tuple(values.shape)} for 5 examples, not (5,)."
    )
    reach = 4 * float(draws.abs().max())
    points = torch.linspace(-reach, reach, 40_001, dtype=torch.float64)
    density = process.prior_log_prob(points[:, None]).exp()
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, points)])
    expect(
        abs(float(cumulative[-1]) - 1) < 1e-3,
        f"exp of {name}.prior_log_prob integrates to {float(cumulative[-1]):.6g} over one coordinate; it must be 1.",
    )
    ordered = draws.flatten().sort().values
    index = torch.searchsorted(points, ordered).clamp(1, len(points) - 1)
    step = torch.arange(n, dtype=torch.float64)
    gap = torch.maximum((cumulative[index] - step / n).abs(), ((step + 1) / n - cumulative[index]).abs()).max()
    limit = math.sqrt(math.log(2 / 1e-6) / 2 / n)
    expect(
        float(gap) < limit,
        f"Draws of {name}.prior do not follow exp(prior_log_prob): the distribution functions differ by "
        f"{float(gap):.3g}, and chance explains {limit:.3g}.",
    )


def check_prior_matches(process: ProcessSpec) -> None:
    """p at t_max is the prior, up to `PRIOR_KL` nats per value for N(1, 1) data.

    KL(N(alpha, V) || N(0, s^2)) = (V + alpha^2) / 2 s^2 - 1/2 - log(V / s^2) / 2 with V = alpha^2 + sigma^2: what a
    sampler that starts from the prior cannot make up for.
    """
    if not isinstance(process, GaussianProcess):
        return
    end = process.ends()[1]
    alpha, sigma, std = float(end.alpha), float(end.sigma), process.prior_std()
    variance = alpha**2 + sigma**2
    divergence = ((variance + alpha**2) / std**2 - 1 - math.log(variance / std**2)) / 2
    expect(
        divergence <= PRIOR_KL,
        f"At t_max = {process.t_max:g}, {type(process).__name__} has alpha = {alpha:.4g} and sigma = {sigma:.4g}, "
        f"which is {divergence:.3g} nats per value from its prior N(0, {std:.4g}^2) for N(1, 1) data; at most "
        f"{PRIOR_KL} is allowed. Let more noise in by t_max, or correct prior_std.",
    )


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

r"""What the draws of every process are held to: perturb, the prior, the forward SDE, and short runs back to the data.

The data are N(m_0, V_0), so that x_t of a Gaussian process is N(alpha m_0, alpha^2 V_0 + sigma^2); allowances are
statistical, at fixed seeds. As in `itoflow.testing.processes`, checks that do not apply to a process return at once.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from itoflow.dynamics import ForwardSDE, simulate
from itoflow.errors import IncompatibleError, UndefinedError
from itoflow.grids import time_grid
from itoflow.interpolant import InterpolantProcess
from itoflow.loop import run_table
from itoflow.process import GaussianProcess, ProcessSpec
from itoflow.table import Row, Table
from itoflow.testing.assertions import (
    SIGMAS,
    expect,
    expect_close,
    expect_finite,
    expect_moments,
    global_randomness_untouched,
)
from itoflow.testing.oracles import GaussianOracle, OracleField
from itoflow.testing.problems import seeded

PRIOR_KL = 0.01
"""Largest Kullback-Leibler divergence of p at t_max from the prior, nats per value, for N(0, 1) data shifted by 1."""

DATA_MEAN, DATA_STD = 0.7, 0.6
"""The law of the data, one coordinate, where a check needs one."""


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

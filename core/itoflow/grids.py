r"""Time grids: the times at which a sampler calls the network, from t_max down to t_min.

With s = sigma / alpha, the noise over the signal, and lambda = -2 log s:

    uniform     uniform in t
    quadratic   uniform in sqrt(t)
    logit       uniform in log(t / (1 - t))
    log-snr     uniform in lambda
    karras      uniform in s^(1/rho)
    optimal     stored: for each number of network calls the times, on Gaussian mixtures of unit variance, at which
                an exponential Adams method made the least error (optimal.json, `optimal_calls`)

Every Gaussian process has the same flow up to scale and time, so one list of s serves all of them; it holds
w = asinh(1/s), which is 0 where no signal is left and grows like -log s. It is moved in w to start at the process's
own s(t_max); to end at s(t_min) it is cut out of a run of more calls. For data of another standard deviation s is
counted in multiples of it.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 5 for `karras`.
    Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502, appendix D.2 for
    `quadratic`.
"""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from itoflow.errors import IncompatibleError, InputError
from itoflow.process import GaussianProcess, GridName, ProcessSpec

LOG_SNR_LIMIT = 20.0
"""Grids in the log signal-to-noise ratio clip it to +-20 where an end of the process has an infinite one; `logit`
clips log(t / (1 - t)) to +-10, which is the same on a straight line."""


def time_grid(
    process: ProcessSpec, grid: GridName, knots: int, *, rho: float = 7.0, data_std: float = 1.0
) -> tuple[float, ...]:
    """`knots` times from t_max down to t_min, strictly decreasing, float64; one knot is t_max alone.

    Arguments:
        grid: a name of the module's table.
        rho: exponent of `karras`.
        data_std: standard deviation of the data, for `optimal`, data units.

    Raises:
        InputError: fewer than one knot, or knots that coincide in float64.
        IncompatibleError: a grid in the signal-to-noise ratio on a process that has none.
    """
    if knots < 1:
        raise InputError(f"A time grid needs at least one time. Given: {knots}.")
    if knots == 1:
        return (process.t_max,)
    unit = torch.linspace(0, 1, knots, dtype=torch.float64)
    if grid in ("uniform", "quadratic"):
        power = 1.0 if grid == "uniform" else 2.0
        start, end = process.t_max ** (1 / power), process.t_min ** (1 / power)
        t = (start + unit * (end - start)) ** power
    elif grid == "logit":
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        start, end = ends.logit().clamp(-LOG_SNR_LIMIT / 2, LOG_SNR_LIMIT / 2).tolist()
        t = (start + unit * (end - start)).sigmoid()
    else:
        if not isinstance(process, GaussianProcess):
            raise IncompatibleError(
                f"Grid {grid!r} needs the signal-to-noise ratio of a GaussianProcess; {type(process).__name__} has "
                "none. Use 'uniform', 'quadratic', or times of your own."
            )
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        start, end = process.log_snr(ends).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).tolist()
        if grid == "optimal":
            log_snr = _optimal_log_snr(process, knots - 1, data_std)
        elif grid == "log-snr":
            log_snr = start + unit * (end - start)
        else:
            low, high = math.exp(-end / 2 / rho), math.exp(-start / 2 / rho)
            log_snr = -2 * rho * (high + unit * (low - high)).log()
        t = process.log_snr_inverse(log_snr)
    times = [float(value) for value in t]
    times[0], times[-1] = process.t_max, process.t_min
    return _decreasing(tuple(times), "Use fewer steps.")


def optimal_calls(n: float, count: int | None = None) -> tuple[float, ...]:
    """w = asinh(1/s) of n network calls, the first at s = infinity, where w = 0.

    Between stored numbers of calls, and beyond them, it is interpolated in log n, with s as a function of k / n; so n
    need not be whole.

    Arguments:
        count: how many of them, from the first.
    """
    count = math.ceil(n) if count is None else count
    stored = _stored()
    if n in stored:
        return (0.0, *stored[int(n)])[:count]
    return (0.0, *(_optimal_call(n, k) for k in range(1, count)))


def calls_to(n: int, end: float) -> float:
    """The length of the optimal run, in calls, whose n-th step ends at w = `end`: n for infinity, and more above."""
    if _optimal_call(n, n - 1e-9) <= end:
        return float(n)
    low, high = float(n), 2.0 * n
    while _optimal_call(high, n) > end:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _optimal_call(middle, n) > end else (low, middle)
    return high


def optimal_reaches(process: GaussianProcess, n: int, data_std: float) -> bool:
    """Whether the last of n calls would be at t_min or beyond."""
    return n > 1 and optimal_calls(n)[-1] >= _ends(process, data_std)[1]


def run_length(process: GaussianProcess, n: int, data_std: float) -> float:
    """`calls_to` the process's t_min in n steps."""
    return calls_to(n, _ends(process, data_std)[1])


def _ends(process: GaussianProcess, data_std: float) -> tuple[float, float]:
    """w at t_max and at t_min, s in multiples of the data's standard deviation."""
    data, prior = process.ends()
    end = math.asinh(float(data.alpha / data.sigma) * data_std) if float(data.sigma) > 0 else math.inf
    return math.asinh(float(prior.alpha / prior.sigma) * data_std), end


@cache
def _stored() -> dict[int, list[float]]:
    stored = json.loads(Path(__file__).with_name("optimal.json").read_text(encoding="utf-8"))
    return {int(n): w for n, w in stored.items()}


_FINE, _COARSE = 0.1, 8.0
"""g = asinh(1 / (fine (1/s + 1/coarse))), in which optimal s are nearly uniform; finite at both ends of s."""


def _optimal_call(n: float, k: float) -> float:
    """w at the place k <= n of a run of n calls."""
    stored = _stored()
    below = max((m for m in stored if m <= n), default=min(stored))
    above = min((m for m in stored if m > n), default=below)
    share = math.log(n / below) / math.log(above / below) if above != below else 0.0
    low, high = (_curve(stored[m], k / n) for m in (below, above))
    g = (1 - share) * low + share * high
    return math.asinh(1 / (_FINE * math.sinh(g)) - 1 / _COARSE) if g > 0 else math.inf


def _curve(calls: list[float], place: float) -> float:
    """g at a place in [0, 1] of the run; calls[k - 1] is w at k / n, and s = 0 at 1."""
    g = [math.asinh(1 / _FINE / (math.sinh(w) + 1 / _COARSE)) for w in (0.0, *calls)] + [0.0]
    at = place * (len(g) - 1)
    low = min(int(at), len(g) - 2)
    return g[low] + (at - low) * (g[low + 1] - g[low])


def _optimal_log_snr(process: GaussianProcess, n: int, data_std: float) -> torch.Tensor:
    """log-SNR at n + 1 times, the last t_min: the n calls of the run that goes there in as many steps."""
    start, end = _ends(process, data_std)
    calls = optimal_calls(calls_to(n, end), n)
    w = [start + value * (1 - start / max(calls[-1], start)) if value else start for value in calls]
    return torch.tensor(
        [2 * math.log(max(math.sinh(v), 1e-300) / data_std) for v in (*w, min(end, 700.0))], dtype=torch.float64
    )


def custom_grid(process: ProcessSpec, times: tuple[float, ...], knots: int) -> tuple[float, ...]:
    """The user's own times, checked against the process and the number of steps.

    Raises:
        InputError: the wrong number of times, not numbers, not decreasing, or outside [t_min, t_max].
    """
    if len(times) != knots:
        raise InputError(
            f"This sampler and process need {knots} times in `grid`, {len(times)} are given. "
            "Set `steps` to match: one step per time, and without denoising one more time than steps."
        )
    if not all(math.isfinite(t) for t in times):
        raise InputError(f"Times must be numbers. Given: {times}.")
    _decreasing(times, "From noise to data, each is to be below the one before.")
    if times[0] > process.t_max or times[-1] < process.t_min:
        raise InputError(
            f"Times {times[0]:g} to {times[-1]:g} leave the process's [{process.t_min:g}, {process.t_max:g}]."
        )
    return times


def _decreasing(times: tuple[float, ...], advice: str) -> tuple[float, ...]:
    for i, (now, after) in enumerate(pairwise(times)):
        if not after < now:
            raise InputError(f"Times must decrease strictly: time {i + 2} is {after!r} after {now!r}. {advice}")
    return times

r"""Time grids: the times at which a sampler calls the network, from t_max down to t_min.

With s = sigma / alpha, the noise over the signal, and lambda = -2 log s:

    uniform     uniform in t
    quadratic   uniform in sqrt(t)
    logit       uniform in log(t / (1 - t))
    log-snr     uniform in lambda
    karras      uniform in s^(1/rho)
    optimal     stored: for each number of network calls the times, on Gaussian mixtures of unit variance and small
                networks, at which an exponential Adams method made the least error (optimal.json, `optimal_calls`)

Every Gaussian process has the same flow up to scale and time, so one list of s serves all of them; it holds
w = asinh(1/s), which is 0 where no signal is left and grows like -log s. What starts at s(t_max) and ends at s(t_min)
is cut out of a run of more calls. For data of another standard deviation s is counted in multiples of it.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 5 for `karras`.
    Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502, appendix D.2 for
    `quadratic`.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from itoflow.errors import IncompatibleError, InputError
from itoflow.process import GaussianProcess, GridName, ProcessSpec

LOG_SNR_LIMIT = 20.0
"""Grids in the log signal-to-noise ratio clip it to +-20, beyond which nothing happens to data of a deviation near 1;
from there one step leads to an end of the process that lies beyond, infinite or not. `logit` clips log(t / (1 - t)) to
+-10, which is the same on a straight line."""


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
        snr = process.log_snr(ends)
        start, end = snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).tolist()
        if grid != "optimal" and not start < end:
            raise InputError(
                f"Grid {grid!r} divides a log signal-to-noise ratio between -{LOG_SNR_LIMIT:g} and {LOG_SNR_LIMIT:g}; "
                f"that of {process!r} goes from {snr[0]:.3g} to {snr[1]:.3g}. Give the data in a unit near their "
                "deviation, or use 'uniform'."
            )
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


def optimal_calls(n: float, count: int | None = None, start: float = 0.0, *, even: bool = False) -> tuple[float, ...]:
    """w = asinh(1/s) of n network calls from w = `start`, which is 0 at s = infinity.

    Between stored numbers of calls, and beyond them, it is interpolated in log n, with s as a function of k / n; so n
    need not be whole. From a start within the first step, at a place p < 1, the run goes on as from p^2: nearly where
    that from infinity does, as little is known there yet.

    Arguments:
        count: give only the first so many; the last step still ends where a run from infinity would.
        even: see `evened`.
    """
    count = math.ceil(n) if count is None else count
    if start == 0 and n in _stored(even):
        return (0.0, *_stored(even)[int(n)])[:count]
    first = _place(n, start, even)
    behind = first * min(first, 1.0)
    return (start, *(_call(n, behind + (1 - behind / count) * k, even) for k in range(1, count)))


def calls_to(n: int, end: float, *, even: bool = False) -> float:
    """The length of the optimal run, in calls, whose n-th step ends at w = `end`: n for infinity, and more above."""
    if _call(n, n, even) <= end:
        return float(n)
    low, high = float(n), 2.0 * n
    while _call(high, n, even) > end:
        low, high = high, 2 * high
    return _turn(lambda length: _call(length, n, even) > end, low, high)[1]


def evened(process: GaussianProcess, n: int) -> bool:
    """Whether `_SHARE` of the n calls are uniform in log s: where they are many and s(t_min) is above 0.

    Exact laws are smooth at both ends of s, and the stored times leave them in a few steps; what a network learns
    varies there too, where the range of log s is finite.
    """
    return n >= _MANY and float(process.ends()[0].sigma) > 0


def optimal_reaches(process: GaussianProcess, n: int, data_std: float) -> bool:
    """Whether the last of n calls is at t_min: it would be there or beyond, or the calls are `evened`."""
    return n > 1 and (evened(process, n) or optimal_calls(n)[-1] >= _ends(process, data_std)[1])


def run_length(process: GaussianProcess, n: int, data_std: float) -> float:
    """`calls_to` the process's t_min in n steps."""
    return calls_to(n, _ends(process, data_std)[1], even=evened(process, n))


def _ends(process: GaussianProcess, data_std: float) -> tuple[float, float]:
    """w at t_max and at t_min, s in multiples of the data's standard deviation."""
    data, prior = process.ends()
    end = math.asinh(float(data.alpha / data.sigma) * data_std) if float(data.sigma) > 0 else math.inf
    return math.asinh(float(prior.alpha / prior.sigma) * data_std), end


@cache
def _stored(even: bool) -> dict[int, list[float]]:
    stored = json.loads(Path(__file__).with_name("optimal.json").read_text(encoding="utf-8"))
    if even:
        return {int(n): _spread(w) for n, w in stored.items() if int(n) >= _SHAPES}
    return {int(n): w for n, w in stored.items()}


def _spread(calls: list[float]) -> list[float]:
    """The calls with `_SHARE` of them moved to be uniform in log s, but for the last step, which goes to s = 0."""
    n, g = len(calls) + 1, _curve_of(calls)
    falling = [-value for value in g]

    def share(log_s: float) -> float:
        """How much of the run is before this s."""
        s = math.exp(log_s)
        at = _g(1 / s)
        i = min(bisect_right(falling, -at), n) - 1
        optimal = (i + (g[i] - at) / (g[i] - g[i + 1])) / n
        even = (1 - 1 / n) * max(math.log(_HIGH / s) / math.log(_HIGH / _LOW), 0) if s > _LOW else 1 - s / _LOW / n
        return (1 - _SHARE) * optimal + _SHARE * even

    def call(k: int) -> float:
        return math.asinh(math.exp(-_turn(lambda log_s: share(log_s) < k / n, math.log(1e6), math.log(1e-6))[0]))

    return [call(k) for k in range(1, n)]


_MANY, _SHARE, _HIGH, _LOW, _SHAPES = 22, 0.6, 200.0, 0.004, 48
"""`evened` from so many calls on: so many of them are uniform in log s between these two, and the rest is distributed
as in the stored runs of so many calls and more."""
_FINE, _COARSE = 0.1, 8.0
"""g = asinh(1 / (fine (1/s + 1/coarse))), in which optimal s are nearly uniform; finite at both ends of s."""


@cache
def _curve(n: int, even: bool) -> list[float]:
    return _curve_of(_stored(even)[n])


def _curve_of(calls: list[float]) -> list[float]:
    """g at the calls of a run, and at s = 0."""
    return [_g(math.sinh(w)) for w in (0.0, *calls)] + [0.0]


def _g(signal: float) -> float:
    """g at 1/s."""
    return math.asinh(1 / _FINE / (signal + 1 / _COARSE))


def _call(n: float, k: float, even: bool) -> float:
    """w at the place k <= n of a run of n calls."""
    below = max((m for m in _stored(even) if m <= n), default=min(_stored(even)))
    above = min((m for m in _stored(even) if m > max(n, below)), default=below) if n > below else below
    share = math.log(n / below) / math.log(above / below) if above != below else 0.0
    low, high = (between(_curve(m, even), k / n * m) for m in (below, above))
    g = (1 - share) * low + share * high
    return math.asinh(1 / (_FINE * math.sinh(g)) - 1 / _COARSE) if g > 0 else math.inf


def between(values: Sequence[float], place: float) -> float:
    """The values, linear between their places 0, 1, ..."""
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])


def _place(n: float, w: float, even: bool) -> float:
    """Where a run of n calls is at w."""
    return _turn(lambda place: _call(n, place, even) < w, 0.0, float(n))[0] if w > 0 else 0.0


def _turn(before: Callable[[float], bool], first: float, last: float) -> tuple[float, float]:
    """The last number for which `before` holds and the first for which it does not, from one end to the other."""
    for _ in range(50):
        middle = (first + last) / 2
        first, last = (middle, last) if before(middle) else (first, middle)
    return first, last


def _optimal_log_snr(process: GaussianProcess, n: int, data_std: float) -> torch.Tensor:
    """log-SNR at n + 1 times, the last t_min: the n calls of the run that goes there in as many steps."""
    start, end = _ends(process, data_std)
    even = evened(process, n)
    w = (*optimal_calls(calls_to(n, end, even=even), n, start, even=even), min(end, 700.0))
    return torch.tensor([2 * math.log(max(math.sinh(v), 1e-300) / data_std) for v in w], dtype=torch.float64)


def custom_grid(process: ProcessSpec, times: tuple[float, ...], knots: int, steps: int) -> tuple[float, ...]:
    """The user's own times, checked against the process and the number of steps, which needs `knots` of them.

    Raises:
        InputError: the wrong number of times, not numbers, not decreasing, or outside [t_min, t_max].
    """
    if len(times) != knots:
        fitting = steps + len(times) - knots
        raise InputError(
            f"With steps = {steps} this sampler and process need {knots} times in `grid`, {len(times)} are given. "
            + (f"For these times use steps = {fitting}." if fitting >= 1 else f"Give at least {knots - steps + 1}.")
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

r"""Time grids: the times at which a sampler calls the network, from t_max down to t_min.

With s = sigma / alpha, the noise over the signal, and lambda = -2 log s:

    uniform     uniform in t
    quadratic   uniform in sqrt(t)
    logit       uniform in log(t / (1 - t))
    log-snr     uniform in lambda
    karras      uniform in s^(1/rho)

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 5 for `karras`.
    Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502, appendix D.2 for
    `quadratic`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from itoflow.errors import IncompatibleError, InputError
from itoflow.process import GaussianProcess, GridName, ProcessSpec

LOG_SNR_LIMIT = 20.0
"""Grids in the log signal-to-noise ratio clip it to +-20 where an end of the process has an infinite one; `logit`
clips log(t / (1 - t)) to +-10, which is the same on a straight line."""


def time_grid(process: ProcessSpec, grid: GridName, knots: int, *, rho: float = 7.0) -> tuple[float, ...]:
    """`knots` times from t_max down to t_min, strictly decreasing, float64; one knot is t_max alone.

    Arguments:
        grid: a name of the module's table.
        rho: exponent of `karras`.

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
        if grid == "log-snr":
            log_snr = start + unit * (end - start)
        else:
            low, high = math.exp(-end / 2 / rho), math.exp(-start / 2 / rho)
            log_snr = -2 * rho * (high + unit * (low - high)).log()
        t = process.log_snr_inverse(log_snr)
    times = [float(value) for value in t]
    times[0], times[-1] = process.t_max, process.t_min
    return _decreasing(tuple(times))


def custom_grid(process: ProcessSpec, times: tuple[float, ...], knots: int) -> tuple[float, ...]:
    """The user's own times, checked against the process and the number of steps.

    Raises:
        InputError: the wrong number of times, not decreasing, or outside [t_min, t_max].
    """
    if len(times) != knots:
        raise InputError(
            f"This sampler and process need {knots} times in `grid`, {len(times)} are given. "
            "Set `steps` to match: one step per time, and without denoising one more time than steps."
        )
    if times[0] > process.t_max or times[-1] < process.t_min:
        raise InputError(
            f"Times {times[0]:g} to {times[-1]:g} leave the process's [{process.t_min:g}, {process.t_max:g}]."
        )
    return _decreasing(times)


def _decreasing(times: tuple[float, ...]) -> tuple[float, ...]:
    for i, (now, after) in enumerate(pairwise(times)):
        if not after < now:
            raise InputError(f"Times must decrease strictly: time {i + 2} is {after!r} after {now!r}. Use fewer steps.")
    return times

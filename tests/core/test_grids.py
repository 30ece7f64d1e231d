"""Time grids: uniform in what they say, from end to end, and strictly falling whatever their number."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from itoflow import IncompatibleError, InputError
from itoflow.grids import custom_grid, optimal_calls, time_grid
from itoflow.process import GridName
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared

PROCESSES = [Preserving(), Exploding(), Straight(), Preserving(t_min=0.2, t_max=0.6)]


def at(value):
    return torch.tensor(value, dtype=torch.float64)


GRIDS = get_args(GridName)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_falls_strictly_between_exact_ends(process, grid):
    for knots in range(1, 102):
        times = time_grid(process, grid, knots)
        assert len(times) == knots
        assert times[0] == process.t_max
        assert knots == 1 or times[-1] == process.t_min
        assert all(later < now for now, later in pairwise(times))


def test_grids_are_uniform_in_what_they_say():
    process = Preserving(t_min=0.05, t_max=0.95)
    knots = {grid: at(time_grid(process, grid, 12, rho=5.0)) for grid in GRIDS}
    ratio = torch.tan(1.56 * knots["karras"])  # sigma / alpha
    evens = (
        knots["uniform"],
        knots["quadratic"].sqrt(),
        knots["logit"].logit(),
        process.log_snr(knots["log-snr"]),
        ratio ** (1 / 5),
    )
    for even in evens:
        torch.testing.assert_close(even.diff(), even.diff()[:1].expand(11), rtol=1e-9, atol=1e-12)


def test_karras_grid_is_that_of_the_paper():
    """Equation 5 of EDM with sigma = 0.05 * 200^t."""
    process, n, rho = Exploding(), 18, 7
    i = torch.arange(n, dtype=torch.float64)
    low, high = 0.05 ** (1 / rho), 10.0 ** (1 / rho)
    sigma = (high + i / (n - 1) * (low - high)) ** rho
    torch.testing.assert_close(process.sigma(at(time_grid(process, "karras", n))), sigma, rtol=1e-10, atol=1e-12)


def test_grids_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="at least one time"):
        time_grid(Preserving(), "uniform", 0)
    for grid in ("log-snr", "karras"):
        with pytest.raises(IncompatibleError, match=r"'uniform', 'quadratic'"):
            time_grid(Undeclared(), grid, 5)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ((0.9, 0.5), "With steps = 2 .* need 3 times in `grid`, 2 are given. For these times use steps = 1"),
        ((0.9,), "1 are given. Give at least 2"),
        ((1.1, 0.5, 0.2), "leave the process's"),
        ((0.9, 0.5, 0.0), "leave the process's"),
        ((0.9, 0.5, 0.5), r"decrease strictly: time 3 is 0.5 after 0.5"),
        ((0.2, 0.5, 0.9), r"time 2 is 0.5 after 0.2\. From noise to data"),
        ((0.9, math.nan, 0.2), "must be numbers"),
        ((math.nan,) * 3, "must be numbers"),
    ],
)
def test_custom_times_are_checked(times, says):
    with pytest.raises(InputError, match=says):
        custom_grid(Preserving(), times, 3, 2)


def test_own_times_on_a_process_without_noise_at_t_min_end_where_they_say(toy):
    process, euler = Straight(), toy.Euler(steps=3, grid=(1.0, 0.6, 0.3))
    assert [row.t for row in euler.table(process).rows] == [1.0, 0.6, 0.3]
    assert euler.table(process).rows[-1].out == "x0"
    times = euler.replace(grid=(1.0, 0.6, 0.3, 0.1), denoise=False).table(process)
    assert [row.t for row in times.rows] == [1.0, 0.6, 0.3]
    assert times.rows[-1].out == "velocity"
    to_data = euler.replace(grid=(1.0, 0.6, 0.3, 0.0), denoise=False).table(process)
    assert to_data.rows[-1].out == "x0"


def test_a_process_whose_noise_never_meets_the_data_has_no_grid_in_log_snr():
    class Huge(Exploding):
        def sigma(self, t):
            return 3e4 * 100**t

    with pytest.raises(InputError, match=r"goes from -29\.8 to -20\.6\. Give the data in a unit"):
        time_grid(Huge(), "log-snr", 5)


def test_evened_runs_leave_no_gap_in_log_snr():
    """Where it is evened, a share is uniform in log s: no step is longer than that share alone would make it."""
    for calls in (24, 48, 56, 64, 100):
        s = [1 / math.sinh(w) for w in optimal_calls(calls, even=True)[1:]]
        steps = [math.log(now / after) for now, after in pairwise(s) if now < 100 and after > 0.004]
        assert max(steps) < math.log(200 / 0.004) / 0.4 / calls * 1.05


def test_the_optimal_grid_is_cut_at_both_ends():
    """From w = start on, n steps end where those from infinity do; the first and last times are the process's."""
    for calls in (6, 10, 33, 64):
        for start in (0.01, 0.1, 1.0):
            cut, whole = optimal_calls(calls, start=start), optimal_calls(calls)
            assert cut[0] == start
            assert len(cut) == calls
            assert all(after > now for now, after in pairwise(cut))
            assert all(late > early for late, early in zip(cut, whole, strict=True))
    process = Preserving(t_min=0.2, t_max=0.6)
    times = time_grid(process, "optimal", 9)
    assert (times[0], times[-1]) == (0.6, 0.2)
    steps = [now - after for now, after in pairwise(times)]
    assert max(steps) < 3 * min(steps)

"""`auto`: exact where its frame is, the same on every process, better than the methods it is made from."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from itoflow import Table
from itoflow.grids import optimal_calls, time_grid
from itoflow.testing import GaussianOracle, MixtureOracle
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared, UndeclaredOracle, exact_field, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers.auto import Auto, corrections
from itoflow_samplers.ddim import DDIM
from itoflow_samplers.multistep import ExponentialAdams
from itoflow_samplers.ode import Heun

PROCESSES = [Preserving(), Exploding(), Straight()]
CALLS = [*range(1, 41), 50, 64, 77, 100, 150]


def modes(process, std=1.0):
    """Five modes in 6 dimensions, of deviation 1 per dimension about, times `std`."""
    means = torch.randn(5, 6, dtype=torch.float64, generator=seeded(3))
    return MixtureOracle(process, std * means, stds=0.25 * std)


def exact(oracle, x, t=None):
    """The endpoint by many steps of a plain method."""
    return ExponentialAdams(order=4, steps=600, grid="optimal", data_std=oracle.data_std)(oracle, x)


def rmse(x, y):
    return float((x - y).square().mean().sqrt())


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("calls", CALLS)
def test_any_budget_is_spent_exactly(process, calls):
    """One row an evaluation, times that fall from t_max, whatever the number; with the ending and without."""
    for denoise in (True, False):
        rows = Auto(steps=calls, denoise=denoise).table(process).rows
        assert len(rows) == calls
        times = [row.t for row in rows]
        assert times[0] == process.t_max
        assert all(after < now for now, after in pairwise(times))
        assert times[-1] >= process.t_min
        assert max(abs(value) for row in rows for value in (row.a, *row.b)) < 1e6


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_gaussian_data_of_the_frame_are_carried_exactly(process):
    """F = 0 for N(0, c^2): any table of (1) must leave z as it is."""
    oracle = GaussianOracle(process, torch.zeros(3, dtype=torch.float64), 0.49)
    x = oracle.sample(8, process.t_max, generator=seeded(0))
    got = Auto(steps=6, denoise=False)(oracle, x)
    torch.testing.assert_close(got, oracle.flow(x, process.t_max, process.t_min), rtol=1e-9, atol=1e-9)


def test_one_table_serves_all_processes():
    """From s = 80 on, VE and a straight line end at the same points: the flow is the same up to scale and time."""
    ve, line = Exploding(t_max=1.0), Straight(t_max=10 / 11)  # s = 10 at the start of both
    x = torch.randn(16, 6, dtype=torch.float64, generator=seeded(1)) * 10
    first = Auto(steps=12)(modes(ve), x)
    second = Auto(steps=12)(modes(line), x / 11)
    assert rmse(first, second) < 0.02 * rmse(first, torch.zeros_like(first))


@pytest.mark.parametrize("std", [0.2, 1.0, 5.0])
def test_the_scale_of_the_data_is_the_field_s(std):
    """Data of another scale are carried as well, and the option overrides the field's."""
    process = Straight()
    oracle, unit = modes(process, std), modes(process)
    x = torch.randn(64, 6, dtype=torch.float64, generator=seeded(2))
    got, expected = Auto(steps=20)(oracle, x), exact(oracle, x)
    ours, plain = rmse(got, expected) / std, rmse(Auto(steps=20)(unit, x), exact(unit, x))
    assert ours < 5 * plain + 1e-4
    torch.testing.assert_close(Auto(steps=20, data_std=oracle.data_std)(oracle, x), got)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("calls", [6, 11, 20, 41])
def test_auto_is_more_accurate_than_what_it_replaces(process, calls):
    """On a mixture that no table was computed on: below Heun and DDIM at the same number of evaluations."""
    oracle = modes(process)
    x = oracle.sample(200, process.t_max, generator=seeded(4))
    expected = exact(oracle, x)

    def error(sampler):
        return float((sampler(oracle, x) - expected).square().mean(1).sqrt().median())

    others = [error(DDIM(steps=calls)), error(Heun(steps=(calls + 1) // 2))]
    assert error(Auto(steps=calls)) < 0.7 * min(others)


def test_a_process_that_is_not_gaussian_is_run_in_its_velocity():
    field = exact_field(Undeclared())
    assert isinstance(field, UndeclaredOracle)
    watched = Watched(field)
    x = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    assert bool(torch.isfinite(Auto(steps=9)(watched, x)).all())
    assert watched.calls == 9
    assert all(row.out == "velocity" for row in Auto(steps=9).table(Undeclared()).rows)


def test_other_grids_take_no_corrections():
    table = Auto(steps=12, grid="log-snr").table(Preserving())
    assert isinstance(table, Table)
    assert table.depth == 4


def test_stored_methods_are_consistent():
    """Corrections sum to zero with delta_0, fit the calls, and times fall; the same numbers of calls in both files."""
    for calls in CALLS:
        _, deltas = corrections(calls)
        assert len(deltas) == calls
        w = optimal_calls(calls)
        assert len(w) == calls
        assert w[0] == 0
        assert all(after > now for now, after in pairwise(w))
        assert all(math.isfinite(value) for row in deltas for value in row)


def test_the_optimal_grid_starts_and_ends_with_the_process():
    for process in PROCESSES:
        for knots in range(1, 102):
            times = time_grid(process, "optimal", knots)
            assert times[0] == process.t_max
            assert len(times) == knots
            assert knots == 1 or times[-1] == process.t_min

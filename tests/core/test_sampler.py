"""The table and its one loop, against loops written out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from itoflow import (
    InputError,
    NetworkField,
    NumericalError,
    Parametrization,
    Row,
    Table,
    TableSampler,
)
from itoflow.grids import time_grid
from itoflow.loop import run_table
from itoflow.testing.problems import Exploding, Preserving, Straight, gaussian, mixture, seeded
from itoflow.testing.samplers import Watched

PROCESSES = [Preserving(), Exploding(), Straight(), Preserving(t_min=0.2, t_max=0.6)]
TIMES = (0.9, 0.7, 0.4, 0.35, 0.1)


def at(value):
    return torch.tensor(value, dtype=torch.float64)


class Rotor(nn.Module):
    """A network whose output depends on x and t, so that every coefficient matters."""

    def forward(self, x, t, cond):
        return torch.tanh(x.flip(1)) + t[:, None] * x


FIELDS = {
    "exact": mixture(Preserving()),
    "network": NetworkField(Rotor(), Preserving(), Parametrization(prediction="v", data_std=0.7)),
}


@pytest.fixture(params=FIELDS)
def field(request):
    return FIELDS[request.param]


@pytest.fixture
def x():
    return torch.randn(5, 2, dtype=torch.float64, generator=seeded(0))


def check_against(table, field, x, expected):
    """The table's loop gives `expected`, and leaves x as it was."""
    kept = x.clone()
    torch.testing.assert_close(run_table(table, field, x, generator=seeded(9)), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


def test_euler(field, x):
    u = x
    for t, s in pairwise(TIMES):
        u = u + (s - t) * field(u, at(t)).velocity
    check_against(Table(tuple(Row(t, b=(s - t,)) for t, s in pairwise(TIMES))), field, x, u)


def test_heun(field, x):
    rows, u = [], x
    for t, s in pairwise(TIMES):
        h = s - t
        rows += [Row(t), Row(s, q=(h,), b=(h / 2, h / 2))]
        first = field(u, at(t)).velocity
        u = u + h / 2 * (first + field(u + h * first, at(s)).velocity)
    check_against(Table(tuple(rows)), field, x, u)


def test_midpoint_whose_only_history_is_an_inner_stage(field, x):
    """b looks back one call and q one call further: the history must hold both."""
    rows, u = [], x
    for t, s in pairwise(TIMES):
        h = s - t
        rows += [Row(t), Row(t + h / 2, q=(h / 2,), b=(h,))]
        u = u + h * field(u + h / 2 * field(u, at(t)).velocity, at(t + h / 2)).velocity
    check_against(Table(tuple(rows)), field, x, u)


def test_adams_bashforth_2_with_variable_steps(field, x):
    rows, u, last, previous = [], x, None, 0.0
    for t, s in pairwise(TIMES):
        h = s - t
        v = field(u, at(t)).velocity
        if last is None:
            rows.append(Row(t, b=(h,)))
            u = u + h * v
        else:
            r = h / previous
            rows.append(Row(t, b=(h * (1 + r / 2), -h * r / 2)))
            u = u + h * ((1 + r / 2) * v - r / 2 * last)
        last, previous = v, h
    check_against(Table(tuple(rows)), field, x, u)


def test_x0_and_eps_rows_with_noise(field, x):
    """DDIM-like: x_s = a x + b x0 + c z, then a row in eps."""
    generator = seeded(9)
    u = 0.6 * x + 0.3 * field(x, at(0.8)).x0 + 0.2 * torch.randn(5, 2, dtype=torch.float64, generator=generator)
    u = 1.1 * u - 0.4 * field(u, at(0.5)).eps
    rows = (Row(0.8, out="x0", a=0.6, b=(0.3,), c=0.2), Row(0.5, out="eps", a=1.1, b=(-0.4,)))
    check_against(Table(rows), field, x, u)


def test_churn_row_uses_one_noise_for_input_and_state(field, x):
    """EDM's churn: x_hat = p x + r z, then x = a x + b v(x_hat) + c z with the same z."""
    generator, u, rows = seeded(9), x, []
    for t, s in pairwise(TIMES):
        z = torch.randn(5, 2, dtype=torch.float64, generator=generator)
        u = 0.9 * u + (s - t) * field(1.05 * u + 0.3 * z, at(t)).velocity + 0.2 * z
        rows.append(Row(t, a=0.9, b=(s - t,), c=0.2, p=1.05, r=0.3))
    check_against(Table(tuple(rows)), field, x, u)


def test_corrector_row_with_both_histories(field, x):
    v0 = field(x, at(0.8)).velocity
    u1 = x + 0.1 * v0
    v1 = field(u1 - 0.2 * v0, at(0.6)).velocity
    u2 = 0.9 * u1 + 0.3 * v1 - 0.05 * v0
    v2 = field(u2 + 0.1 * v1 + 0.2 * v0, at(0.3)).velocity
    u3 = u2 + 0.4 * v2 + 0.1 * v1 - 0.2 * v0
    rows = (
        Row(0.8, b=(0.1,)),
        Row(0.6, q=(-0.2,), a=0.9, b=(0.3, -0.05)),
        Row(0.3, q=(0.1, 0.2), b=(0.4, 0.1, -0.2)),
    )
    check_against(Table(rows), field, x, u3)


def test_strength_enters_the_history(field, x):
    prediction = field(x, at(0.5))
    expected = x - 0.1 * (prediction.velocity - 0.5 * 0.7**2 * prediction.score)
    check_against(Table((Row(0.5, b=(-0.1,), eta=0.7),)), field, x, expected)


def test_callback_sees_the_estimate_of_x0_of_every_kind_of_row(field, x):
    rows = (
        Row(0.8, b=(-0.1,)),
        Row(0.7, b=(-0.1,), eta=0.6),
        Row(0.6, out="eps", a=1.1, b=(-0.4,)),
        Row(0.5, q=(0.2,), out="x0", b=(0.1,)),
    )
    watched, seen, inputs = Watched(field), [], []
    original = watched.forward
    watched.forward = lambda v, t, cond=None: (inputs.append(v), original(v, t, cond))[1]
    run_table(Table(rows), watched, x, callback=seen.append)
    assert [s.index for s in seen] == [0, 1, 2, 3]
    for step, row, v in zip(seen, rows, inputs, strict=True):
        assert (step.t, step.calls) == (row.t, 4)
        torch.testing.assert_close(step.x0, field(v, at(row.t)).x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((), "at least one row"),
        ((Row(0.5), Row(0.4, b=(math.nan,))), r"Row 2 of 2 \(t = 0.4\) has a coefficient that is not finite"),
        ((Row(0.5, c=math.inf),), "not finite"),
        ((Row(0.5, b=(1.0, 1.0)),), "longer than the calls made"),
        ((Row(0.5, q=(1.0,)),), "longer than the calls made"),
        ((Row(1.2),), r"outside \[0, 1\]"),
        ((Row(0.5, out="eps", eta=1.0),), "only 'velocity' takes"),
    ],
)
def test_a_table_that_cannot_run_names_its_row(rows, says):
    with pytest.raises(InputError, match=says):
        Table(rows)


class Walk(TableSampler):
    def table(self, process):
        times, ending = self.times(process)
        return Table((*(Row(t, b=(s - t,), c=0.01) for t, s in pairwise(times)), *ending))


def test_nan_names_sampler_step_and_time(x):
    broken = Watched(gaussian(Preserving()), broken_below=0.5)
    grid = time_grid(Preserving(), "uniform", 10)
    first = next(i for i, t in enumerate(grid) if t < 0.5)
    with pytest.raises(NumericalError, match=rf"Sampler Walk .* step {first + 1} of 10 .*t = {grid[first]:.6g}"):
        Walk(steps=10)(broken, x, generator=seeded(0))


def test_steps_count_network_calls_whether_or_not_the_end_is_clean(x):
    """n steps cost n evaluations of a one-stage method: with denoising, without, and where sigma(t_min) = 0."""
    for process in PROCESSES:
        for denoise in (True, False):
            watched = Watched(gaussian(process))
            Walk(steps=7, denoise=denoise)(watched, x, generator=seeded(0))
            assert watched.calls == 7, (process, denoise)


def test_custom_times_are_used_as_given(x):
    sampler = Walk(steps=3, grid=(0.9, 0.4, 0.2))
    assert [row.t for row in sampler.table(Preserving()).rows] == [0.9, 0.4, 0.2]
    with pytest.raises(InputError, match="need 4 times"):
        sampler.with_steps(4)(gaussian(Preserving()), x)

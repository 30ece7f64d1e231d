"""Trajectories of bounded memory, and progress."""

from __future__ import annotations

import io

import pytest
import torch

from itoflow import InputError, Row, Table
from itoflow.callbacks import Progress, Trajectory, together
from itoflow.loop import Step, run_table
from itoflow.testing.problems import Preserving, gaussian, seeded


def run(calls, callback):
    x = gaussian(Preserving()).sample(3, 1.0, generator=seeded(0))
    rows = tuple(Row(1 - 0.9 * i / calls, b=(-0.9 / calls,)) for i in range(calls))
    return run_table(Table(rows), gaussian(Preserving()), x, callback=callback)


@pytest.mark.parametrize("calls", [1, 2, 7, 8, 9, 100, 333])
def test_a_trajectory_is_bounded_spread_and_ends_at_the_end(calls):
    trajectory, seen = Trajectory(8), []
    end = run(calls, together(trajectory, seen.append))
    assert len(trajectory.states) <= 8
    assert len(trajectory.states) == calls or len(trajectory.states) >= 4
    assert torch.equal(trajectory.states[-1], end)
    by_time = {step.t: step.x for step in seen}
    for t, x in zip(trajectory.times, trajectory.states, strict=True):
        assert torch.equal(by_time[t], x)
    gaps = [round((a - b) * calls / 0.9) for a, b in zip(trajectory.times[:-2], trajectory.times[1:-1], strict=True)]
    assert len(set(gaps)) <= 1, gaps


def test_a_trajectory_starts_anew_with_each_run():
    trajectory = Trajectory(8)
    run(100, trajectory)
    run(5, trajectory)
    assert len(trajectory.states) == 5


@pytest.mark.parametrize("keep", [1, 0, 2.5, "8", True])
def test_a_trajectory_of_less_than_two_states_is_refused(keep):
    with pytest.raises(InputError, match="at least 2"):
        Trajectory(keep)


def test_progress_counts_calls_and_ends_its_line():
    stream = io.StringIO()
    run(4, Progress(stream))
    lines = stream.getvalue().split("\r")
    assert lines[1].startswith("sampling 1/4 [#####  ")
    assert lines[-1] == "sampling 4/4 [####################] t = 0.3250\n"


def test_progress_ends_its_line_where_nobody_knew_the_number_of_calls():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(Step(0, None, 0.5, torch.zeros(1, 1), lambda: torch.zeros(1, 1)))
    assert stream.getvalue() == "\rsampling 1 t = 0.5000\n"


def test_nothing_to_call_is_no_callback():
    assert together(None) is None

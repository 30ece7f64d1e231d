"""`auto`: exact where its frame is, the same on every process, better than the methods it is made from."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from itoflow import Field
from itoflow.field import NetworkField
from itoflow.grids import calls_to, optimal_calls, time_grid
from itoflow.loop import run_table
from itoflow.parametrization import Parametrization
from itoflow.prediction import GaussianPrediction
from itoflow.testing import GaussianOracle, MixtureOracle
from itoflow.testing.memory import Scaled, held
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared, UndeclaredOracle, exact_field, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers import auto
from itoflow_samplers.auto import Auto, method_of, plain
from itoflow_samplers.ddim import DDIM
from itoflow_samplers.frames import Frame, points
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


@pytest.mark.parametrize("calls", [16, 40, 90])
def test_runs_that_reach_t_min_end_there(calls):
    """Where t_min leaves noise, the last call is at t_min and the run ends at E[x0 | x(t_min)]."""
    process = Exploding(t_min=0.3)
    oracle = modes(process)
    x = oracle.sample(64, process.t_max, generator=seeded(5))
    expected = ExponentialAdams(order=4, steps=800, grid="log-snr", data_std=oracle.data_std)(oracle, x)
    rows = Auto(steps=calls).table(process).rows
    assert (rows[-1].t, rows[-1].out, rows[-1].b) == (process.t_min, "x0", (1.0,))
    assert rmse(Auto(steps=calls)(oracle, x), expected) < 10 * calls**-3
    assert Auto(steps=calls).table(Straight()).rows[-1].t > Straight().t_min


def test_a_run_cut_short_has_the_times_of_a_longer_one():
    """In n steps to w = end: the first n times of a run of more calls, whose n-th step ends there."""
    for calls in (5, 10, 23, 64, 90):
        assert calls_to(calls, math.inf) == calls
        for end in (0.5, 3.0, 6.0):
            length = calls_to(calls, end)
            assert length > calls
            low, high = optimal_calls(math.floor(length)), optimal_calls(math.ceil(length))
            found = optimal_calls(length, calls)
            assert len(found) == calls
            assert all(min(a, b) - 1e-9 <= w <= max(a, b) + 1e-9 for w, a, b in zip(found, low, high, strict=False))
            assert found[-1] < end


@pytest.mark.parametrize("process", [Preserving(), Straight(), Exploding()], ids=repr)
@pytest.mark.parametrize("calls", [6, 12, 33, 64])
def test_memory_is_at_most_order_and_three_tensors(process, calls):
    """Of order 4: 3, corrected at the next evaluation."""
    field = NetworkField(Scaled(), process, Parametrization(prediction="x0", data_std=0.5))
    x, run = torch.randn(16, 100, generator=seeded(0)), Auto(steps=calls)
    assert held(partial(run, field), x) <= 4 + 3


def test_a_process_that_is_not_gaussian_is_run_in_its_velocity():
    field = exact_field(Undeclared())
    assert isinstance(field, UndeclaredOracle)
    watched = Watched(field)
    x = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    assert bool(torch.isfinite(Auto(steps=9)(watched, x)).all())
    assert watched.calls == 9
    assert all(row.out == "velocity" for row in Auto(steps=9).table(Undeclared()).rows)


@pytest.mark.parametrize("calls", [12, 30])
def test_without_corrections_a_step_is_predicted_and_corrected(calls):
    """The table, which carries predictions alone, against predictor and corrector written out."""
    process = Preserving()
    oracle = modes(process)
    x = oracle.sample(16, process.t_max, generator=seeded(6))
    sampler = Auto(steps=calls, grid="log-snr")
    knots = points(process, time_grid(process, "log-snr", calls))
    method = plain(knots, oracle.data_std)
    assert method.order == (2 if calls == 12 else 3)
    frame = Frame("v", oracle.data_std, method.bend)

    def f(z, at):
        k = frame.scale(at)
        found = oracle(k * z, torch.tensor(at.t, dtype=torch.float64))
        return (at.sigma * found.x0 - frame.c**2 * at.alpha * found.eps) / (frame.c * k)

    z = x / frame.scale(knots[0])
    known = [f(z, knots[0])]
    for i, (now, after) in enumerate(pairwise(knots)):
        nodes = knots[max(i - method.order + 1, 0) : i + 1][::-1]
        predictor = frame.weights(now, after, nodes, "bounded", process)
        predicted = z + sum(b * value for b, value in zip(predictor, known, strict=False))
        known = [f(predicted, after), *known]
        corrector = frame.weights(now, after, [after, *nodes], "bounded", process)
        z = z + sum(b * value for b, value in zip(corrector, known, strict=False))
    end = oracle(frame.scale(knots[-1]) * predicted, torch.tensor(knots[-1].t, dtype=torch.float64)).x0
    torch.testing.assert_close(sampler(oracle, x), end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("prediction", "grid"), [("eps", "log-snr"), ("score", "log-snr"), ("v", "optimal")])
def test_networks_that_predict_noise_get_times_in_log_snr(prediction, grid):
    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            return 0.1 * x

    field = NetworkField(Net(), Preserving(), Parametrization(prediction=prediction))
    x = torch.randn(4, 3, generator=seeded(0))
    made = Auto(steps=12)(field, x)
    torch.testing.assert_close(made, Auto(steps=12, grid=grid)(field, x), rtol=0, atol=0)
    torch.testing.assert_close(Auto(steps=12)(Watched(field), x), made, rtol=1e-4, atol=1e-4)  # also when wrapped


def test_stored_methods_are_consistent():
    """Corrections fit the calls, and times fall."""
    for calls in CALLS:
        method = method_of(calls)
        assert 1 <= method.order <= 6
        assert len(method.deltas) == calls
        w = optimal_calls(calls)
        assert len(w) == calls
        assert w[0] == 0
        assert all(after > now for now, after in pairwise(w))
        assert all(math.isfinite(value) for row in method.deltas for value in row)


@pytest.mark.parametrize(("calls", "most"), [(6, 0.05), (8, 0.05), (10, 0.01), (18, 1e-3), (32, 1e-4)])
def test_the_mean_of_the_data_comes_out(calls, most):
    """Of N(m, c^2), from s = inf: x(0) = c z + m, and what the steps make of m, F = m sin(theta), is the error."""
    oracle = GaussianOracle(Straight(), torch.ones(2, dtype=torch.float64), 1.0)
    made = Auto(steps=calls)(oracle, torch.zeros(1, 2, dtype=torch.float64))
    assert float((made - 1).abs().max()) < most


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_more_evaluations_do_not_make_the_error_larger(process):
    """From 2 to 100, stored or interpolated: never more than 4 times the best of fewer, and a hundredth at the end.

    The median over 200 points of a mixture that nothing was computed on. `Exploding` starts at sigma = 10 and ends
    where 0.05 is left, so that the stored times are moved most. The largest is where times are first evened, which
    networks need and exact laws do not.
    """
    oracle = modes(process)
    x = oracle.sample(200, process.t_max, generator=seeded(4))
    expected, errors = Auto(steps=400)(oracle, x), []
    for calls in range(2, 101):
        errors.append(float((Auto(steps=calls)(oracle, x) - expected).square().mean(1).sqrt().median()))
        assert errors[-1] < 4 * min(errors), (calls, errors[-1], min(errors))
    assert errors[-1] < 1e-2 * errors[0]


class Rough(Field):
    """A field whose x0 is off by independent noise at every call, as rough as a network's error can be."""

    def __init__(self, inner, size):
        super().__init__(inner.process, inner.data_std)
        self.inner, self.size, self.generator = inner, size, seeded(7)

    def forward(self, x, t, cond=None):
        found = self.inner(x, t, cond)
        off = self.size * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)
        k = self.process.kernel(torch.as_tensor(t, dtype=torch.float64), x.ndim)
        one, zero = torch.ones_like(k.alpha), torch.zeros_like(k.alpha)
        return GaussianPrediction(x, found.x0 + off, k, one, zero)


def blown_up(process, sampler):
    """How many times an error of x0 at every call comes back in the samples."""
    oracle = GaussianOracle(process, torch.zeros(3, dtype=torch.float64), 0.5)
    x, table = oracle.sample(64, process.t_max, generator=seeded(4)), sampler.replace(data_std=0.7).table(process)
    return rmse(run_table(table, Rough(oracle, 1e-4), x), run_table(table, oracle, x)) / 1e-4


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_errors_of_the_field_are_not_blown_up(process):
    """At most 6 times, whatever the calls; DDIM in 20 steps has 1.3 to 1.7, Adams of order 4 up to 3."""
    for calls in (4, 6, 10, 20, 32, 39, 40, 48, 64, 80, 100, 128):
        for denoise in (True, False):
            assert blown_up(process, Auto(steps=calls, denoise=denoise)) < 6, calls


def test_long_steps_would_blow_them_up_without_the_limit_of_weights(monkeypatch):
    """A long step behind short ones extrapolates from them."""
    sampler = Auto(steps=13, grid=(*(0.95 - 0.01 * i for i in range(12)), 0.3, 0.0))
    assert blown_up(Straight(), sampler) < 3
    monkeypatch.setattr(auto, "LARGEST", math.inf)
    assert blown_up(Straight(), sampler) > 10


def test_the_optimal_grid_starts_and_ends_with_the_process():
    for process in PROCESSES:
        for knots in range(1, 102):
            times = time_grid(process, "optimal", knots)
            assert times[0] == process.t_max
            assert len(times) == knots
            assert knots == 1 or times[-1] == process.t_min

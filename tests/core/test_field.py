"""Fields: what is solved ahead equals the forward path, and predictions say what they do not determine."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from itoflow import Field, GaussianProcess, NetworkField, Parametrization, Row, UndefinedError
from itoflow.grids import time_grid
from itoflow.parametrization import PredictionName
from itoflow.prediction import DynamicsPrediction
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared, gaussian, seeded, solvable


class Net(nn.Module):
    """Smooth, and dependent on everything it is given."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.7, -0.3], [0.2, 0.5]], dtype=dtype))

    def forward(self, x, t, cond):
        assert x.dtype == self.weight.dtype
        assert t.dtype == torch.promote_types(x.dtype, torch.float32)  # half precision does not tell times apart
        assert t.shape == (len(x),)
        return torch.tanh(x @ self.weight) + torch.sin(3 * t)[:, None] * x + cond["shift"].to(x.dtype)


COND = {"shift": torch.tensor([[0.1], [-0.2], [0.3]])}
PREDICTIONS = get_args(PredictionName)


def requests(process, members=("x0", "eps", "velocity", "strong")):
    times = [t for t in time_grid(process, "uniform", 9) if not isinstance(process, GaussianProcess) or t > 0]
    return [
        Row(t, out="velocity" if member == "strong" else member, eta=0.8 if member == "strong" else 0.0)
        for t in times
        for member in members
    ]


def unfolded(field, row, x):
    prediction = field(x, torch.tensor(row.t, dtype=torch.float64), COND)
    value = getattr(prediction, row.out)
    return value - row.eta**2 / 2 * prediction.score if row.eta else value


def planned(field, rows, x, cond=None):
    """Row i at x, by what is solved for all rows at once."""
    network, solved = field.evaluator(x, cond), field.solved(rows, x)

    def answer(i, x):
        return solved.m_x[i] * x + solved.m_y[i] * network(solved.scale[i] * x, solved.labels[i])

    return answer


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("std", [1.0, 0.4])
def test_what_is_solved_ahead_equals_the_forward_path(process, prediction, std):
    parametrization = Parametrization(prediction=prediction, data_std=std)
    process = solvable(process, parametrization)
    field, x = (
        NetworkField(Net(), process, parametrization),
        torch.randn(3, 2, dtype=torch.float64, generator=seeded(0)),
    )
    rows = requests(process)
    plan = planned(field, rows, x, COND)
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            plan(i, x), unfolded(field, row, x), rtol=1e-9, atol=1e-9, msg=lambda m, r=row: f"{r}: {m}"
        )


@pytest.mark.parametrize("prediction", ["velocity", "score"])
def test_what_is_solved_ahead_equals_the_forward_path_of_a_process_that_is_not_gaussian(prediction):
    field = NetworkField(Net(), Undeclared(), Parametrization(prediction=prediction))
    x = torch.randn(3, 2, dtype=torch.float64, generator=seeded(0))
    rows = requests(field.process, ("velocity", "strong"))
    plan = planned(field, rows, x, COND)
    for i, row in enumerate(rows):
        torch.testing.assert_close(plan(i, x), unfolded(field, row, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.bfloat16])
def test_the_network_runs_in_its_own_dtype_and_the_field_in_that_of_x(net_dtype):
    field = NetworkField(Net(net_dtype), Preserving(), Parametrization(prediction="v"))
    x = torch.randn(3, 2, generator=seeded(0))
    rows = [Row(0.5, out="x0")]
    for value in (field(x, torch.tensor(0.5), COND).x0, planned(field, rows, x, COND)(0, x)):
        assert value.dtype == torch.float32
    torch.testing.assert_close(planned(field, rows, x, COND)(0, x), field(x, torch.tensor(0.5), COND).x0)


def test_one_time_per_row_equals_each_row_alone():
    field = NetworkField(Net(), Exploding(), Parametrization(prediction="edm", data_std=0.5))
    x, t = (
        torch.randn(3, 2, dtype=torch.float64, generator=seeded(0)),
        torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64),
    )
    together = field(x, t, COND).velocity
    for i in range(3):
        alone = field(x[i : i + 1], t[i], {"shift": COND["shift"][i : i + 1]}).velocity
        torch.testing.assert_close(together[i : i + 1], alone)


def test_the_input_that_the_network_sees_has_unit_variance():
    """20000 draws of p_t for data of standard deviation 0.3: 5 standard errors."""
    seen = []

    class Spy(Net):
        def forward(self, x, t, cond):
            seen.append(x)
            return x

    field = NetworkField(Spy(), Exploding(), Parametrization(prediction="x0", data_std=0.3))
    for t in (0.0, 0.5, 1.0):
        x0 = 0.3 * torch.randn(20_000, 2, dtype=torch.float64, generator=seeded(0))
        sample = field.process.perturb(x0, torch.full((20_000,), t), generator=seeded(1))
        field(sample.x, sample.t, COND)
    for x in seen:
        assert float(x.var()) == pytest.approx(1, abs=5 * (2 / 40_000) ** 0.5)


def test_members_follow_from_each_other_on_a_process_that_is_not_gaussian():
    known, process = gaussian(Preserving()), Undeclared()
    x, t = known.sample(4, 0.5, generator=seeded(0)), torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    exact = known(x, t)
    from_score = DynamicsPrediction(process, x, t, score=exact.score)
    from_velocity = DynamicsPrediction(process, x, t, velocity=exact.velocity)
    torch.testing.assert_close(from_score.velocity, exact.velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(from_velocity.score, exact.score, rtol=1e-9, atol=1e-9)


def test_what_is_not_determined_is_an_error_that_names_it():
    class Still(Undeclared):
        def diffusion(self, t):
            return torch.zeros_like(t)

    x, t = torch.zeros(2, 2), torch.tensor(0.5)
    prediction = DynamicsPrediction(Still(), x, t, velocity=x)
    for member in ("x0", "eps", "score"):
        with pytest.raises(UndefinedError, match=member):
            getattr(prediction, member)


def test_a_field_that_solves_nothing_ahead_is_evaluated_as_it_is():
    class Wrapped(Field):
        def __init__(self, inner):
            super().__init__(inner.process, inner.data_std)
            self.inner = inner

        def forward(self, x, t, cond=None):
            return self.inner(x, t, cond)

    field, x = Wrapped(gaussian(Preserving())), torch.randn(3, 2, dtype=torch.float64, generator=seeded(0))
    rows = requests(field.process)
    plan = planned(field, rows, x)
    for i, row in enumerate(rows):
        torch.testing.assert_close(plan(i, x), unfolded(field, row, x))

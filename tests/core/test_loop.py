"""What the loop may cost and must keep: memory, its inputs, what networks return, and what a callback was shown."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from itoflow import InputError, NetworkField, NumericalError, Parametrization, Row, SpecError, Table
from itoflow.loop import run_table
from itoflow.prediction import GaussianPrediction
from itoflow.testing.memory import Peak
from itoflow.testing.problems import Exploding, Preserving, Straight, gaussian, seeded


class Pull(nn.Module):
    """A network with one weight, so that its activations are its output alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, t, cond):
        return torch.mul(x, self.weight)


class Given(nn.Module):
    """A network that returns what it was given, the same tensor."""

    def forward(self, x, t, cond):
        return x


def adams(depth, n=12, out="x0", noise=0.0, inner=False):
    """A table with every kind of coefficient; `inner` puts history and noise into the network's input too."""
    rows = []
    for i in range(n):
        known = min(i + 1, depth)
        q = tuple(0.05 / (j + 1) for j in range(min(i, depth - 1))) if inner else ()
        b = tuple(0.2 / (j + 1) for j in range(known))
        p, r = (0.95, noise) if inner else (1.0, 0.0)
        rows.append(Row(0.95 - 0.07 * i, out=out, a=0.8, b=b, c=noise, p=p, q=q, r=r, f=0.1))
    return Table(tuple(rows))


@pytest.mark.parametrize("process", [Preserving(), Exploding()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("inner", [False, True])
def test_inputs_of_both_loops_equal_the_formula(process, depth, noise, inner):
    """Equations (1) to (3) of `itoflow.table`, written out."""
    for out, prediction in (("x0", "v"), ("eps", "x0"), ("velocity", "eps")):
        field = NetworkField(Pull().double(), process, Parametrization(prediction=prediction, data_std=0.6))
        table, x = adams(depth, out=out, noise=noise, inner=inner), torch.randn(3, 2, generator=seeded(0)).double()
        generator, u, history = seeded(1), x, []
        for row in table.rows:
            z = torch.randn(3, 2, dtype=torch.float64, generator=generator) if noise else torch.zeros_like(x)
            v = row.p * u + sum(q * h for q, h in zip(row.q, history, strict=False)) + row.r * z
            h = getattr(field(v, torch.tensor(row.t, dtype=torch.float64)), out) + row.f * v
            history = [h, *history]
            u = row.a * u + sum(b * h for b, h in zip(row.b, history, strict=False)) + row.c * z
        torch.testing.assert_close(run_table(table, field, x, generator=seeded(1)), u, rtol=1e-10, atol=1e-10)
        shown = []
        run_table(table, field, x, generator=seeded(1), callback=shown.append)
        torch.testing.assert_close(shown[-1].x, u, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", [Preserving(), Straight(t_max=0.96)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_network_may_return_its_input_itself(process, depth):
    """The output is then the state, or a tensor that the loop reuses; a copy of it must give the same."""

    class Copied(Given):
        def forward(self, x, t, cond):
            return x.clone()

    x = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    for scale in (True, False):
        parametrization = Parametrization(prediction="v", data_std=0.5, scale_input=scale)
        got, expected = (
            run_table(adams(depth, out="x0"), NetworkField(net, process, parametrization), x)
            for net in (Given(), Copied())
        )
        assert torch.equal(got, expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("noise", "inner"), [(0.0, False), (0.1, False), (0.1, True)])
def test_memory_is_at_most_order_and_three_tensors(depth, noise, inner):
    """Counted by storage, the network's input and output included; nothing is made per step but the output."""
    if depth == 1 and inner:
        depth = 2
    field = NetworkField(Pull(), Exploding(), Parametrization(prediction="v", data_std=0.5))
    x = torch.randn(64, 1000, generator=seeded(0))
    with Peak(x) as few:
        run_table(adams(depth, 12, noise=noise, inner=inner), field, x, generator=seeded(1))
    with Peak(x) as many:
        run_table(adams(depth, 13, noise=noise, inner=inner), field, x, generator=seeded(1))
    assert few.peak <= depth + (2 if depth > 1 and not noise else 3)  # then the state is the network's input
    assert many.peak == few.peak
    assert many.made - few.made == 1


def test_what_is_no_field_no_state_or_no_callback_is_refused():
    field, table, x = gaussian(Preserving()), adams(1), torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"runs on a Field, of a model `model\.field`. Given: Pull"):
        run_table(table, Pull(), x)
    for bad in ([[0.0, 1.0]], torch.zeros(3, 2, dtype=torch.int64), torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"starts from a floating tensor \(B, \*S\)"):
            run_table(table, field, bad)
    with pytest.raises(InputError, match="callback is a function"):
        run_table(table, field, x, callback=3)


def test_what_a_callback_was_shown_stays():
    field = NetworkField(Pull(), Exploding(), Parametrization(prediction="v"))
    x = torch.randn(4, 2, generator=seeded(0))
    for depth in (1, 3):
        kept, copied = [], []

        def record(step, kept=kept, copied=copied):
            kept.append(step)
            copied.append((step.x.clone(), step.x0.clone()))

        run_table(adams(depth, noise=0.1), field, x, generator=seeded(1), callback=record)
        for step, (state, estimate) in zip(kept, copied, strict=True):
            assert torch.equal(step.x, state)
            assert torch.equal(step.x0, estimate)


def test_a_scale_that_shrinks_out_of_float32_is_put_back():
    """a = 1e-9 five times is 1e-45, which float32 does not hold as a scale, although every state is of size 1."""
    field = NetworkField(Pull(), Exploding(), Parametrization(prediction="x0", scale_input=False))
    x = torch.ones(2, 2)
    for a in (1e-9, -1e-9):
        rows = tuple(Row(0.9 - 0.1 * i, out="x0", a=a, b=(1.0,)) for i in range(5))
        u = x.double()
        for _ in rows:
            u = a * u + 0.7 * u
        torch.testing.assert_close(run_table(Table(rows), field, x).double(), u, rtol=1e-5, atol=0)


@pytest.mark.parametrize("a", [1e-13, 1e13])
def test_a_network_may_return_its_input_where_the_scale_is_put_back(a):
    """x0 = x: u <- (a + 1) u, from a tensor that is both; one tensor is made for it."""
    field = NetworkField(Given(), Straight(), Parametrization(prediction="x0", scale_input=False))
    x = torch.randn(64, 1000, dtype=torch.float64, generator=seeded(0))
    table = Table((Row(0.9, out="x0", a=a, b=(1.0,)),))
    torch.testing.assert_close(run_table(table, field, x), (a + 1) * x, rtol=1e-12, atol=0)
    with Peak(x) as held:
        run_table(table, field, x)
    assert held.peak <= 4


def test_an_infinite_state_is_forgotten_by_a_row_that_does_not_carry_it():
    field = NetworkField(Pull(), Exploding(), Parametrization(prediction="x0", scale_input=False))
    rows = (Row(0.9, out="x0", a=0.0, b=(1.0,)), Row(0.5, out="x0", a=0.0, b=(0.0,), c=1.0))
    assert bool(torch.isfinite(run_table(Table(rows), field, torch.full((2, 2), 3e38), generator=seeded(0))).all())


def test_noise_with_a_clock_follows_one_path():
    """One row from 1 to 8, or three that share the stretch: the same noise in all, whatever the steps."""
    field = NetworkField(Pull(), Exploding(), Parametrization(prediction="x0"))
    x = torch.zeros(5, 2)

    def end(*readings):
        stretches = pairwise(readings)
        rows = tuple(Row(0.5, out="x0", c=(b - a) ** 0.5, clock=(a, b)) for a, b in stretches)
        return run_table(Table(rows), field, x, generator=seeded(3))

    torch.testing.assert_close(end(1.0, 8.0), end(1.0, 1.3, 6.9, 8.0), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(end(1.0, 8.0), end(1.0, 7.9), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 3])
def test_one_table_serves_fields_dtypes_and_batches_in_turn(depth):
    """What is kept with a table is made anew for whatever it depends on: the same as by a table that nothing knows."""
    kept = adams(depth)
    for process in (Exploding(), Preserving()):
        for prediction in ("v", "x0"):
            for dtype in (torch.float64, torch.float32):
                field = NetworkField(Pull().to(dtype), process, Parametrization(prediction=prediction, data_std=0.6))
                for batch in (3, 5, 3):
                    x = torch.randn(batch, 2, dtype=dtype, generator=seeded(0))
                    assert torch.equal(run_table(kept, field, x), run_table(adams(depth), field, x))
    assert len(kept._kept) == 1


def test_what_is_kept_with_a_table_is_not_made_again():
    made = []
    table = adams(2)
    for key in ("a", "a", "b", "a"):
        table.keep(key, lambda k=key: made.append(k) or k)
    assert made == ["a", "b", "a"]


class Spoils(nn.Module):
    """A network that changes what it is given."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x, t, cond):
        (x if self.what == "x" else t).mul_(0.5)
        return 0.7 * x


@pytest.mark.parametrize("what", ["x", "t"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_network_that_changes_its_input_is_refused(what, depth):
    """The state and the kept times are the same tensors: it would be right once, or never."""
    field = NetworkField(Spoils(what), Exploding(), Parametrization(prediction="x0", scale_input=False))
    with pytest.raises(SpecError, match=f"changes its input {what} in place"):
        run_table(adams(depth), field, torch.ones(3, 2))


class Linear(nn.Module):
    """Of four numbers a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, t, cond):
        return self.layer(x)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_error_of_the_network_says_what_it_was_called_with(depth):
    field = NetworkField(Linear(), Preserving(), Parametrization(prediction="v"))
    with pytest.raises(RuntimeError) as raised:
        run_table(adams(depth), field, torch.zeros(2, 3))
    assert raised.value.__notes__ == ["In the first call of a sampler's run, x of shape (2, 3), torch.float32, cpu."]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_run_in_inference_mode_leaves_nothing_behind_that_needs_it(depth):
    class Energy(nn.Module):
        def forward(self, x, t, cond):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad((x.square() * t[:, None]).sum(), x)[0]

    table, x = adams(depth), torch.ones(3, 2)
    plain = NetworkField(Pull(), Exploding(), Parametrization(prediction="x0"))
    with torch.inference_mode():
        run_table(table, plain, x)
    energy = NetworkField(Energy(), Exploding(), Parametrization(prediction="x0"))
    assert bool(torch.isfinite(run_table(table, energy, x)).all())


def test_a_network_field_with_a_forward_of_its_own_is_called_by_it():
    class Doubled(NetworkField):
        def forward(self, x, t, cond=None):
            inner = super().forward(x, t, cond)
            return GaussianPrediction(x, 2 * inner.output, inner.kernel, inner.a, inner.b)

    x = torch.ones(3, 2)
    doubled = Doubled(Pull(), Exploding(), Parametrization(prediction="x0", scale_input=False))
    end = run_table(Table((Row(0.5, out="x0", a=0.0, b=(1.0,)),)), doubled, x)
    torch.testing.assert_close(end, 2 * 0.7 * x)


def test_the_first_value_that_is_not_finite_is_named():
    """Also where it enters the state later."""

    class Broken(nn.Module):
        def forward(self, x, t, cond):
            return torch.where(t[:, None] == 0.7, math.nan, 0.5 * x)

    field = NetworkField(Broken(), Exploding(), Parametrization(prediction="x0"))
    table = Table((*(Row(t, out="x0") for t in (0.9, 0.8, 0.7, 0.6)), Row(0.5, out="x0", b=(0.0, 0.0, 1.0))))
    with pytest.raises(NumericalError, match=r"step 3 of 5 .*t = 0.7: the network's output"):
        run_table(table, field, torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(NumericalError, match=r"step 1 of 5 .*: the network's input"):
        run_table(table, field, torch.full((3, 2), math.nan))

"""The step as one function: equal to the loop, one graph without breaks a depth, captured by a CUDA graph."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from itoflow import InputError, NetworkField, Parametrization, Row, Table, TableSampler, compiled, loop
from itoflow.compiled import captured, step
from itoflow.loop import run_table
from itoflow.slots import slots
from itoflow.testing.problems import Exploding, Preserving, mixture, seeded

COND = {"shift": torch.tensor([[0.1, -0.2]])}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.7, -0.3], [0.2, 0.5]]))

    def forward(self, x, t, cond):
        return torch.tanh(x @ self.weight) + torch.sin(3 * t)[:, None] * x + cond["shift"].to(x.device)


class General(TableSampler):
    """Every kind of coefficient, `order` rows deep."""

    order: int = 2
    noise: float = 0.0
    inner: bool = False
    clock: bool = False

    def table(self, process):
        rows = []
        for i, (t, s) in enumerate(pairwise(torch.linspace(0.95, 0.05, self.steps + 1).tolist())):
            b = tuple((s - t) / (j + 1) for j in range(min(i + 1, self.order)))
            q = tuple(0.05 / (j + 1) for j in range(min(i, self.order - 1))) if self.inner else ()
            clock = (float(i), i + 1.0) if self.clock else None
            r = self.noise if self.inner else 0.0
            rows.append(Row(t, a=0.9, b=b, c=self.noise, p=0.95, q=q, r=r, f=0.1, clock=clock))
        return Table(tuple(rows))


def on_gpu(test):
    """Runs with `-m gpu` where there is a CUDA device."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


CASES = [(order, noise, inner) for order in (1, 2, 4) for noise in (0.0, 0.1) for inner in (False, True)]


@pytest.fixture
def field():
    return NetworkField(Net(), Exploding(), Parametrization(prediction="edm", data_std=0.5))


@pytest.fixture
def x():
    return torch.randn(5, 2, generator=seeded(0))


def backend(monkeypatch, name="aot_eager"):
    """`step` compiled by another backend, an error where its graph breaks; gives the count of graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(name)
    monkeypatch.setattr(loop, "compiled_step", lambda: torch.compile(step, backend=counter, fullgraph=True))
    return counter


@pytest.mark.parametrize(("order", "noise", "inner"), CASES)
def test_compiled_run_equals_the_loop_in_one_graph(monkeypatch, field, x, order, noise, inner):
    counter = backend(monkeypatch)
    for steps in (7, 9):
        sampler = General(steps=steps, order=order, noise=noise, inner=inner)
        seen, expected = [], []
        got = sampler.replace(compile=True)(field, x, COND, generator=seeded(1), callback=seen.append)
        end = sampler(field, x, COND, generator=seeded(1), callback=expected.append)
        torch.testing.assert_close(got, end, rtol=1e-5, atol=1e-5)
        for a, b in zip(seen, expected, strict=True):
            assert (a.index, a.t) == (b.index, b.t)
            torch.testing.assert_close(a.x, b.x, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a.x0, b.x0, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


class Started(TableSampler):
    """Two Runge-Kutta steps of three stages, then three-step rows over their first stages: slots that are no ring."""

    def table(self, process):
        stages = [Row(0.9, f=0.1), Row(0.8, q=(0.2,)), Row(0.7, p=0.9, q=(0.3, -0.2), a=0.9, b=(-0.1, -0.2, 0.1))]
        first = Row(0.5, a=0.9, b=(-0.2, 0.0, 0.0, 0.1, 0.0, 0.0, -0.1))
        second = Row(0.4, a=0.9, b=(-0.2, 0.1, 0.0, 0.0, 0.05))
        rest = [Row(0.3 - 0.02 * i, a=0.9, b=(-0.2, 0.1, 0.05)) for i in range(self.steps)]
        return Table((*stages, *stages, first, second, *rest))


def test_compiled_run_follows_slots_that_are_no_ring(monkeypatch, field, x):
    counter = backend(monkeypatch)
    sampler = Started(steps=4)
    assert slots(sampler.table(field.process).rows).places[:8] != tuple(i % 4 for i in range(8))
    got = sampler.replace(compile=True)(field, x, COND)
    torch.testing.assert_close(got, sampler(field, x, COND), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for CPUs needs g++")
def test_compiled_by_torch_s_own_compiler(field, x):
    torch._dynamo.reset()
    compiled.compiled_step.cache_clear()
    sampler = General(steps=6, noise=0.1, inner=True)
    got = sampler.replace(compile=True)(field, x, COND, generator=seeded(1))
    torch.testing.assert_close(got, sampler(field, x, COND, generator=seeded(1)), rtol=1e-5, atol=1e-5)


def test_a_field_that_solves_nothing_ahead_runs_as_it_is(monkeypatch):
    counter, oracle = backend(monkeypatch), mixture(Preserving())
    x = torch.randn(3, 2, dtype=torch.float64, generator=seeded(0))
    assert torch.equal(General(compile=True)(oracle, x), General()(oracle, x))
    assert counter.frame_count == 0


class Reads(Net):
    """A network that reads a value back, which neither a graph without breaks nor a CUDA graph can hold."""

    def forward(self, x, t, cond):
        return super().forward(x, t, cond) * float(x.sum() > 0)


def test_a_graph_that_breaks_is_an_error_here(monkeypatch, x):
    backend(monkeypatch)
    field = NetworkField(Reads(), Exploding(), Parametrization(prediction="edm"))
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        General(compile=True)(field, x, COND)


def without_values(field, sampler, x):
    """The run on tensors that have no values; what is kept with the table is made before, as `captured` does."""
    table = sampler.tabulated(field.process)
    run_table(table, field, x, COND)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return loop._run(table, field, mode.from_tensor(x), COND, None, None)


@pytest.mark.parametrize(("order", "noise", "inner"), CASES)
def test_the_loop_reads_no_value_back(field, x, order, noise, inner):
    """What a CUDA graph requires of it; a network that does so is found."""
    sampler = General(order=order, noise=noise, inner=inner, steps=5)
    assert without_values(field, sampler, x).shape == x.shape
    with pytest.raises(DataDependentOutputException):
        without_values(NetworkField(Reads(), Exploding(), Parametrization(prediction="edm")), sampler, x)


def test_a_cuda_graph_needs_its_device(field, x):
    with pytest.raises(InputError, match="needs a CUDA device"):
        captured(General(), field, x, COND)


@on_gpu
@pytest.mark.parametrize(("order", "noise", "inner"), CASES)
def test_a_captured_run_equals_the_loop(order, noise, inner):
    field = NetworkField(Net().cuda(), Exploding(), Parametrization(prediction="edm", data_std=0.5))
    cond = {name: value.cuda() for name, value in COND.items()}
    sampler = General(steps=9, order=order, noise=noise, inner=inner)
    like = torch.empty(5, 2, device="cuda")
    generator = torch.Generator("cuda")
    run = captured(sampler, field, like, cond, generator=generator)
    for seed in (1, 2):
        x = torch.randn(5, 2, generator=seeded(seed)).cuda()
        generator.manual_seed(seed)
        got = run(x).clone()
        expected = sampler(field, x, cond, generator=torch.Generator("cuda").manual_seed(seed))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@on_gpu
def test_a_captured_run_reads_the_weights_where_they_are():
    field = NetworkField(Net().cuda(), Exploding(), Parametrization(prediction="edm", data_std=0.5))
    cond = {name: value.cuda() for name, value in COND.items()}
    x = torch.randn(5, 2, generator=seeded(0)).cuda()
    run = captured(General(), field, x, cond)
    before = run(x).clone()
    with torch.no_grad():
        field.net.weight.mul_(0.5)
    after = run(x).clone()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, General()(field, x, cond), rtol=1e-5, atol=1e-5)


@on_gpu
def test_a_brownian_path_is_not_captured():
    field = NetworkField(Net().cuda(), Exploding(), Parametrization(prediction="edm", data_std=0.5))
    with pytest.raises(InputError, match="Brownian path"):
        captured(General(noise=0.1, clock=True), field, torch.empty(5, 2, device="cuda"))

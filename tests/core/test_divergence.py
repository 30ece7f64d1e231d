"""Divergences against the trace of the Jacobian, whatever the mode and the number of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import InputError
from itoflow.divergence import Divergence, draw_probes
from itoflow.testing.problems import seeded

B, SHAPE = 5, (2, 3)
WEIGHT = torch.randn(6, 6, generator=seeded(0), dtype=torch.float64)


def velocity(x: Tensor, copies: int) -> Tensor:
    """tanh(x W), whose Jacobian is full."""
    assert len(x) == copies * B
    return torch.tanh(x.flatten(1) @ WEIGHT).view_as(x)


def examples() -> Tensor:
    return torch.randn(B, *SHAPE, generator=seeded(1), dtype=torch.float64)


def jacobian(x: Tensor) -> Tensor:
    """(B, D, D), from dtanh = 1 - tanh^2."""
    slope = 1 - torch.tanh(x.flatten(1) @ WEIGHT).square()
    return slope[:, :, None] * WEIGHT.T


class Seen(list[int]):
    """The rows of every call."""

    def __call__(self, x: Tensor, copies: int) -> Tensor:
        self.append(len(x))
        return velocity(x, copies)


@pytest.mark.parametrize("mode", ["reverse", "forward", "auto"])
@pytest.mark.parametrize("rows", [1, 12, 15, 1000])
def test_exact_is_the_trace_of_the_jacobian(mode: Any, rows: int) -> None:
    x, seen = examples(), Seen()
    v, divergence = Divergence(rows=rows, mode=mode)(seen, x)
    torch.testing.assert_close(v, velocity(x, 1))
    torch.testing.assert_close(divergence, jacobian(x).diagonal(dim1=1, dim2=2).sum(1))
    assert max(seen) <= max(rows, B)
    assert not v.requires_grad
    assert not divergence.requires_grad


def test_reverse_mode_calls_the_network_once_and_forward_mode_once_for_each_group() -> None:
    for mode, calls in (("reverse", 1), ("forward", 3)):
        seen = Seen()
        Divergence(rows=10, mode=mode)(seen, examples())  # type: ignore[arg-type]
        assert seen == [10] * calls


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("rows", [5, 20, 1000])
def test_hutchinson_is_the_mean_of_quadratic_forms(mode: Any, rows: int) -> None:
    x = examples()
    probes = draw_probes("gaussian", 7, x, seeded(2))
    expected = torch.einsum("kbi,bij,kbj->b", probes.flatten(2), jacobian(x), probes.flatten(2)) / 7
    torch.testing.assert_close(Divergence(probes, rows=rows, mode=mode)(velocity, x)[1], expected)


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
def test_probes_are_white(name: Any) -> None:
    """40000 of them: mean and covariance within 5 standard errors; one seed gives one draw."""
    probes = draw_probes(name, 40_000, torch.zeros(1, 3, dtype=torch.float64), seeded(3))[:, 0]
    assert float(probes.mean(0).abs().max()) < 5 / 200
    second = probes.T @ probes / len(probes)
    assert float((second - torch.eye(3)).abs().max()) < 5 * 2**0.5 / 200
    assert torch.equal(probes[:, None], draw_probes(name, 40_000, torch.zeros(1, 3, dtype=torch.float64), seeded(3)))
    if name == "rademacher":
        assert set(probes.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_the_number_of_probes_is_at_least_one(count: Any) -> None:
    with pytest.raises(InputError, match=r"a whole number of probes, at least 1\. Given: "):
        draw_probes("rademacher", count, torch.zeros(2, 2))


def test_an_unknown_law_of_probes() -> None:
    with pytest.raises(InputError, match=r"Probes are 'rademacher' or 'gaussian'\. Given: 'uniform'\."):
        draw_probes("uniform", 1, torch.zeros(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_differentiable_in_parameters_and_in_x(mode: Any) -> None:
    """d div / d scale of tanh(scale x W), by central differences of 1e-6."""
    x, scale = examples().requires_grad_(), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def of(scale: Tensor, x: Tensor) -> Tensor:
        divergence = Divergence(rows=10, mode=mode, differentiable=True)
        return divergence(lambda y, copies: velocity(scale * y, copies), x)[1].sum()

    grads = torch.autograd.grad(of(scale, x), (scale, x))
    with torch.no_grad():
        step = 1e-6
        expected = (of(scale + step, x) - of(scale - step, x)) / (2 * step)
        moved = torch.zeros_like(x)
        moved[0, 0, 0] = step
        expected_x = (of(scale, x + moved) - of(scale, x - moved)) / (2 * step)
    torch.testing.assert_close(grads[0], expected.detach(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(grads[1][0, 0, 0], expected_x.detach(), rtol=1e-6, atol=1e-7)


class NoBackward(torch.autograd.Function):
    """x^2, differentiable in forward mode alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


class NoForward(torch.autograd.Function):
    """x^2, differentiable in reverse mode alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, pulled: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * pulled


@pytest.mark.parametrize("function", [NoBackward, NoForward])
def test_auto_takes_the_mode_that_the_network_allows(function: Any) -> None:
    x = examples()
    divergence = Divergence()
    for _ in range(2):
        found = divergence(lambda y, copies: function.apply(y), x)[1]
        torch.testing.assert_close(found, 2 * x.flatten(1).sum(1))


def test_an_error_of_the_network_itself_is_not_hidden() -> None:
    def broken(x: Tensor, copies: int) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Divergence()(broken, examples())


def test_a_velocity_that_does_not_depend_on_x_has_none() -> None:
    v, divergence = Divergence()(lambda x, copies: torch.ones_like(x), examples())
    assert torch.equal(divergence, torch.zeros(B, dtype=torch.float64))
    assert torch.equal(v, torch.ones_like(v))

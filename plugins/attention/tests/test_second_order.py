"""Derivatives beyond the first, in reverse and in forward mode, under `auto`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from itoflow import AttentionCall, second_order
from itoflow.attention import attention, choose_attention
from itoflow.errors import IncompatibleError
from itoflow_attention.chunked import Chunked
from itoflow_attention.sdpa import SDPA


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 2), (2, 3, 5))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return attention(q, k, v, bias=bias, scale=0.7)


def test_auto_is_differentiable_twice_and_in_forward_mode() -> None:
    with second_order():
        assert torch.autograd.gradcheck(attend, inputs(), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(attend, inputs(), check_fwd_over_rev=True)


def test_jvp_is_the_directional_derivative() -> None:
    x, direction = inputs(), [torch.randn_like(y) for y in inputs()]
    with second_order():
        _, tangent = torch.func.jvp(attend, tuple(x), tuple(direction))
        h = 1e-5
        ahead, behind = (attend(*(a + s * h * d for a, d in zip(x, direction, strict=True))) for s in (1, -1))
    assert (tangent - (ahead - behind) / (2 * h)).abs().max().item() < 1e-8


def test_second_derivatives_pass_by_a_query_with_nothing_to_attend_to() -> None:
    q, k, v, bias = inputs()
    masked = bias.detach().clone()
    masked[:, 0] = -torch.inf
    with second_order():
        (first,) = torch.autograd.grad(attend(q, k, v, masked).square().sum(), q, create_graph=True)
        gradients = torch.autograd.grad(first.square().sum(), (q, k, v))
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize(("name", "reason"), [("sdpa", "no second and no forward-mode"), ("chunked", "once only")])
def test_a_named_backend_refuses(name: str, reason: str) -> None:
    q, k, v, _ = inputs()
    with second_order(), pytest.raises(IncompatibleError, match=reason):
        attention(q, k, v, backend=name)


@pytest.mark.parametrize("backend", [SDPA(), Chunked()], ids=lambda b: type(b).__name__)
def test_the_reason_is_true(backend: SDPA | Chunked) -> None:
    """Asked all the same, they fail; nothing is wrong in silence."""
    q, k = inputs()[:2]
    (first,) = torch.autograd.grad(backend(q, k, k).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        first.square().sum().backward()
    with pytest.raises(RuntimeError):
        torch.func.jvp(lambda x: backend(x, k, k), (q,), (q,))


def test_outside_auto_is_fast_again() -> None:
    q, k = inputs()[:2]
    with second_order():
        assert type(choose_attention("auto", AttentionCall.of(q, k, k))).__name__ == "Math"
    assert type(choose_attention("auto", AttentionCall.of(q, k, k))).__name__ == "SDPA"

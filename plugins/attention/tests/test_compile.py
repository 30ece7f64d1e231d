"""torch.compile: one graph around the choice of a backend, which is made anew where it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import second_order
from itoflow.attention import attention
from itoflow_attention.math import Math


@pytest.fixture(autouse=True)
def forget() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def qkv(n: int = 2, length: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, length, 8, generator=generator).requires_grad_() for _ in range(3)]


class Graphs:
    """A compiler that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, graph: Any, _: Any) -> Any:
        self.seen.append(graph.print_readable(print_output=False))
        return graph.forward


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math", Math()], ids=str)
def test_there_is_no_break_in_the_graph(backend: Any) -> None:
    compiled = torch.compile(lambda *x: 2 * attention(*x, backend=backend, scale=0.3), fullgraph=True, backend="eager")
    for n in (2, 3, 4):  # the second shape is where torch.compile begins to leave sizes open
        x = qkv(n)
        torch.testing.assert_close(compiled(*x), 2 * Math()(*x, scale=0.3))


def test_gradients() -> None:
    compiled = torch.compile(lambda *x: attention(*x).square().sum(), fullgraph=True, backend="aot_eager")
    x, y = qkv(), qkv()
    compiled(*x).backward()
    Math()(*y).square().sum().backward()
    for a, b in zip(x, y, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_choice_is_made_anew_inside_second_order() -> None:
    graphs = Graphs()
    compiled = torch.compile(attention, fullgraph=True, backend=graphs)
    x = qkv()
    compiled(*x)
    with second_order():
        compiled(*x)
    compiled(*x)
    assert ["scaled_dot_product" in code for code in graphs.seen] == [True, False]  # the third call takes the first


def test_second_order_within_the_graph() -> None:
    def gradient(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with second_order():
            return torch.func.jvp(lambda q: attention(q, k, v), (x,), (torch.ones_like(x),))[1]

    q, k, v = (x.detach() for x in qkv())
    compiled = torch.compile(gradient, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), gradient(q, k, v))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_chunked_runs_beside_the_graph(dropout: float) -> None:
    compiled = torch.compile(lambda *x: 2 * attention(*x, backend="chunked", dropout=dropout), backend="eager")
    x = qkv()
    torch.manual_seed(0)
    got = compiled(*x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, 2 * attention(*x, backend="chunked", dropout=dropout))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(got.sum(), x))


def test_a_refusal_says_the_same() -> None:
    compiled = torch.compile(lambda *x: attention(*x, backend="xformers"), backend="eager")
    with pytest.raises(Exception, match="'xformers' cannot serve this call: xformers needs a CUDA device"):
        compiled(*qkv())

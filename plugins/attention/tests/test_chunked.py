"""What is chunked's own: blocks that cover everything once, and one dropout mask in both passes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import Attention, AttentionCall
from itoflow.attention import attention, choose_attention
from itoflow.errors import OptionError
from itoflow_attention import chunked
from itoflow_attention.chunked import Chunked, _Cut, _Plan
from itoflow_attention.math import Math
from itoflow_attention.sdpa import SDPA


def inputs(n: int = 37, m: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, n, 3), (2, 2, m, 3), (2, 2, m, 2), (2, 1, m))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("b", "h", "n", "m"), list(itertools.product((1, 3), (1, 4), (1, 16, 40), (1, 7))))
def test_blocks_cover_everything_once_within_their_size(b: int, h: int, n: int, m: int) -> None:
    for block in (1, 50, 300, 10**6):
        cut = _Cut(torch.zeros(b, h, n, 2), torch.zeros(b, h, m, 2), block)
        seen = torch.zeros(b * h, 1, n)
        places, heads = torch.arange(b * h * n).view(b * h, 1, n), torch.arange(b * h).view(b * h, 1, 1)
        parts = *map(cut.by_queries, (seen, places)), cut.by_heads(heads), list(cut.of_bias(places.view(b, h, n, 1)))
        for seen_, places_, heads_, bias_ in zip(*parts, strict=True):
            seen_ += 1
            assert seen_.numel() * m <= max(block, 16 * m)
            assert torch.equal(places_.flatten(), bias_.flatten())
            assert torch.equal(places_[:, :, 0] // n, heads_[:, :, 0])
        assert bool((seen == 1).all())
    assert len(parts[0]) == 1


@pytest.mark.parametrize("block", [1, 2**20])
def test_dropout_has_one_mask_in_both_passes(block: int) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(3)
        return Chunked(block=block)(q, k, v, bias=bias, dropout=0.4)

    assert torch.autograd.gradcheck(attend, inputs(20, 4))


def test_a_mask_that_differs_is_found_by_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch.Generator().manual_seed(0)
    monkeypatch.setattr(_Plan, "mask", lambda *_: torch.empty(1).bernoulli_(0.6, generator=kept) / 0.6)
    with pytest.raises(RuntimeError):
        torch.autograd.gradcheck(lambda q, k, v, b: Chunked()(q, k, v, bias=b, dropout=0.4), inputs(20, 4))


def test_dropout_keeps_the_mean_and_differs_between_calls_heads_and_blocks() -> None:
    torch.manual_seed(0)
    n = 64
    q, k, eye = torch.zeros(2, 2, n, 1), torch.zeros(2, 2, n, 1), torch.eye(n).expand(2, 2, n, n)
    backend = Chunked(block=16 * n)  # several blocks a head
    first, second = (backend(q, k, eye, dropout=0.25) * n for _ in range(2))  # the weights, n times
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert abs(float((first == 0).double().mean()) - 0.25) < 0.02
    assert not torch.equal(first, second)
    parts = first.reshape(4 * n // 16, 16, n).unbind()
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(parts, 2))


def test_dropout_repeats_under_torchs_seed_and_other_draws_are_not_disturbed() -> None:
    q, k, v, _ = inputs()
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        outs.append(Chunked()(q, k, v, dropout=0.5))
    assert torch.equal(*outs)
    torch.manual_seed(5)
    Chunked()(q, k, v)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_runs_under_torch_func() -> None:
    q, k, v, _ = (x.detach() for x in inputs())
    by_func = torch.func.grad(lambda x: Chunked()(x, k, v).square().sum())(q)
    leaf = q.clone().requires_grad_()
    Chunked()(leaf, k, v).square().sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(by_func, leaf.grad)


@pytest.mark.parametrize("size", [0.1, 1.0, 6.0, 40.0])
def test_logits_of_any_size(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shift where their bound allows it (the first two), with one elsewhere; without one there: no number."""
    q, k, v = (x.detach().float() for x in inputs(37, 11)[:3])
    q[..., 0] += 10 * size
    k[..., 0] -= 1  # all logits are far from zero, on one side
    leaves = [x.requires_grad_() for x in (q * 1, k, v)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = torch.softmax(exact[0] @ exact[1].mT * size, -1) @ exact[2]
    wanted.sum().backward()
    Chunked(block=100)(*leaves, scale=size).sum().backward()
    for x, y in zip(leaves, exact, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert (x.grad - y.grad).norm() < 2e-4 * size * y.grad.norm() + 1e-6
    monkeypatch.setattr(chunked, "SAFE", torch.inf)
    assert bool(Chunked()(*leaves, scale=size).isfinite().all()) == (size < 6)


def test_no_queries_give_keys_no_gradient() -> None:
    q, k, v = inputs(0, 11)[:3]
    Chunked()(q, k, v).sum().backward()
    assert k.grad is not None
    assert torch.equal(k.grad, torch.zeros_like(k))


def test_only_needed_gradients_are_given() -> None:
    q, k, v, bias = inputs()
    Chunked()(q, k.detach(), v.detach(), bias=bias.detach()).sum().backward()
    assert q.grad is not None
    assert (k.grad, v.grad, bias.grad) == (None, None, None)


def training(*shape: int, dtype: torch.dtype = torch.float32) -> AttentionCall:
    return AttentionCall(shape, shape, shape, dtype, torch.device("cpu"), gradient=True)


@pytest.mark.parametrize(
    ("shape", "dtype", "backend"),
    [
        ((16, 8, 64, 8), torch.float32, Chunked),
        ((16, 8, 64, 8), torch.bfloat16, Chunked),
        ((15, 8, 64, 8), torch.float32, SDPA),
        ((64, 32, 32, 8), torch.float32, SDPA),
        ((16, 8, 64, 9), torch.float32, SDPA),
        ((16, 4, 256, 32), torch.float32, Chunked),
        ((16, 4, 256, 32), torch.bfloat16, SDPA),
        ((15, 4, 256, 32), torch.float32, SDPA),
        ((16, 4, 256, 33), torch.float32, SDPA),
    ],
)
def test_auto_takes_it_where_many_logits_come_from_small_heads(
    shape: tuple[int, ...], dtype: torch.dtype, backend: type[Attention]
) -> None:
    assert isinstance(choose_attention("auto", training(*shape, dtype=dtype)), backend)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient": False},
        {"traced": True},
        {"bias": (64, 64)},
        {"dtype": torch.float64},
        {"device": torch.device("mps")},
    ],
    ids=str,
)
def test_auto_takes_it_in_plain_training_on_a_cpu_only(change: dict[str, Any]) -> None:
    assert isinstance(choose_attention("auto", replace(training(16, 8, 64, 8), **change)), SDPA)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_example_under_vmap() -> None:
    """`auto` takes another backend there, small heads or not: `chunked` has no rule for vmap."""
    q, k, v = (torch.randn(2, 8, 16, 64, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))

    def value(q: Tensor) -> Tensor:
        return attention(q, k[0], v[0]).square().sum()

    got = torch.func.vmap(torch.func.grad(value))(q)
    torch.testing.assert_close(got, torch.stack([torch.func.grad(value)(each) for each in q]))


def test_block_is_positive() -> None:
    with pytest.raises(OptionError, match="block"):
        Chunked(block=0)


def test_a_nan_in_one_example_does_not_reach_another() -> None:
    """Its size is not known then, so that all logits are shifted."""
    q, k, v = (20 * torch.randn(2, 1, 32, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    expected = Math()(q, k, v)[0]
    q[1] = float("nan")
    got = Chunked()(q, k, v)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_auto_leaves_it_behind_where_a_graph_is_read() -> None:
    """Heads of another size than their values, which `sdpa` takes or not: the graph must hold whatever is chosen."""
    q, k, v = (torch.randn(2, 1, 32, size, requires_grad=True) for size in (4, 4, 6))
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: attention(q, k, v), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), Math()(q, k, v), rtol=1e-4, atol=1e-4)
    mapped = torch.vmap(lambda q, k, v: attention(q, k, v))(q[None], k[None], v[None])[0]
    torch.testing.assert_close(mapped, Math()(q, k, v), rtol=1e-4, atol=1e-4)

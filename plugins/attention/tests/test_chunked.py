"""What is chunked's own: blocks that cover everything once, and one dropout mask in both passes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from itoflow.errors import OptionError
from itoflow_attention.chunked import Chunked, _Plan


def inputs(n: int = 37, m: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, n, 3), (2, 2, m, 3), (2, 2, m, 2), (2, 1, m))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("b", "h", "n", "m"), list(itertools.product((1, 3), (1, 4), (1, 16, 40), (1, 7))))
def test_blocks_cover_everything_once_within_their_size(b: int, h: int, n: int, m: int) -> None:
    q, k = torch.zeros(b, h, n, 2), torch.zeros(b, h, m, 2)
    for block in (1, 50, 300, 10**6):
        seen = torch.zeros(b, h, n)
        blocks = list(_Plan(block, 1.0, 0.0, 0).blocks(q, k))
        for _, at in blocks:
            seen[at] += 1
            assert seen[at].numel() * m <= max(block, 16 * m)
        assert bool((seen == 1).all())
        assert [number for number, _ in blocks] == list(range(len(blocks)))
    assert len(blocks) == 1


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


def test_only_needed_gradients_are_given() -> None:
    q, k, v, bias = inputs()
    Chunked()(q, k.detach(), v.detach(), bias=bias.detach()).sum().backward()
    assert q.grad is not None
    assert (k.grad, v.grad, bias.grad) == (None, None, None)


def test_block_is_positive() -> None:
    with pytest.raises(OptionError, match="block"):
        Chunked(block=0)

"""The mathematics in float64, and the calls on which every backend is held against it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow.testing.attentions import TOLERANCE

GROUPS = ((1, 1), (2, 3))
LENGTHS = ((1, 1), (5, 5), (7, 3), (1, 19), (33, 17), (16, 64), (40, 65))
SIZES = ((8, 8), (5, 5), (16, 4), (1, 3), (1, 1))
BIASES = ("none", "full", "batch", "heads", "queries", "keys", "learnt", "mask")


@dataclass(frozen=True)
class Case:
    """One call; `layout` says how q, k and v lie in memory."""

    group: tuple[int, int]
    lengths: tuple[int, int]
    sizes: tuple[int, int]
    bias: str
    scale: float | None
    layout: str

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], Tensor | None]:
        """q, k, v, and the bias: leaves that require a gradient (the bias only where it is learnt)."""
        generator = torch.Generator().manual_seed(0)
        (batch, heads), (n, m), (k, v) = self.group, self.lengths, self.sizes
        qkv = [self._tensor((batch, heads, *shape), generator) for shape in ((n, k), (m, k), (m, v))]
        shapes = {"full": (batch, heads, n, m), "batch": (batch, 1, 1, m), "heads": (heads, 1, m), "queries": (n, 1)}
        shapes |= {"keys": (m,), "learnt": (1, heads, n, m), "mask": (batch, 1, n, m)}
        bias = None
        if self.bias != "none":
            bias = torch.randn(shapes[self.bias], generator=generator, dtype=torch.float64)
        if self.bias == "mask":
            assert bias is not None
            bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.3, -torch.inf)
            bias[:, :, 0] = -torch.inf  # a query with nothing to attend to
        moved = [x.to(device=device, dtype=dtype).requires_grad_() for x in qkv]
        if bias is not None:
            bias = bias.to(device=device, dtype=dtype).requires_grad_(self.bias == "learnt")
        return moved, bias

    def _tensor(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        b, h, n, k = shape
        if self.layout == "heads last":
            return torch.randn(b, n, h, k, generator=generator, dtype=torch.float64).transpose(1, 2)
        if self.layout == "features first":
            return torch.randn(b, h, k, n, generator=generator, dtype=torch.float64).mT
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def _cases() -> list[Case]:
    layouts = itertools.cycle(("plain", "heads last", "features first"))
    scales = itertools.cycle((None, 0.3, None, 0.6, None))
    return [Case(*chosen, next(scales), next(layouts)) for chosen in itertools.product(GROUPS, LENGTHS, SIZES, BIASES)]


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """The definition, in float64: weights exp(S) / sum exp(S), and zeros where no key is left."""
    logits = torch.einsum("bhnk,bhmk->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    top = logits.detach().amax(-1, keepdim=True)
    weights = (logits - torch.where(top == -torch.inf, 0, top)).exp()
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmv->bhnv", weights / torch.where(total == 0, 1, total), v)


Attend = Callable[..., Tensor]


def worst(attend: Attend, case: Case, dtype: torch.dtype, device: str = "cpu") -> float:
    """The largest error of output and gradients, over the larger of 1 and the largest entry."""
    qkv, bias = case.tensors(dtype, device)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    exact_bias = None if bias is None else bias.detach().double().requires_grad_(bias.requires_grad)
    out = attend(*qkv, bias=bias, scale=case.scale)
    expected = reference(*exact, exact_bias, case.scale)
    assert (out.shape, out.dtype, out.device.type) == (expected.shape, dtype, torch.device(device).type)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype).to(device)
    out.backward(d_out)
    expected.backward(d_out.double())
    pairs: list[tuple[Any, Any]] = [(out, expected), *((a.grad, b.grad) for a, b in zip(qkv, exact, strict=True))]
    if bias is not None and exact_bias is not None and bias.requires_grad:
        pairs.append((bias.grad, exact_bias.grad))
    errors = [((a.double() - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in pairs]
    return max(error if error == error else float("inf") for error in errors)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    return _cases()


@pytest.fixture(scope="session")
def error() -> Callable[..., float]:
    return worst


@pytest.fixture(scope="session")
def tolerance() -> dict[torch.dtype, float]:
    return TOLERANCE

r"""What every attention backend is held to: softmax(q k^T scale + bias) v for each call that it says it supports.

The calls have few and many positions, heads of several sizes, biases of several shapes, in each floating dtype, on the
CPU and where there is one on a CUDA device. A backend that is not `exact` is held to shapes and dtypes alone. One that
supports no call on this machine is held to its reasons.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from itoflow.attention import Attention, AttentionCall, second_order
from itoflow.testing.assertions import (
    SIGMAS,
    check_options,
    expect,
    expect_close,
    expect_tensor,
    global_randomness_untouched,
)
from itoflow.testing.problems import seeded

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of outputs and gradients, over the larger of 1 and the largest."""
_LENGTHS = ((1, 1), (7, 3), (33, 65))
_SIZES = ((8, 8), (16, 4), (3, 5))
_BIASES = ("none", "queries and keys", "keys", "learnt", "mask")


class _Case:
    """q, k, v and bias, leaves that require a gradient but for a bias that is not learnt."""

    def __init__(self, lengths: tuple[int, int], sizes: tuple[int, int], bias: str, dtype: torch.dtype, device: str):
        g, (n, m), (k, v) = seeded(0), lengths, sizes
        self.scale = None if n == 1 else 0.6
        shapes = (2, 3, n, k), (2, 3, m, k), (2, 3, m, v)
        self.q, self.k, self.v = (torch.randn(s, generator=g).to(device, dtype).requires_grad_() for s in shapes)
        added = {"none": None, "queries and keys": (n, m), "keys": (2, 1, 1, m), "learnt": (3, n, m), "mask": (n, m)}
        self.bias: Tensor | None = None
        if (shape := added[bias]) is not None:
            drawn = torch.randn(shape, generator=g)
            if bias == "mask":
                drawn = torch.where(drawn > 0.5, -torch.inf, 0.0)
                drawn[0] = -torch.inf  # a query without keys, whose output is 0
            self.bias = drawn.to(device, dtype).requires_grad_(bias == "learnt")
        self.says = f"with q, k, v of {', '.join(map(str, shapes))}, {dtype} on {device}, bias: {bias}"

    def leaves(self) -> list[Tensor]:
        return [self.q, self.k, self.v, *([self.bias] if self.bias is not None and self.bias.requires_grad else [])]

    def exact(self) -> tuple[Tensor, list[Tensor]]:
        """The formula in float64, and its leaves."""
        q, k, v = leaves = [x.detach().double().requires_grad_() for x in (self.q, self.k, self.v)]
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        if self.bias is not None:
            bias = self.bias.detach().double().requires_grad_(self.bias.requires_grad)
            logits = logits + bias
            leaves += [bias] if bias.requires_grad else []
        nothing = (logits == -torch.inf).all(-1, keepdim=True)
        return logits.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0) @ v, leaves

    def compare(self, actual: Tensor, exact: Tensor, what: str) -> None:
        """Within `TOLERANCE`."""
        allowed = TOLERANCE[self.q.dtype] * max(1.0, float(exact.detach().abs().max()))
        expect_close(actual, exact, allowed, f"{what} {self.says},")


def check_output(attention: Attention) -> None:
    """Outputs are those of float64; q, k, v and the bias stay as they are."""
    name = type(attention).__name__
    for case in _supported(attention):
        kept = [x.detach().clone() for x in case.leaves()]
        with global_randomness_untouched(name):
            out = attention(case.q, case.k, case.v, bias=case.bias, scale=case.scale)
        expect_tensor(out, name)
        expected, _ = case.exact()
        expect(
            out.shape == expected.shape and out.dtype == case.q.dtype,
            f"{name} returned {out.dtype} of shape {tuple(out.shape)} {case.says}.",
        )
        expect(all(map(torch.equal, kept, case.leaves())), f"{name} changed its input in place.")
        if attention.exact:
            case.compare(out, expected, f"The output of {name}")


def check_gradient(attention: Attention) -> None:
    """Gradients, that of a learnt bias too, are those of float64."""
    name = type(attention).__name__
    for case in _supported(attention):
        out = attention(case.q, case.k, case.v, bias=case.bias, scale=case.scale)
        expect(out.requires_grad, f"The output of {name} {case.says}, has no gradient.")
        slope = torch.randn(out.shape, generator=seeded(1)).to(out)
        found = torch.autograd.grad(out, case.leaves(), slope, allow_unused=True, materialize_grads=True)
        expected, leaves = case.exact()
        wanted = torch.autograd.grad(expected, leaves, slope.double())
        if attention.exact:
            for what, actual, exact in zip(("q", "k", "v", "the bias"), found, wanted, strict=False):
                case.compare(actual, exact, f"The gradient in {what} of {name}")


def check_dropout(attention: Attention) -> None:
    """Where it takes dropout, each weight is kept with probability 1 - p and divided by it, or the call is refused."""
    name, p, m = type(attention).__name__, 0.3, 20
    q, k, v = torch.zeros(4, 8, 50, 8), torch.zeros(4, 8, m, 8), torch.eye(m).expand(4, 8, m, m)
    if attention.supports(AttentionCall.of(q, k, v, dropout=p)):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = attention(q, k, v, dropout=p).double() * m  # all logits are equal
    kept, count = weights != 0, weights.numel()
    share = float(kept.double().mean())
    expect(
        abs(share - (1 - p)) < SIGMAS * (p * (1 - p) / count) ** 0.5,
        f"{name} keeps {share:.4f} of the weights with dropout = {p}; it should be {1 - p:g}.",
    )
    expect_close(weights[kept], torch.tensor(1 / (1 - p)), 1e-4, f"A weight that {name} keeps, times the keys,")


def check_second_order(attention: Attention) -> None:
    """Under `second_order`, what is supported has forward-mode and second derivatives, those of the formula."""
    name = type(attention).__name__
    with second_order():
        for case in _supported(attention, dtypes=(torch.float64,)):
            q, along = case.q, torch.randn(case.q.shape, generator=seeded(2), dtype=torch.float64).to(case.q.device)

            def out(q: Tensor, case: _Case = case) -> Tensor:
                return attention(q, case.k, case.v, bias=case.bias, scale=case.scale)

            expected, (leaf, *_) = case.exact()
            (slope,) = torch.autograd.grad(expected.square().sum(), leaf, create_graph=True)
            (wanted,) = torch.autograd.grad((slope * along).sum(), leaf)
            try:
                tangent = torch.func.jvp(out, (q.detach(),), (along,))[1]
                (slope,) = torch.autograd.grad(out(q).square().sum(), q, create_graph=True)
                (found,) = torch.autograd.grad((slope * along).sum(), q)
            except (RuntimeError, NotImplementedError) as error:
                raise AssertionError(
                    f"{name} has no forward-mode or no second derivative {case.says}: {error}. Let `supports` give a "
                    "reason where call.second_order."
                ) from error
            if not attention.exact:
                continue
            expect_close(found, wanted, 1e-10 * max(1.0, float(wanted.abs().max())), f"{name}'s Hessian {case.says},")
            h = 1e-5
            change = (out(q.detach() + h * along) - out(q.detach() - h * along)) / (2 * h)
            expect_close(tangent, change, 1e-7, f"The forward-mode derivative of {name} {case.says},")


def _supported(attention: Attention, dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCE)) -> Iterator[_Case]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for lengths, sizes, bias, dtype, device in itertools.product(_LENGTHS, _SIZES, _BIASES, dtypes, devices):
        case = _Case(lengths, sizes, bias, dtype, device)
        reasons: object = attention.supports(AttentionCall.of(case.q, case.k, case.v, case.bias, 0.0, case.scale))
        expect(
            isinstance(reasons, tuple) and all(isinstance(reason, str) and reason for reason in reasons),
            f"{type(attention).__name__}.supports gave {reasons!r}; it gives a tuple of reasons, each a text, and an "
            "empty one where it can.",
        )
        if not reasons:
            yield case


CHECKS = (check_options, check_output, check_gradient, check_dropout, check_second_order)

r"""Attention by blocks of queries, recomputed in the backward pass: memory linear in the length, on any device.

A block holds all keys of its queries, so its softmax is complete and needs no running maximum. Everything is held
transposed, positions last: q, k, v as (K, N), (K, M), (V, M), a block of logits as (M, N). Then no product has a head's
few numbers as its columns, where matrix libraries are slow. Forward, block by block:

    S = k^T q scale + bias,   L = logsumexp(S) over keys,   P = exp(S - L),   out = v (P * Z)

S and L are held times log2(e), so that P = 2^(S - L): on some CPUs torch computes powers of 2 several times as fast as
exp. S is shifted by its maximum over keys first, unless |q| |k| scale bounds it by `SAFE`, on a CPU and without bias.

Only q, k, v, bias, out and L are kept. Backward, with P computed again and dO the gradient of out:

    dv += dO (P * Z)^T,   dP = (v^T dO) * Z,   dS = P * (dP - D),   D = colsum(dO * out),
    dq = k dS scale,   dk += q dS^T scale,   dbias += dS, summed where the bias broadcasts

S - L and, without dropout, dP - D are one product each: of k1 and q1, of v1 and dO1, which have one row more, of ones
and of -L or -D. There are many blocks, so that their loops do little besides products: names in them end in _.

Z is the dropout mask over 1 - dropout. It is never kept: each block draws it from a generator of its own, whose seed
comes from torch's default generator once per call, so that both passes see one mask.

References:
    Self-attention Does Not Need O(n^2) Memory (Rabe & Staats, 2021), https://arxiv.org/abs/2112.05682, section 2.
    FlashAttention (Dao et al., 2022), https://arxiv.org/abs/2205.14135, algorithm 4 and appendix B.2 for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from itoflow import Attention, AttentionCall
from itoflow_attention.layout import four
from itoflow_attention.math import Math

_SEEDS = 2**62
MANY_KEYS = 64
SMALL_HEAD, SMALL_HEAD_LOGITS = 8, 2**19
"""With heads of at most so many numbers, at least so many keys, and so many logits in all examples and heads, a
training step on a CPU takes 0.1 to 0.8 of the time of `sdpa`."""
MIDDLE_HEAD, MIDDLE_HEAD_LOGITS = 32, 2**22
"""So many in float32: 0.3 to 0.85; of narrow numbers up to 1.5."""
LOG2_E = math.log2(math.e)
BEHIND = -5
"""A preference below that of `math`."""
SAFE = 40.0
"""Size of logits whose exponentials float32 holds and sums without a shift."""


class Chunked(Attention):
    """Query blocks with recomputation: exact, first derivatives only; sums are in float32 at least."""

    preference: ClassVar[int] = 10

    block: Annotated[int, Gt(0)] | None = None
    """Logits held at once, None for 2^17 for each thread of a CPU, whose cache holds them, and 2^20 elsewhere; a block
    has at least 16 queries of one head where there are as many."""

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """All but second derivatives."""
        if call.second_order:
            return ("it is differentiated once only, and in reverse mode: its backward pass recomputes the blocks",)
        return ()

    def preference_for(self, call: AttentionCall) -> int:
        """Before `sdpa` where it is faster; last where a graph is read, or vmap sees through all but its blocks."""
        if call.traced:
            return BEHIND
        (batch, heads, queries, _), keys = call.query, call.key[2]
        size, logits = max(call.key[3], call.value[3]), batch * heads * queries * keys
        small = size <= SMALL_HEAD and logits >= SMALL_HEAD_LOGITS
        middle = size <= MIDDLE_HEAD and logits >= MIDDLE_HEAD_LOGITS and call.dtype == torch.float32
        plain = call.device.type == "cpu" and call.dtype != torch.float64 and call.bias is None and call.gradient
        return 30 if (small or middle) and keys >= MANY_KEYS and plain else self.preference

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> Tensor:
        """See `itoflow.Attention`."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if not k.shape[2]:  # there is nothing to cut
            return Math()(q, k, v, bias=bias, dropout=dropout, scale=scale)
        block = self.block or (2**17 * torch.get_num_threads() if q.device.type == "cpu" else 2**20)
        out: Tensor = _untraced(q, k, v, bias, block, scale, dropout)
        return out


def _blockwise(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, block: int, scale: float, dropout: float
) -> Tensor:
    seed = int(torch.randint(_SEEDS, ())) if dropout else 0
    apply: Any = _Blocks.apply  # torch leaves it unannotated
    out: Tensor = apply(q, k, v, bias, _Plan(block, scale, dropout, seed))[0]
    return out


_untraced: Any = torch.compiler.disable(_blockwise, reason="its blocks are run beside the graph of torch.compile")


@dataclass(frozen=True)
class _Plan:
    """Options of one call."""

    block: int
    scale: float
    dropout: float
    seed: int

    def mask(self, like: Tensor, number: int) -> Tensor:
        """Z of one block, the same whenever it is asked for."""
        generator = torch.Generator(like.device).manual_seed((self.seed + number) % _SEEDS)
        kept = 1 - self.dropout
        return torch.empty_like(like).bernoulli_(kept, generator=generator).div_(kept)


class _Cut:
    """q (B, H, N, K) and k (B, H, M, K) cut into blocks: as many queries as fit, then heads, then examples.

    A block has heads of one example or of whole examples, so that they lie side by side, and where it has not all
    queries, one head.
    """

    def __init__(self, q: Tensor, k: Tensor, block: int) -> None:
        (batch, heads, self.queries), self.keys = q.shape[:3], k.shape[2]
        self.rows = max(1, min(self.queries, max(16, block // self.keys)))
        self.whole = self.rows >= self.queries
        whole = max(1, block // (self.rows * self.keys)) if self.whole else 1
        head_rows = max(1, min(heads, whole))
        examples = max(1, min(batch, whole // max(1, heads))) if head_rows == heads else 1
        self.groups = [
            (slice(b, min(b + examples, batch)), slice(h, min(h + head_rows, heads)))
            for b in range(0, batch, examples)
            for h in range(0, heads, head_rows)
        ]
        self.counts = [(b.stop - b.start) * (h.stop - h.start) for b, h in self.groups]
        self.places = [slice(n, min(n + self.rows, self.queries)) for n in range(0, max(1, self.queries), self.rows)]

    def by_heads(self, x: Tensor) -> Sequence[Tensor]:
        """(B H, R, M) or (B H, M, R), as many views of the same with B' H' as there are blocks."""
        parts = x.split(self.counts)
        return parts if self.whole else [part for part in parts for _ in self.places]

    def by_queries(self, x: Tensor) -> Sequence[Tensor]:
        """(B H, R, N), as many views of (B' H', R, N') as there are blocks."""
        parts = x.split(self.counts)
        return parts if self.whole else [piece for part in parts for piece in part.split(self.rows, -1)]

    def logits(self, like: Tensor) -> Sequence[Tensor]:
        """Memory for the logits of each block, (B' H', M, N'), the same for all."""
        memory = like.new_empty(max(self.counts, default=0) * self.keys * min(self.rows, self.queries))
        shapes = [(count, self.keys, at.stop - at.start) for count, at in product(self.counts, self.places)]
        views = {shape: memory[: math.prod(shape)].view(shape) for shape in set(shapes)}
        return [views[shape] for shape in shapes]

    def of_bias(self, bias: Tensor | None) -> Iterator[Tensor | None]:
        """(1 or B, 1 or H, 1 or N, 1 or M), the parts that broadcast to (B', H', N', M)."""
        for group, queries in product(self.groups, self.places):
            if bias is None:
                yield None
            else:
                places = zip(bias.shape, (*group, queries), strict=False)
                yield bias[tuple(place if size > 1 else slice(None) for size, place in places)]


def _reach(q: Tensor, k: Tensor) -> float:
    """What no |q^T k| exceeds, of (B H, K, N) and (B H, K, M)."""
    if q.device.type != "cpu" or not q.numel():
        return math.inf
    return math.prod(float((x * x).sum(1).amax()) for x in (q, k)) ** 0.5


def _positions_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, N, K) to (B H, K, N), contiguous."""
    return x.mT.to(dtype).contiguous().flatten(0, 1)


def _with_row(x: Tensor, row: Tensor | float, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """(B, H, N, K) times the scale and (B H, 1, N), or a number for all of it, to (B H, K + 1, N)."""
    batch, heads, n, size = x.shape
    wider = torch.empty(batch * heads, size + 1, n, dtype=dtype, device=x.device)
    torch.mul(x.mT.to(dtype), scale, out=wider.view(batch, heads, size + 1, n)[:, :, :-1])
    wider[:, -1:] = row
    return wider


def _like(part: Tensor, logits: Tensor) -> Tensor:
    """Logits (B' H', M, N') as (B', H', N', M), with the B' or the H' of a part of a bias that has more than one."""
    examples, heads = part.shape[:2]
    apart: Tensor = logits.unflatten(0, (examples, -1) if examples > 1 else (-1, heads))
    return apart.mT


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a b, or = in the first block of its heads."""
    if first:
        torch.bmm(a, b, out=total)
    else:
        total.baddbmm_(a, b)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
        given, shape, cut = q.dtype, q.shape[:2], _Cut(q, k, plan.block)
        dtype = torch.promote_types(given, torch.float32)
        bias = None if bias is None else four(bias)
        q, k, v = (_positions_last(x, dtype) for x in (q, k, v))
        out, top, total = (q.new_empty(q.shape[0], rows, q.shape[2]) for rows in (v.shape[1], 1, 1))
        shifts = bias is not None or not _reach(q, k) * abs(plan.scale) <= SAFE  # so too where it is NaN
        scale = plan.scale * LOG2_E
        with torch.autocast(q.device.type, enabled=False):
            parts = *map(cut.by_heads, (k.mT, v)), *map(cut.by_queries, (q, out, top, total))
            blocks = zip(cut.logits(q), *parts, cut.of_bias(bias), strict=True)
            for number, (weights, k_, v_, q_, out_, top_, total_, bias_) in enumerate(blocks):
                torch.baddbmm(weights, k_, q_, beta=0, alpha=scale, out=weights)
                if bias_ is not None:
                    _like(bias_, weights).add_(bias_, alpha=LOG2_E)
                if shifts:
                    torch.amax(weights, 1, keepdim=True, out=top_)
                    if bias_ is not None:
                        top_.masked_fill_(top_ == -torch.inf, 0)
                    weights.sub_(top_)
                torch.sum(weights.exp2_(), 1, keepdim=True, out=total_)
                if plan.dropout:
                    weights.mul_(plan.mask(weights, number))
                torch.bmm(v_, weights, out=out_)
            log_sum = total.log2().add_(top if shifts else 0)
            out.div_(total if bias is None else total.masked_fill_(total == 0, 1))
        return out.unflatten(0, shape).mT.to(given), log_sum, out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, _Plan], output: Any) -> None:
        *tensors, ctx.plan = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, log_sum, out = ctx.saved_tensors
        plan: _Plan = ctx.plan
        given, shape, cut, dtype = q.dtype, q.shape[:2], _Cut(q, k, plan.block), log_sum.dtype
        d_bias = None
        if bias is not None:
            bias_shape, bias = bias.shape, four(bias)
            d_bias = torch.zeros_like(bias, dtype=dtype) if ctx.needs_input_grad[3] else None
            log_sum = log_sum.masked_fill(log_sum == -torch.inf, torch.inf)
        with torch.autocast(q.device.type, enabled=False):
            d = (_positions_last(d_out, dtype) * out).sum(1, keepdim=True)
            q1, d_o1 = _with_row(q, -log_sum, dtype, plan.scale * LOG2_E), _with_row(d_out, -d, dtype)
            k1, v1 = (_with_row(x, 1, dtype) for x in (k, v))
            d_q, d_k, d_v = (x.new_empty(x.shape[0], x.shape[1] - 1, x.shape[2]) for x in (q1, k1, v1))
            blocks = zip(
                *(cut.logits(d) for _ in range(2)),
                *map(cut.by_heads, (k1.mT, v1.mT, k1[:, :-1], d_k, d_v)),
                *map(cut.by_queries, (q1, d_o1, q1[:, :-1], d_o1[:, :-1], d_q)),
                *map(cut.of_bias, (bias, d_bias)),
                strict=True,
            )
            for number, (p, d_s, k1_, v1_, k_, d_k_, d_v_, q1_, d_o1_, q_, d_o_, d_q_, b_, d_b_) in enumerate(blocks):
                first = number % len(cut.places) == 0
                torch.bmm(k1_, q1_, out=p)
                if b_ is not None:
                    _like(b_, p).add_(b_, alpha=LOG2_E)
                p.exp2_()
                if plan.dropout:
                    mask = plan.mask(p, number)
                    _add_product(d_v_, d_o_, (p * mask).mT, first)
                    torch.bmm(v1_[:, :, :-1], d_o_, out=d_s)
                    d_s.mul_(mask).add_(d_o1_[:, -1:])
                else:
                    _add_product(d_v_, d_o_, p.mT, first)
                    torch.bmm(v1_, d_o1_, out=d_s)
                d_s.mul_(p)
                _add_product(d_k_, q_, d_s.mT, first)
                torch.bmm(k_, d_s, out=d_q_)
                if d_b_ is not None:
                    d_b_ += _like(d_b_, d_s).sum_to_size(d_b_.shape)
            d_q *= plan.scale
            d_k /= LOG2_E
        d_bias = None if d_bias is None else d_bias.reshape(bias_shape).to(given)
        d_q, d_k, d_v = (x.unflatten(0, shape).mT.to(given) for x in (d_q, d_k, d_v))
        return d_q, d_k, d_v, d_bias, None

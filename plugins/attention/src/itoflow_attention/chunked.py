r"""Attention by blocks of queries, recomputed in the backward pass: memory linear in the length, on any device.

A block holds all keys of its queries, so its softmax is complete and needs no running maximum. Forward, block by block:

    S = q k^T scale + bias,   L = logsumexp(S),   P = exp(S - L),   out = (P * Z) v

Only q, k, v, bias and L are kept. Backward, with P computed again and dO the gradient of out:

    dv += (P * Z)^T dO,   dP = (dO v^T) * Z,   dS = P * (dP - rowsum(P * dP)),
    dq = dS k scale,   dk += dS^T q scale,   dbias += dS, summed where the bias broadcasts

Z is the dropout mask over 1 - dropout. It is never kept: each block draws it from a generator of its own, whose seed
comes from torch's default generator once per call, so that both passes see one mask.

References:
    Self-attention Does Not Need O(n^2) Memory (Rabe & Staats, 2021), https://arxiv.org/abs/2112.05682, section 2.
    FlashAttention (Dao et al., 2022), https://arxiv.org/abs/2205.14135, algorithm 4 and appendix B.2 for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from itoflow import Attention, AttentionCall
from itoflow_attention.layout import four

_SEEDS = 2**62


class Chunked(Attention):
    """Query blocks with recomputation: exact, first derivatives only, any dtype (accumulated in float32 or wider)."""

    preference: ClassVar[int] = 10

    block: Annotated[int, Gt(0)] = 2**20
    """Logits held at once; a block has at least 16 queries of one head where there are as many."""

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """All but second derivatives."""
        if call.second_order:
            return ("it is differentiated once only, and in reverse mode: its backward pass recomputes the blocks",)
        return ()

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
        out: Tensor = _untraced(q, k, v, bias, self.block, scale, dropout)
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
    """Options of one call, and what both passes compute alike."""

    block: int
    scale: float
    dropout: float
    seed: int

    def blocks(self, q: Tensor, k: Tensor) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
        """Number and (batch, heads, queries) of each block: as many queries as fit, then heads, then examples."""
        (batch, heads, queries), keys = q.shape[:3], max(1, k.shape[2])
        rows = min(queries, max(16, self.block // keys))
        whole = max(1, self.block // max(1, rows * keys)) if rows == queries else 1
        head_rows = min(heads, whole)
        examples = min(batch, max(1, whole // max(1, heads))) if head_rows == heads else 1
        number = 0
        for b in range(0, batch, max(1, examples)):
            for h in range(0, heads, max(1, head_rows)):
                for n in range(0, queries, max(1, rows)):
                    yield number, (slice(b, b + examples), slice(h, h + head_rows), slice(n, n + rows))
                    number += 1

    def logits(self, q: Tensor, k: Tensor, bias: Tensor | None, at: tuple[slice, slice, slice]) -> Tensor:
        """S of one block, in float32 or wider."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        logits = (q[at].to(dtype) * self.scale) @ k[at[:2]].to(dtype).mT
        return logits if bias is None else logits.add_(bias[_where(bias, at)])

    def mask(self, like: Tensor, number: int) -> Tensor | None:
        """Z of one block, the same whenever it is asked for."""
        if not self.dropout:
            return None
        generator = torch.Generator(like.device).manual_seed((self.seed + number) % _SEEDS)
        kept = 1 - self.dropout
        return torch.empty_like(like).bernoulli_(kept, generator=generator).div_(kept)


def _where(bias: Tensor, at: tuple[slice, slice, slice]) -> tuple[slice, ...]:
    """The part of a bias of four axes that broadcasts to a block."""
    return tuple(slice(None) if size == 1 else part for size, part in zip(bias.shape, at, strict=False))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        log_sum = q.new_empty(*q.shape[:3], 1, dtype=dtype)
        bias = None if bias is None else four(bias)
        with torch.autocast(q.device.type, enabled=False):
            for number, at in plan.blocks(q, k):
                logits = plan.logits(q, k, bias, at)
                log_sum[at] = logits.logsumexp(-1, keepdim=True)
                weights = _weights(logits, log_sum[at])
                mask = plan.mask(weights, number)
                weights = weights if mask is None else weights.mul_(mask)
                out[at] = (weights @ v[at[:2]].to(dtype)).to(q.dtype)
        return out, log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, _Plan], output: Any) -> None:
        *tensors, ctx.plan = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, log_sum = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dtype = log_sum.dtype
        d_q, d_k, d_v = (torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (q, k, v))
        d_bias = None
        if bias is not None:
            shape, bias = bias.shape, four(bias)
            d_bias = torch.zeros_like(bias, dtype=dtype) if ctx.needs_input_grad[3] else None
        with torch.autocast(q.device.type, enabled=False):
            for number, at in plan.blocks(q, k):
                weights = _weights(plan.logits(q, k, bias, at), log_sum[at])
                mask = plan.mask(weights, number)
                d_o, value = d_out[at].to(dtype), v[at[:2]].to(dtype)
                d_v[at[:2]] += (weights if mask is None else weights * mask).mT @ d_o
                d_weights = d_o @ value.mT
                d_weights = d_weights if mask is None else d_weights.mul_(mask)
                d_logits = d_weights.sub_((weights * d_weights).sum(-1, keepdim=True)).mul_(weights)
                d_q[at] = (d_logits @ k[at[:2]].to(dtype)).mul_(plan.scale)
                d_k[at[:2]] += d_logits.mT @ (q[at].to(dtype) * plan.scale)
                if d_bias is not None:
                    part = d_bias[_where(d_bias, at)]
                    part += d_logits.sum_to_size(part.shape)
        d_bias = None if d_bias is None else d_bias.reshape(shape).to(q.dtype)
        return d_q.to(q.dtype), d_k.to(q.dtype), d_v.to(q.dtype), d_bias, None


def _weights(logits: Tensor, log_sum: Tensor) -> Tensor:
    """exp(S - L), in place; zero where L is -inf, for queries with nothing to attend to."""
    return logits.sub_(log_sum.masked_fill(log_sum == -torch.inf, torch.inf)).exp_()

r"""torch's scaled_dot_product_attention, where one of its fused kernels takes the call.

torch chooses among FlashAttention, the memory-efficient kernel and cuDNN, each with memory linear in the length:

    out = softmax(q k^T scale + bias) v,   block by block with a running maximum, recomputed in the backward pass

Where none of them takes a call, torch would write the formula out without a word, with tensors of (B, H, N, M), and
this backend says why instead: `math` and `chunked` do that openly.

References:
    FlashAttention-2 (Dao, 2023), https://arxiv.org/abs/2307.08691.
    Self-attention Does Not Need O(n^2) Memory (Rabe & Staats, 2021), https://arxiv.org/abs/2112.05682.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from itoflow import Attention, AttentionCall
from itoflow_attention.layout import over_keys, rows
from itoflow_attention.probe import probes

SMALL_HEAD = 32
"""Below this head size float16 and bfloat16 are computed in float32 on a CPU for a gradient: see `_slow`."""

_KERNELS: tuple[tuple[str, Callable[..., bool]], ...] = (
    ("flash", torch.backends.cuda.can_use_flash_attention),
    ("efficient", torch.backends.cuda.can_use_efficient_attention),
    ("cuDNN", torch.backends.cuda.can_use_cudnn_attention),
)


class SDPA(Attention):
    """torch's fused attention kernels; which of them runs is torch's choice."""

    preference: ClassVar[int] = 20

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """What the fused kernels of the call's device cannot do; on devices other than CPU and CUDA torch decides."""
        reasons = []
        if call.second_order:
            reasons.append("torch's fused kernels have no second and no forward-mode derivative")
        elif call.device.type == "cpu":
            reasons += _cpu(call)
        elif call.device.type == "cuda":
            reasons += _cuda(call)
        return tuple(reasons)

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
        if _slow(q, k, v):
            bias = None if bias is None else bias.float()
            return self(q.float(), k.float(), v.float(), bias=bias, dropout=dropout, scale=scale).to(v.dtype)
        q, k, v = map(rows, (q, k, v))
        if bias is not None:
            bias = over_keys(bias, k.shape[2])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)


def _slow(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Narrow numbers, small heads, for a gradient: on a CPU torch's kernel takes 1.2 to 10 times that of float32."""
    narrow = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] < SMALL_HEAD
    return narrow and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))


def _cpu(call: AttentionCall) -> list[str]:
    """The conditions of torch's flash kernel for CPUs, the only fused one there; tests hold them against its choice."""
    reasons = []
    if not torch.backends.cuda.flash_sdp_enabled():
        reasons.append("torch.backends.cuda.enable_flash_sdp(False) has switched torch's flash kernel off")
    if call.dropout:
        reasons.append("torch's fused kernel has no dropout on a CPU")
    if call.query[3] != call.value[3]:
        sizes = f"{call.query[3]} for queries and {call.value[3]} for values"
        reasons.append(f"torch's fused kernel needs one head size on a CPU, not {sizes}")
    if call.bias_gradient:
        reasons.append("torch's fused kernel gives no gradient to a bias on a CPU")
    return reasons


def _cuda(call: AttentionCall) -> list[str]:
    q, k, v, bias = probes(call, lambda x: x)
    parameters = torch.backends.cuda.SDPAParams(q, k, v, bias, call.dropout, False, False)
    if any(usable(parameters) for _, usable in _KERNELS):
        return []
    reasons = []
    for name, usable in _KERNELS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            usable(parameters, debug=True)
        said = "; ".join(str(w.message).partition(" (Triggered internally")[0] for w in caught)
        reasons.append(f"torch's {name} kernel does not take it: {said or 'torch gives no reason'}")
    return reasons

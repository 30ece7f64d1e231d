r"""The formula itself, for every call, every order of derivative, and as the reference of the others.

    out = Z(softmax(q k^T scale + bias)) v,   Z(p) = p z / (1 - dropout),   z ~ Bernoulli(1 - dropout)

Memory is that of a few (B, H, N, M) tensors, kept for the backward pass. float16 and bfloat16 are computed in float32.

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itoflow import Attention, AttentionCall


class Math(Attention):
    """softmax(q k^T scale + bias) v as it is written: differentiable twice and in forward mode, on any device."""

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """Everything."""
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
        dtype = torch.promote_types(q.dtype, torch.float32)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        logits = (q.to(dtype) * scale) @ k.to(dtype).mT
        if bias is None:
            weights = logits.softmax(-1)
        else:
            logits = logits + bias
            nothing = (logits == -torch.inf).all(-1, keepdim=True)  # softmax has no value there, and no gradient
            weights = logits.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
        if dropout:
            weights = torch.nn.functional.dropout(weights, dropout)
        return (weights @ v.to(dtype)).to(q.dtype)
